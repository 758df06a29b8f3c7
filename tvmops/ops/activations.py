"""Activations: exactly in float64, and as tensor expressions.

The formulas are PyTorch's, at infinities and NaN too: relu of NaN is NaN, silu of -inf is
-inf * 0 = NaN. The tanh form of GELU is that of D. Hendrycks and K. Gimpel, Gaussian Error
Linear Units, arXiv 1606.08415; hardswish is that of A. Howard et al., Searching for
MobileNetV3, arXiv 1905.02244.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tvmops.ops.base import Exact

SLOPE = math.sqrt(2 / math.pi)  # of the argument of gelu_tanh
CUBIC = 0.044715

# How much an error of the argument can grow, rounded up: the largest slope of each.
STEEPEST: dict[str, float] = {
    "none": 1.0,
    "relu": 1.0,
    "relu6": 1.0,
    "gelu": 1.13,
    "gelu_tanh": 1.13,
    "silu": 1.1,
    "hardswish": 1.5,
    "sigmoid": 0.25,
    "tanh": 1.0,
}


def activated(activation: str, values: Exact) -> Exact:
    """Return `activation` of each of `values`."""
    with np.errstate(over="ignore", invalid="ignore"):
        return _EXACT[activation](values)


def expression(activation: str, value: Any, dtype: str) -> Any:
    """Return `activation` of `value`, a scalar of a tensor expression."""
    from tvm import tirx  # here, so that references need no compiler

    def number(constant: float) -> Any:
        return tirx.const(constant, dtype)

    def sigmoid(argument: Any) -> Any:
        return number(1) / (number(1) + tirx.exp(-argument))

    def relu6(argument: Any) -> Any:
        return tirx.min(tirx.max(argument, number(0)), number(6))

    half = value * number(0.5)
    made: dict[str, Callable[[], Any]] = {
        "none": lambda: value,
        "relu": lambda: tirx.max(value, number(0)),
        "relu6": lambda: relu6(value),
        "gelu": lambda: half * (number(1) + tirx.erf(value * number(math.sqrt(0.5)))),
        "gelu_tanh": lambda: (
            half * (number(1) + tirx.tanh(number(SLOPE) * (value + number(CUBIC) * value * value * value)))
        ),
        "silu": lambda: value * sigmoid(value),
        "hardswish": lambda: value * relu6(value + number(3)) * number(1 / 6),
        "sigmoid": lambda: sigmoid(value),
        "tanh": lambda: tirx.tanh(value),
    }
    return made[activation]()


def _sigmoid(x: Exact) -> Exact:
    return 1 / (1 + np.exp(-x))


def _gelu(x: Exact) -> Exact:
    erf = np.vectorize(math.erf, otypes=[np.float64])  # NumPy has none
    value: Exact = 0.5 * x * (1 + erf(x * math.sqrt(0.5)))
    return value


def _gelu_tanh(x: Exact) -> Exact:
    value: Exact = 0.5 * x * (1 + np.tanh(SLOPE * (x + CUBIC * x**3)))
    return value


_EXACT: dict[str, Callable[[Exact], Exact]] = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda x: x * _sigmoid(x),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
}
