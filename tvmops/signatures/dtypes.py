"""Dtypes by name, among them those that NumPy does not have.

Arrays of bfloat16 go to CPU kernels as their bits, in uint16; NumPy alone can then hold
them, and no other package is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BFLOAT16 = "bfloat16"


def bits_of(dtype: str) -> int:
    """Return how many bits an element takes."""
    return 16 if dtype == BFLOAT16 else 8 * np.dtype(dtype).itemsize


def stored(dtype: str) -> str:
    """Return the NumPy dtype that holds `dtype` in memory."""
    return "uint16" if dtype == BFLOAT16 else dtype


def encode(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return `values` as an array of `stored(dtype)`, rounded to nearest, ties to even."""
    if dtype != BFLOAT16:
        return values.astype(dtype)
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    quiet = (bits >> 16) | 0x40  # rounding the bits of a NaN could make it infinite
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def decode(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return what the elements of `array`, of `stored(dtype)`, stand for."""
    if dtype != BFLOAT16:
        return array
    return (array.astype(np.uint32) << 16).view(np.float32)
