"""Dtypes by name, among them those that NumPy does not have.

Arrays of bfloat16 go to CPU kernels as their bits, in uint16; NumPy alone can then hold
them, and no other package is needed. Numbers of 8 bits are bits to any kernel, in uint8.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

BFLOAT16 = "bfloat16"
# Bits of the fraction, exponent of a subnormal number, the largest number and its bits (P. Micikevicius
# et al., FP8 Formats for Deep Learning, 2022). e4m3 has no infinity, and one NaN of either sign.
_FLOAT8 = {"float8_e4m3fn": (3, -6, 0x7E), "float8_e5m2": (2, -14, 0x7B)}
FLOAT8 = tuple(_FLOAT8)


def bits_of(dtype: str) -> int:
    """Return how many bits an element takes."""
    return 8 * np.dtype(stored(dtype)).itemsize


def stored(dtype: str) -> str:
    """Return the NumPy dtype that holds `dtype` in memory."""
    return "uint16" if dtype == BFLOAT16 else "uint8" if dtype in _FLOAT8 else dtype


def encode(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return `values` as an array of `stored(dtype)`, rounded to nearest, ties to even.

    To 8 bits, what is larger than their largest number becomes that.
    """
    if dtype in _FLOAT8:
        return _encode_float8(values, dtype)
    if dtype != BFLOAT16:
        return values.astype(dtype)
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    quiet = (bits >> 16) | 0x40  # rounding the bits of a NaN could make it infinite
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def decode(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return what the elements of `array`, of `stored(dtype)`, stand for."""
    if dtype in _FLOAT8:
        values: NDArray[Any] = _float8_values(dtype)[array]
        return values
    if dtype != BFLOAT16:
        return array
    return (array.astype(np.uint32) << 16).view(np.float32)


@cache
def _float8_values(dtype: str) -> NDArray[Any]:
    """Return the number that each byte stands for."""
    fraction_bits, least, largest = _FLOAT8[dtype]
    bits = np.arange(128)
    fraction, exponent = bits % (1 << fraction_bits), bits >> fraction_bits
    normal = np.where(exponent > 0, 1 << fraction_bits, 0)
    values = (normal + fraction) * np.exp2(np.maximum(exponent, 1) - 1.0 + least - fraction_bits)
    values[largest + 1 :] = np.nan
    if dtype == "float8_e5m2":
        values[largest + 1] = np.inf
    return np.concatenate([values, -values]).astype(np.float32)


def _encode_float8(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    fraction_bits, least, largest = _FLOAT8[dtype]
    positive = _float8_values(dtype)[: largest + 1].astype(np.float64)
    size = np.minimum(np.abs(np.nan_to_num(values.astype(np.float64))), positive[-1])
    exponent = np.maximum(np.frexp(size)[1] - 1, least)
    unit = np.exp2((exponent - fraction_bits).astype(np.float64))
    bits = np.searchsorted(positive, np.minimum(np.rint(size / unit) * unit, positive[-1]))
    bits = np.where(np.isnan(values), 0x7F, bits)
    return (bits | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)
