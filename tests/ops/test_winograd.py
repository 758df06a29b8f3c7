"""The transforms of Winograd's algorithm are exact, and errors grow as stated."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import tvm
from tvm import te

from tvmops.ops import op_of
from tvmops.signatures.winograd import TAPS, TILES, Matrix, WinogradWeights, transforms
from tvmops.workloads import workload


def times(matrix: Matrix, vector: list[Fraction]) -> list[Fraction]:
    return [sum((a * x for a, x in zip(row, vector)), Fraction(0)) for row in matrix]


@pytest.mark.parametrize("m", TILES)
def test_they_compute_a_correlation_exactly(m: int) -> None:
    rng = np.random.default_rng(m)
    data = [Fraction(int(x)) for x in rng.integers(-99, 99, m + 2)]
    taps = [Fraction(int(x)) for x in rng.integers(-99, 99, TAPS)]
    made = transforms(m)
    products = [g * d for g, d in zip(times(made.weight, taps), times(made.input, data))]
    expected = [sum(taps[k] * data[i + k] for k in range(TAPS)) for i in range(m)]
    assert times(made.output, products) == expected


@pytest.mark.parametrize(("m", "growth"), [(2, 5), (4, 21.4), (6, 138.8)])
def test_errors_grow_as_stated(m: int, growth: float) -> None:
    assert transforms(m).growth == pytest.approx(growth, rel=0.01)


@pytest.mark.parametrize("m", TILES)
def test_the_growth_is_that_of_rounding_in_each_place(m: int) -> None:
    """Rounding errors are put in by hand, in float64: one of relative size 1e-3 for each place."""
    rng = np.random.default_rng(m)
    made = transforms(m)
    at, g, bt = (
        np.array([[float(entry) for entry in row] for row in matrix])
        for matrix in (made.output, made.weight, made.input)
    )
    taps, data = rng.standard_normal((20_000, TAPS)), rng.standard_normal((20_000, m + 2))
    products = (taps @ g.T) * (data @ bt.T)
    error = (products * rng.standard_normal(products.shape)) @ at.T
    assert error.var(axis=0).max() == pytest.approx(made.growth, rel=0.2)


@pytest.mark.parametrize("m", [2, 4])
def test_weights_are_packed_and_unpacked(m: int) -> None:
    layout = WinogradWeights(m)
    w = np.random.default_rng(m).standard_normal((21, 5, 3, 3), dtype="float32")
    packed = layout.pack(w)
    assert packed.shape == layout.shape(21, 5)
    assert packed.ctypes.data % 64 == 0
    assert not packed[1, :, :, 5:].any()
    np.testing.assert_allclose(layout.unpack(packed, 21, 5), w, atol=1e-6)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("packed", ["winograd2", "winograd4"])
def test_the_expression_with_packed_weights_is_the_reference(packed: str, layout: str) -> None:
    work = workload("conv2d", n=1, h=4, w=5, ci=3, co=18, kh=3, kw=3, padding=1, packed=packed, layout=layout)
    op = op_of(work)
    inputs = op.random_inputs(work, seed=0)
    kernel = tvm.compile(te.create_prim_func(op.expression(work)), {"kind": "llvm"}).jit()["main"]
    y = np.empty(op.outputs(work)[0].shape, "float32")
    kernel(*(np.ascontiguousarray(each) for each in inputs), y)
    np.testing.assert_allclose(y, op.reference(work, *inputs)[0], atol=1e-5)
