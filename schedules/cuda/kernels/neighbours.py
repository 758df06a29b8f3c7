"""Four neighbours of a row of a 16-bit result, which leave together where rows allow it."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.words import c_call, do, pack, when

FOUR = 4  # 8 bytes

STORE_FOUR = """
__forceinline__ __device__ void store_four(void* memory, unsigned low, unsigned high) {
  *static_cast<uint2*>(memory) = uint2{low, high};
}
"""


def store_four(c: Any, n: Extent, row: Any, column: Any, values: list[Any]) -> None:
    """Store four values from `column` on, those of them that lie within rows of `n`."""
    with T.If(T.truncmod(n, FOUR) == 0):
        with T.Then():
            halves = [pack(c.dtype, *values[i : i + 2]) for i in (0, 2)]
            do(c_call("void", "store_four", c.ptr_to([row, column]), *halves, source=STORE_FOUR))
        with T.Else():
            for i in range(FOUR):
                with when(column + i < n):
                    T.buffer_store(c, T.Cast(c.dtype, values[i]), [row, column + i])
