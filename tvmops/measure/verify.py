"""Is a kernel right? Asked before any of its timings count. Needs NumPy alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def poison(output: Array) -> None:
    """Fill `output` with what no right kernel leaves behind: NaN, or the smallest integer."""
    output.fill(np.nan if np.issubdtype(output.dtype, np.floating) else np.iinfo(output.dtype).min)


def largest_error(output: Array, expected: NDArray[np.float64]) -> float:
    """Return the largest absolute difference.

    It is infinite where an element is NaN or infinite and the expected one is not the same.
    """
    with np.errstate(invalid="ignore"):
        difference = np.abs(output - expected)
        largest = float(difference.max(initial=0.0))
    if np.isfinite(largest):
        return largest
    same = (output == expected) | (np.isnan(output) & np.isnan(expected))
    return float(np.where(same, 0.0, np.where(np.isfinite(difference), difference, np.inf)).max())


def verify(
    kernel: Callable[..., Any],
    inputs: Sequence[Array],
    pristine: Sequence[Array],
    output: Array,
    expected: NDArray[np.float64],
    tolerance: float,
) -> tuple[float, str]:
    """Run `kernel(*inputs, output)` once and say what is wrong with it.

    Returns
    -------
    error, complaint
        The largest absolute error, and "" where the kernel is right: every element written
        and within `tolerance` of `expected`, every input as it was.
    """
    poison(output)
    kernel(*inputs, output)
    error = largest_error(output, expected)
    for index, (array, original) in enumerate(zip(inputs, pristine)):
        if not np.array_equal(array.view(np.uint8), original.view(np.uint8)):
            return error, f"wrote to input {index}"
    if not np.isfinite(error):
        wrong = int((~np.isfinite(output)).sum()) if np.issubdtype(output.dtype, np.floating) else 0
        return error, f"left {wrong} elements unwritten or not finite"
    if error > tolerance:
        return error, f"differs by {error:.3g}; at most {tolerance:.3g} is allowed"
    return error, ""
