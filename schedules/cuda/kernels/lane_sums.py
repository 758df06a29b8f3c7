"""Sums of floats that the lanes of a warp have parts of, added up by shuffles."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.words import Scalar, shuffle_xor

_LANES = 32


def add_lanes(sums: Any, count: int, apart: int = 1) -> None:
    """Add up the first `count` sums of lanes that are `apart` or multiples of it; each lane has all."""
    while apart < _LANES:
        for i in range(count):
            T.buffer_store(sums, sums[i] + shuffle_xor(sums[i], apart), [i])
        apart *= 2


def share_out(sums: Any, count: int, lane: Any) -> Any:
    """Add up `count` sums, a multiple of 32, of all lanes; each lane is left with its share of them.

    Returns
    -------
    first
        Which of them is now the lane's first.
    """
    first: Any = 0
    for bit in (16, 8, 4, 2, 1):
        count //= 2
        upper = T.Bind((lane & bit) != 0)
        for i in range(count):
            kept = Scalar(tirx.Select(upper, sums[i + count], sums[i]), "float32")
            given = Scalar(tirx.Select(upper, sums[i], sums[i + count]), "float32")
            T.buffer_store(sums, kept() + shuffle_xor(given(), bit), [i])
        first = first + T.Cast("int32", upper) * count
    return T.Bind(first)
