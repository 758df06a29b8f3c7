"""A factor of a small product whose rows begin anywhere: aligned copies, which are shifted in shared memory.

Of each row come the aligned pieces that hold it, one more than it has. When they are there, a warp makes
rows that begin with a piece out of them, in place.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.pad_rows import SHIFTED
from tvmops.schedules.cuda.kernels.whole_operand import PART_AT, WholeOperand
from tvmops.schedules.cuda.pieces import PIECE
from tvmops.schedules.cuda.words import Scalar, c_call, do, when

# The aligned piece that holds element `at`. That within which the array ends is read by element: nothing else
# is behind it that may be read. What is beyond becomes 0.
COPY_AROUND = """
__forceinline__ __device__ void copy_around(unsigned to, const void* from, int at, int size, int there) {
  const int first = at & ~7, left = there ? size - first : 0;
  const unsigned short* begin = static_cast<const unsigned short*>(from) + (left > 0 ? first : 0);
  if (left <= 0 || left >= 8) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::
                 "r"(to), "l"(begin), "r"(left > 0 ? 16 : 0) : "memory");
    return;
  }
#pragma unroll 1
  for (int i = 0; i < 8; ++i) {
    const unsigned short element = i < left ? begin[i] : 0;
    asm volatile("st.shared.u16 [%0], %1;" :: "r"(to + 2 * i), "h"(element) : "memory");
  }
}
"""
# Rows of pieces of which the first begins at element `first` of the array, `length` further in each row;
# from the `valid`-th element on they become 0.
_SHIFT_ROWS = """
__forceinline__ __device__ void shift_rows(void* tile, int rows, int pieces, int pitch, int first, int length,
                                           int valid, int warp, int warps, int lane) {
  const int side = 32 / pieces, own = lane / pieces, piece = lane % pieces;
#pragma unroll
  for (int begin = 0; begin < rows; begin += side * warps) {
    const int row = begin + warp * side + own;
    const bool is_one = own < side && row < rows;
    uint4* at = reinterpret_cast<uint4*>(static_cast<char*>(tile) + row * pitch) + piece;
    uint4 x, y;
    if (is_one) x = at[0], y = at[1];
    __syncwarp();
    if (is_one) {
      uint4 v = shifted(x, y, first + row * length & 7);
      const int left = valid - 8 * piece;
      if (valid < 8 * pieces) {
        v.x = left > 1 ? v.x : left > 0 ? v.x & 0xFFFF : 0, v.y = left > 3 ? v.y : left > 2 ? v.y & 0xFFFF : 0;
        v.z = left > 5 ? v.z : left > 4 ? v.z & 0xFFFF : 0, v.w = left > 7 ? v.w : left > 6 ? v.w & 0xFFFF : 0;
      }
      at[0] = v;
    }
  }
}
"""


class Around(WholeOperand):
    """Copies of all pieces that hold some of a row."""

    def begin(self, thread: Any, threads: int) -> None:
        super().begin(thread, threads)
        self.lead = Scalar(T.Cast("int32", T.truncmod(self.first, PIECE)))()
        start = self.first - T.Cast("int64", self.lead)
        self.start = T.Bind(c_call("handle", "part_at", self.array.data, start, source=PART_AT))
        most = tirx.const(2 * int(self.extent) * int(self.k), "int64")
        rest = self.size - start
        self.rest = Scalar(T.Cast("int32", T.if_then_else(rest < most, rest, most)))()

    def copy(self, stage: Any, origin: Any, k_origin: int) -> None:
        for row, column, is_one in self._parts(PIECE, k_origin):
            to = self.part_address(stage, row, column)
            y, x = (origin + row, k_origin + column) if self.k_inner else (k_origin + row, origin + column)
            within = y < (self.extent if self.k_inner else self.k)
            at = self.lead + y * self.row_length + x
            with when(tirx.And(is_one, within) if self.k_inner else is_one):
                there = T.Cast("int32", within)
                do(c_call("void", "copy_around", to, self.start, at, self.rest, there, source=COPY_AROUND))

    def _across(self, width: int, depth: int) -> int:
        return super()._across(width, depth) + 1


class ShiftedOperand(Around):
    """A tile whose rows have room for one more piece."""

    shifts = True

    def shift(self, stage: int, origin: Any, k_origin: int, warp: Any, lane: Any) -> None:
        """Let a warp make its rows begin with a piece; all copies of the chunk have come."""
        depth, warps = self._depth(k_origin), self.threads // 32
        rows, pieces = (self.block if self.k_inner else depth), WholeOperand._across(self, PIECE, depth)
        y, x = (origin, k_origin) if self.k_inner else (k_origin, origin)
        valid = min(depth, int(self.k) - k_origin) if self.k_inner else PIECE * pieces
        tile = self.ring.ptr_to([stage * self.stage_bytes])
        first = self.lead + y * self.row_length + x
        shape = (rows, pieces, self.pitch, first, self.row_length, valid)
        do(c_call("void", "shift_rows", tile, *shape, warp, warps, lane, source=SHIFTED + _SHIFT_ROWS))
