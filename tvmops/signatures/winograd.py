"""The transforms of Winograd's minimal filtering F(m x m, 3 x 3), made exactly.

    y = A^T [ (G g G^T) * (B^T d B) ] A

computes a tile of m x m outputs y from t x t inputs d, t = m + 2, and a kernel g of 3 x 3
with t**2 products in place of 9 m**2 (A. Lavin and S. Gray, Fast Algorithms for Convolutional
Neural Networks, CVPR 2016). The matrices are those of Cook and Toom: a product of polynomials
by its values at t - 1 points and at infinity, transposed.

The points decide how errors grow. Rounding that each of the t**2 sums of products suffers
reaches output i of one axis with the variance

    growth[i] = sum over p of A[p, i]**2 |G[p]|**2 |B[p]|**2,

of which the largest is minimised here (B. Barabasz et al., Error Analysis and Improving the
Accuracy of Winograd Convolution for Deep Neural Networks, ACM TOMS 46(4), 2020, who minimise
a like measure by search). It is 5 for m = 2, where a direct sum has 3. For m = 4 the points
0, +-2/3, +-3/2 give 21, where 0, +-1, +-2, as usual, give 94. For m = 6 there is none much
better than 0, +-1, +-2, +-1/2, with 139: the best seven points, which need not come in pairs,
are 0, +-1, +-0.5505, +-1.8166, with 131, and what conv2d allows is 53 at most. Points in pairs
+-a halve the work of the transforms.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvmops.signatures.aligned import aligned_zeros

TILES = (2, 4, 6)  # values of m
TAPS = 3
CHANNELS = 16  # output channels side by side in transformed weights, [co / 16][t * t][ci][16]

Matrix = tuple[tuple[Fraction, ...], ...]

_HALF, _TWO_THIRDS = Fraction(1, 2), Fraction(2, 3)
_PAIRS: dict[int, tuple[Fraction, ...]] = {
    2: (Fraction(1),),
    4: (_TWO_THIRDS, 1 / _TWO_THIRDS),
    6: (Fraction(1), 1 / _HALF, _HALF),
}


@dataclass(frozen=True)
class Transforms:
    """The matrices of F(m, 3) along one axis, in rational numbers."""

    output: Matrix  # A^T, m x t
    weight: Matrix  # G, t x 3
    input: Matrix  # B^T, t x t

    @property
    def inverse(self) -> Matrix:
        """A left inverse of G, 3 x t: G g has the first tap and the last, and at +-a their odd part."""
        t, (first, plus, minus) = len(self.weight), self.weight[:3]
        rows = (
            {0: 1 / first[0]},
            {1: 1 / (plus[1] - minus[1]), 2: 1 / (minus[1] - plus[1])},
            {t - 1: Fraction(1)},
        )
        return tuple(tuple(row.get(place, Fraction(0)) for place in range(t)) for row in rows)

    @property
    def growth(self) -> float:
        """The largest variance of an output along one axis, as the module's head says."""
        at, g, bt = (as_array(matrix) ** 2 for matrix in (self.output, self.weight, self.input))
        return float((at @ (g.sum(1) * bt.sum(1))).max())


def as_array(matrix: Matrix) -> NDArray[np.float64]:
    return np.array([[float(entry) for entry in row] for row in matrix])


@lru_cache
def transforms(m: int) -> Transforms:
    """Return the transforms for tiles of m x m outputs."""
    points = [Fraction(0)]
    for point in _PAIRS[m]:
        points += [point, -point]
    others = [[other for other in points if other != point] for point in points]
    scale = [
        prod((point - other for other in rest), start=Fraction(1)) for point, rest in zip(points, others)
    ]
    return Transforms(
        output=tuple((*(point**row for point in points), Fraction(row == m - 1)) for row in range(m)),
        weight=(
            *(tuple(point**tap / by for tap in range(TAPS)) for point, by in zip(points, scale)),
            tuple(Fraction(tap == TAPS - 1) for tap in range(TAPS)),
        ),
        input=(*((*_with_roots(rest), Fraction(0)) for rest in others), tuple(_with_roots(points))),
    )


class WinogradWeights:
    """u = G g G^T, as [ceil(co / 16)][t * t][ci][16]: what F(m x m, 3 x 3) multiplies by.

    It is computed in float64 and rounded once. Channels beyond co are zeros.
    """

    def __init__(self, m: int) -> None:
        self.m = m

    def shape(self, *sizes: int) -> tuple[int, ...]:
        """Return the shape for `co` channels out and `ci` in."""
        co, ci, *_ = sizes
        return -(-co // CHANNELS), (self.m + 2) ** 2, ci, CHANNELS

    def pack(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Return `weight`, of shape (co, ci, 3, 3), transformed."""
        co, ci = weight.shape[:2]
        g = as_array(transforms(self.m).weight)
        packed = aligned_zeros(self.shape(co, ci), weight.dtype)
        for block, channels in enumerate(packed):
            some = weight[block * CHANNELS : (block + 1) * CHANNELS].astype(np.float64)
            made = np.einsum("ir,ocrs,js->ijco", g, some, g, optimize=True)
            channels[..., : len(some)] = made.reshape(-1, ci, len(some))
        return packed

    def unpack(self, packed: NDArray[Any], *sizes: int) -> NDArray[Any]:
        """Return the weight of shape (co, ci, 3, 3) that was packed, but for rounding."""
        co, ci, *_ = sizes
        inverse, t = as_array(transforms(self.m).inverse), self.m + 2
        places = packed.reshape(-1, t, t, ci, CHANNELS)
        taps: NDArray[Any] = np.einsum("ri,bijco,sj->bocrs", inverse, places, inverse, optimize=True)
        return np.ascontiguousarray(taps.reshape(-1, ci, TAPS, TAPS)[:co], packed.dtype)


def _with_roots(roots: list[Fraction]) -> list[Fraction]:
    """Return the coefficients, lowest first, of the monic polynomial with these roots."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [*coefficients, Fraction(0)]
        coefficients = [high - root * low for high, low in zip(shifted, scaled)]
    return coefficients
