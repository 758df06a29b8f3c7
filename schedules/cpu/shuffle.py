"""Movement of elements between vectors, all in registers."""

from __future__ import annotations

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
