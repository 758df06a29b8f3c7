"""Movement of elements between vectors, all in registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import lanes, registers


def transpose(rows: Any, width: int) -> Any:
    """Return registers that hold the columns of `rows`, `width` vectors of as many lanes.

    Each of log2(width) steps merges vector i with vector i + width / 2, lane by lane: the
    perfect shuffle (H. Stone, Parallel Processing with the Perfect Shuffle, 1971).
    """
    half, whole = width // 2, lanes(0, width)
    steps = width.bit_length() - 1
    for _ in range(steps):
        merged = registers((width, width), rows.dtype)
        for i in range(half):
            for j, pick in enumerate((range(half), range(half, width))):
                order = [tirx.const(lane, "int32") for x in pick for lane in (x, x + width)]
                value = tirx.Shuffle([rows[i, whole], rows[i + half, whole]], order)
                T.buffer_store(merged, value, [2 * i + j, whole])
        rows = merged
    return rows


def sums_of(rows: Any, width: int) -> Any:
    """Return a register (1, width) that holds in lane i the sum of the lanes of vector i of `rows`.

    The steps of `transpose`, but that each adds up the two vectors that it merges.
    """
    whole, count = lanes(0, width), width
    while count > 1:
        half = count // 2
        merged = registers((half, width), rows.dtype)
        for i in range(half):
            pair = [rows[i, whole], rows[i + half, whole]]
            parts = [
                tirx.Shuffle(pair, [tirx.const(lane, "int32") for x in pick for lane in (x, x + width)])
                for pick in (range(width // 2), range(width // 2, width))
            ]
            T.buffer_store(merged, parts[0] + parts[1], [i, whole])
        rows, count = merged, half
    return rows


def in_all_lanes(row: Any, width: int, combine: Callable[[tirx.Expr, tirx.Expr], tirx.Expr]) -> Any:
    """Return a register (1, width) whose lanes all hold what `combine` makes of all lanes of `row`."""
    whole, step = lanes(0, width), width // 2
    while step:
        turned = registers((1, width), row.dtype)
        order = [tirx.const((lane + step) % width, "int32") for lane in range(width)]
        value = combine(row[0, whole], tirx.Shuffle([row[0, whole]], order))
        T.buffer_store(turned, value, [0, whole])
        row, step = turned, step // 2
    return row
