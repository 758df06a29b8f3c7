from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
import tvm
from tvm import te

from tvmops.ops.activations import STEEPEST, activated, expression
from tvmops.signatures.activations import ACTIVATIONS

VALUES = np.concatenate([np.linspace(-9, 9, 181), [-1e30, -80.0, -1e-30, 0.0, 1e-30, 80.0, 1e30]])

# Each by another formula than the one under test, for one number.
INDEPENDENT: dict[str, Callable[[float], float]] = {
    "none": lambda x: x,
    "relu": lambda x: (x + abs(x)) / 2,
    "relu6": lambda x: sorted((0.0, x, 6.0))[1],
    "gelu": lambda x: x * NormalDist().cdf(x),
    "gelu_tanh": lambda x: x * _logistic(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)),
    "silu": lambda x: x * _logistic(x),
    "hardswish": lambda x: 0.0 if x <= -3 else x if x >= 3 else x * (x + 3) / 6,
    "sigmoid": lambda x: _logistic(x),
    "tanh": lambda x: 2 * _logistic(2 * x) - 1,
}


def _logistic(x: float) -> float:
    return (1 + math.tanh(x / 2)) / 2


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_reference_is_right(activation: str) -> None:
    expected = [INDEPENDENT[activation](float(x)) for x in VALUES]
    np.testing.assert_allclose(activated(activation, VALUES), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_expression_is_the_reference(activation: str) -> None:
    x = te.placeholder((VALUES.size,), "float64", name="x")
    y = te.compute(x.shape, lambda i: expression(activation, x[i], "float64"), name="y")
    function = te.create_prim_func([x, y])
    kernel = tvm.compile(function, {"kind": "llvm"}).jit()["main"]
    result = np.empty_like(VALUES)
    kernel(VALUES, result)
    np.testing.assert_allclose(result, activated(activation, VALUES), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_error_of_the_argument_grows_as_stated(activation: str) -> None:
    x = np.linspace(-10, 10, 200_001)
    slopes = np.abs(np.diff(activated(activation, x)) / np.diff(x))
    assert slopes.max() <= STEEPEST[activation]
    assert slopes.max() > 0.9 * STEEPEST[activation]


def test_infinities_and_nan_are_pytorchs() -> None:
    odd = np.array([np.inf, -np.inf, np.nan])
    expected = {"relu": [np.inf, 0, np.nan], "sigmoid": [1, 0, np.nan], "silu": [np.inf, np.nan, np.nan]}
    for activation, values in expected.items():
        np.testing.assert_array_equal(activated(activation, odd), values)
