"""The transforms of Winograd's algorithm are exact, and errors grow as stated."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tvmops.signatures.winograd import TAPS, TILES, Matrix, transforms


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
