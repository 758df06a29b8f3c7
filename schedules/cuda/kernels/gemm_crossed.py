"""A second factor of floats whose rows lie across k: warps turn it on its way from memory to stages that lie along it.

A thread reads a column of each 32, four rows of k, and writes them as 16 bytes of a row of its stage: a warp
reads whole lines, and writes to places that meet no bank twice. What it has read of one stage waits in
registers until that is free, and what is next is read as soon as they are.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.kernels.gemm_arrays import Arrays
from tvmops.schedules.cuda.kernels.gemm_operands import ROW_BYTES, Operand
from tvmops.schedules.cuda.kernels.gemm_walk import Walk
from tvmops.schedules.cuda.pieces import place_words
from tvmops.schedules.cuda.words import c_call, do

_COLUMNS, _ROWS = 32, 4  # of what a warp reads at a time
_PIECES = 8  # of 16 bytes, of a row of a stage
_READ = """
__forceinline__ __device__ unsigned read_past_l1(const float* from) {
  unsigned word;
  asm volatile("ld.global.nc.L1::no_allocate.b32 %0, [%1];" : "=r"(word) : "l"(from));
  return word;
}
"""
_FETCH = """
__forceinline__ __device__ void fetch_across_{columns}(unsigned* words, const void* array, int item, int row, int rows,
                                                     int column, int columns, int lane) {{
  asm volatile("" : "+r"(row), "+r"(column));  // addresses are computed here, not kept for all steps
  const float* from = static_cast<const float*>(array) + (static_cast<long long>(item) * rows + row) * columns + column + lane;
  if (row + 4 <= rows && column + {columns} <= columns) {{
#pragma unroll
    for (int j = 0; j < 4; ++j) {{
#pragma unroll
      for (int i = 0; i < {columns} / 32; ++i) words[i * 4 + j] = read_past_l1(from + 32 * i);
      from += columns;
    }}
  }} else {{
#pragma unroll
    for (int j = 0; j < 4; ++j) {{
#pragma unroll
      for (int i = 0; i < {columns} / 32; ++i)
        words[i * 4 + j] = row + j < rows && column + lane + 32 * i < columns ? read_past_l1(from + 32 * i) : 0;
      from += columns;
    }}
  }}
}}
"""


class CrossedFloats(Operand):
    """How such a factor's tiles lie in shared memory: as if its rows lay along k."""

    def __init__(self, arrays_of: Arrays, name: str, size: int, tiles: Tiles) -> None:
        super().__init__(arrays_of, name, True, size, tiles)
        self.sizes = arrays_of.k, arrays_of.n
        self.groups = tiles.bk // 2 // (_ROWS * 4)  # of four rows of k, of a warp's part of a stage


class Turner:
    """The part of a thread of the warpgroup that turns them."""

    def __init__(self, of: CrossedFloats, array: Any, base: Any, walk: Walk, warp: Any, lane: Any) -> None:
        self.of, self.array, self.base, self.walk, self.warp, self.lane = of, array, base, walk, warp, lane
        self.words = T.alloc_local((of.groups * self._count,), "uint32")

    @property
    def _count(self) -> int:
        """Words of a group."""
        return self.of.size // _COLUMNS * _ROWS

    def fetch(self, step: Any, group: int) -> None:
        """Begin to read what is this thread's of a step along k."""
        k, n = self.of.sizes
        row = step * (self.of.bk // 2) + self._piece(group) * _ROWS
        to = T.address_of(self.words[group * self._count])
        place = (self.walk.item if self.of.has_items else 0, row, k, self.walk.left, n, self.lane)
        source = _READ + _FETCH.format(columns=self.of.size)
        do(c_call("void", f"fetch_across_{self.of.size}", to, self.array.data, *place, source=source))

    def put(self, stage: Any, group: int) -> None:
        """Write what was read to a stage."""
        piece = self._piece(group)
        column, inside = T.truncdiv(piece, _PIECES), T.truncmod(piece, _PIECES) ^ (self.lane % 8)
        at = stage * self.of.stage_bytes + column * (self.of.size * ROW_BYTES) + self.lane * ROW_BYTES + inside * 16
        for i in range(self.of.size // _COLUMNS):
            to = self.base + T.Cast("uint32", at + i * (_COLUMNS * ROW_BYTES))
            do(place_words(to, T.address_of(self.words[group * self._count + i * _ROWS])))

    def _piece(self, group: int) -> Any:
        """Return which four rows of k, of a stage, are a warp's."""
        return self.warp * self.of.groups + group

    # fmt: off
    @T.inline
    def begin(self):
        """Read the first step of a tile."""
        for group in T.unroll(self.of.groups):
            self.fetch(self.walk.first, group)

    @T.inline
    def turn(self, kt):
        """Write a step to its stage, and read the next one."""
        for group in T.unroll(self.of.groups):
            self.put(self.walk.stage, group)
            if kt + 1 < self.walk.steps:
                self.fetch(self.walk.first + kt + 1, group)
    # fmt: on
