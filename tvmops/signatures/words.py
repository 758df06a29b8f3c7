"""Weights as words of 32 bits: what instructions that multiply short values read.

A word holds neighbouring values of k for one column: four of int8, two of bfloat16. A row of
16 such words is one cache line; rows for all of k, the columns' panel, lie one after the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvmops.signatures.aligned import aligned_zeros
from tvmops.signatures.dtypes import bits_of

COLUMNS = 16  # of a panel
Array = NDArray[Any]


def in_a_word(dtype: str) -> int:
    """Return how many values of `dtype` a word holds."""
    return 32 // bits_of(dtype)


class Words:
    """b[k, n] as [ceil(n / 16)][ceil(k / w)][16 w], w values to a word, zeros beyond the edges.

    Panels of int8 end with one more row of words: the sums of the columns, which offsets of the
    other operand are multiplied by.
    """

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.each = in_a_word(dtype)
        self.has_sums = dtype == "int8"

    def shape(self, *sizes: int) -> tuple[int, ...]:
        k, n = sizes
        return -(-n // COLUMNS), -(-k // self.each) + self.has_sums, COLUMNS * self.each

    def pack(self, weight: Array) -> Array:
        """Return `weight`, of shape (k, n), packed; bfloat16 as its bits."""
        k, n = weight.shape
        panels, rows, _ = self.shape(k, n)
        rows -= self.has_sums
        padded = np.zeros((rows * self.each, panels * COLUMNS), weight.dtype)
        padded[:k, :n] = weight
        packed = aligned_zeros(self.shape(k, n), weight.dtype)
        words = padded.reshape(rows, self.each, panels, COLUMNS).transpose(2, 0, 3, 1)
        packed[:, :rows] = words.reshape(panels, rows, -1)
        if self.has_sums:
            sums = padded.sum(axis=0, dtype=np.int32)
            packed[:, rows] = sums.view(np.int8).reshape(panels, -1)
        return packed

    def unpack(self, packed: Array, *sizes: int) -> Array:
        """Return the weight of shape (k, n) that was packed."""
        k, n = sizes
        panels, rows, _ = self.shape(k, n)
        rows -= self.has_sums
        words = packed[:, :rows].reshape(panels, rows, COLUMNS, self.each)
        plain: Array = words.transpose(1, 3, 0, 2).reshape(rows * self.each, panels * COLUMNS)
        return plain[:k, :n]
