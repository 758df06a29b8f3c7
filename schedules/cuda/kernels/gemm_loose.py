"""`gemm_swapped` where rows begin anywhere: warps load what the copy engine can't.

The copy engine takes rows, and begins inside them, at multiples of 16 bytes alone. So warps of
their own make each 16 bytes of a stage from the two aligned vectors that hold them, shifted, on
the way through their registers: b is read once and written nowhere but to shared memory.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.gemm_swapped import CONSUMERS, SwappedKernel
from tvmops.schedules.cuda.kernels.pad_rows import SHIFTED, VECTOR
from tvmops.schedules.cuda.words import Position, c_call, do, let_next_kernel_begin, ptx, when

A_WARPS, B_WARPS = 2, 8  # that load
MOST_VECTORS = 4  # that a thread has on their way

# A thread's part of `rows` rows of `columns` elements, to panels of swizzled rows of 64; what lies beyond
# the array is 0. All its loads are on their way together. What is behind the last whole vector of an array
# is read by element: nothing else is there. The last three arguments are constants.
_PLACE_ROWS = """
__forceinline__ __device__ void place_piece_of(void* stage, uint4 v, int at, int rows, int pieces) {
  const int own = at / pieces, place = at % pieces;
  char* to = static_cast<char*>(stage) + place / 8 * (rows * 128) + own * 128 + (place % 8 ^ own % 8) * 16;
  *reinterpret_cast<uint4*>(to) = v;
}
__forceinline__ __device__ void place_rows(void* stage, const void* array, int row, int column, int row_count,
                                           int column_count, int thread, int rows, int columns, int threads) {
  const int pieces = columns / 8, all = rows * pieces, last = (all - 1) / threads * threads + thread;
  const int inside = column + thread % pieces * 8;  // as far in each row
  const long long size = static_cast<long long>(row_count) * column_count;
  const long long first = static_cast<long long>(row + thread / pieces) * column_count + inside;
  const long long apart = static_cast<long long>(threads / pieces) * column_count;
  const bool whole = all % threads == 0 && row + last / pieces < row_count && inside + 8 <= column_count;
  if (whole && first + last / threads * apart + 16 <= size) {
    uint4 x[4], y[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i * threads >= all) break;
      const uint4* from = static_cast<const uint4*>(array) + (first + i * apart) / 8;
      x[i] = __ldg(from), y[i] = __ldg(from + 1);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i * threads >= all) break;
      place_piece_of(stage, shifted(x[i], y[i], (first + i * apart) % 8), i * threads + thread, rows, pieces);
    }
    return;
  }
  uint4 v[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = i * threads + thread;
    const long long begin = first + i * apart;
    v[i] = uint4{0, 0, 0, 0};
    if (at < all && row + at / pieces < row_count && inside < column_count) {
      const uint4* from = static_cast<const uint4*>(array) + begin / 8;
      v[i] = begin + 16 <= size ? shifted(__ldg(from), __ldg(from + 1), begin % 8) : by_element(array, begin, size);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    keep_first(v[i], column_count - inside);
    if (i * threads + thread < all) place_piece_of(stage, v[i], i * threads + thread, rows, pieces);
  }
}
"""
_KEEP_FIRST = """
__forceinline__ __device__ void keep_first(uint4& v, int count) {
  if (count >= 8) return;
  unsigned* words[4] = {&v.x, &v.y, &v.z, &v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i)
    *words[i] = 2 * i + 1 < count ? *words[i] : 2 * i < count ? *words[i] & 0xFFFF : 0;
}
"""


class LooseKernel(SwappedKernel):
    loaders = A_WARPS + B_WARPS
    beside = 2

    def _maps(self) -> None:
        """The copy engine has nothing to do."""

    def _load_all(self) -> None:
        t, first = self.tiles, CONSUMERS
        if t.chained == 1:
            let_next_kernel_begin()
        if t.chained:
            ptx("griddepcontrol.wait")
        with T.If(self.warp < first + A_WARPS):
            with T.Then():
                self._fill((self.warp - first) * 32 + self.lane, self._place_a)
            with T.Else():
                self._fill((self.warp - (first + A_WARPS)) * 32 + self.lane, self._place_b)
        if t.chained == 2:
            let_next_kernel_begin()

    def _fill(self, thread: Any, place: Any) -> None:
        at = Position(self.tiles.stages)
        with T.serial(self.count) as step:
            self.ring.empty.wait(at.stage, at.phase ^ 1)
            place(at.stage, (self.first + step) * self.tiles.bk, thread)
            ptx("fence.proxy.async.shared::cta")
            do(T.cuda.warp_sync())
            with when(self.lane == 0):
                self.ring.full.arrive(at.stage)
            at.advance()

    def _place_a(self, stage: Any, k: Any, thread: Any) -> None:
        p, t = self.product, self.tiles
        to = self.a_stages.ptr_to([stage, 0, 0, 0])
        self._place((t.rows, t.bk), A_WARPS * 32, to, self.a, self.row, k, p.m, p.k, thread)

    def _place_b(self, stage: Any, k: Any, thread: Any) -> None:
        p, t = self.product, self.tiles
        to = self.b_stages.ptr_to([stage, 0, 0, 0])
        if p.trans_b:
            self._place((t.lines, t.bk), B_WARPS * 32, to, self.b, self.column, k, p.n, p.k, thread)
        else:
            self._place((t.bk, t.lines), B_WARPS * 32, to, self.b, k, self.column, p.k, p.n, thread)

    def _place(self, shape: tuple[int, int], threads: int, to: Any, array: Any, *place: Any) -> None:
        rows, columns = shape
        source = SHIFTED + _KEEP_FIRST + _PLACE_ROWS
        do(c_call("void", "place_rows", to, array.data, *place, rows, columns, threads, source=source))


def vectors_of(rows: int, lines: int, depth: int) -> int:
    """Return how many vectors of 16 bytes a thread has on their way, at most."""
    a, b = (size * depth // VECTOR for size in (rows, lines))
    return max(-(-a // (A_WARPS * 32)), -(-b // (B_WARPS * 32)))
