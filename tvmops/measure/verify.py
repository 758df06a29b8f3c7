"""Is a result right? Asked before any timing of a kernel counts. Needs NumPy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvmops.signatures.dtypes import encode, stored

Array = NDArray[Any]

_CHUNK = 1 << 15  # elements; what is computed from them stays in the caches


def poisoned(expected: NDArray[np.float64], dtype: str) -> Array:
    """Return an array that is right nowhere, so that elements which a kernel leaves out show.

    It holds NaN, or 0 where NaN is right; of integers the right value with its top bit turned.
    """
    if stored(dtype) != dtype:
        return encode(poisoned(expected, "float32"), dtype)
    kind = np.dtype(dtype)
    wrong: Array
    if kind.kind == "b":
        wrong = expected == 0
    elif kind.kind in "iu":
        bits = expected.astype(kind).view(f"u{kind.itemsize}")
        wrong = (bits ^ bits.dtype.type(1 << 8 * kind.itemsize - 1)).view(kind)
    else:
        wrong = np.where(np.isnan(expected), 0.0, np.nan).astype(kind)
    return wrong


def largest_error(output: Array, expected: NDArray[np.float64]) -> float:
    """Return the largest absolute difference.

    It is infinite where an element is NaN or infinite and the expected one is not the same.
    """
    computed, right = output.reshape(-1), expected.reshape(-1)
    largest = 0.0
    with np.errstate(invalid="ignore"):
        for start in range(0, right.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            largest = max(largest, _largest(computed[part], right[part]))
    return largest


def _largest(output: Array, expected: NDArray[np.float64]) -> float:
    difference = np.abs(output - expected)
    largest = float(difference.max())
    if np.isfinite(largest):
        return largest
    same = (output == expected) | (np.isnan(output) & np.isnan(expected))
    return float(np.where(same, 0.0, np.where(np.isfinite(difference), difference, np.inf)).max())


def complain(output: Array, expected: NDArray[np.float64], tolerance: float, error: float) -> str:
    """Say what is wrong with `output`, whose largest error is `error`; "" if nothing is."""
    if error <= tolerance:
        return ""
    if np.isfinite(error):
        return f"differs by {error:.3g}; at most {tolerance:.3g} is allowed"
    off = np.isfinite(output) != np.isfinite(expected)
    return f"left {int(off.sum())} of {off.size} elements unwritten or not finite"
