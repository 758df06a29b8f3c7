"""Copies of matrices whose rows begin anywhere, with rows that the bulk copy engine takes.

Rows of 16-bit elements become rows of whole lines of 128 bytes, in a workspace, one matrix behind
the other: the engine could take rows of any multiple of 16 bytes, but would read two lines for each
of a tile. What lies between the rows is never read. A thread makes 16 bytes from the two aligned
vectors that hold them, shifted: any shape is copied at the speed of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.words import c_call, do, wait_for_kernels_before

VECTOR, LINE = 8, 64  # elements: 16 bytes, 128 bytes
_WARPS = 8

# 16 bytes that begin within the first of two vectors; the same at the end of an array.
SHIFTED = """
__forceinline__ __device__ uint4 shifted(uint4 x, uint4 y, unsigned shift) {
  unsigned w[8] = {x.x, x.y, x.z, x.w, y.x, y.y, y.z, y.w};
#pragma unroll
  for (int i = 0; i < 6; ++i) w[i] = shift & 4 ? w[i + 2] : w[i];
#pragma unroll
  for (int i = 0; i < 5; ++i) w[i] = shift & 2 ? w[i + 1] : w[i];
  uint4 v;
  v.x = __funnelshift_r(w[0], w[1], 16 * (shift & 1)), v.y = __funnelshift_r(w[1], w[2], 16 * (shift & 1));
  v.z = __funnelshift_r(w[2], w[3], 16 * (shift & 1)), v.w = __funnelshift_r(w[3], w[4], 16 * (shift & 1));
  return v;
}
__forceinline__ __device__ uint4 by_element(const void* from, long long begin, long long size) {
  unsigned short e[8];
#pragma unroll
  for (int i = 0; i < 8; ++i)
    e[i] = begin + i < size ? __ldg(static_cast<const unsigned short*>(from) + begin + i) : 0;
  uint4 v;
  v.x = e[0] | e[1] << 16, v.y = e[2] | e[3] << 16, v.z = e[4] | e[5] << 16, v.w = e[6] | e[7] << 16;
  return v;
}
"""
# What is read once leaves L2 first.
READ_ONCE = """
__forceinline__ __device__ uint4 read_once(const uint4* from) {
  unsigned long long policy;
  uint4 v;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("ld.global.nc.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;" :
      "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from), "l"(policy));
  return v;
}
"""
# All threads take vectors next to each other: memory is read and written in order, which counts for more than
# loads of one thread that are on their way together. What is behind the last whole vector of an array is read by
# element: nothing else is there.
_PAD_ROWS = """
__forceinline__ __device__ void pad_rows(void* to, const void* from, int rows, int columns, int thread,
                                         int threads) {
  const unsigned vectors = (columns + 7) / 8, pitch = (columns + 63) / 64 * 8, all = rows * vectors;
  const long long size = static_cast<long long>(rows) * columns;
  for (unsigned at = thread; at < all; at += threads) {
    const unsigned row = at / vectors, place = at - row * vectors;
    const long long begin = static_cast<long long>(row) * columns + 8 * place;
    const uint4* whole = static_cast<const uint4*>(from) + begin / 8;
    static_cast<uint4*>(to)[row * pitch + place] = begin + 16 <= size
        ? shifted(__ldg(whole), __ldg(whole + 1), begin % 8)
        : by_element(from, begin, size);
  }
}
"""


@dataclass(frozen=True)
class Padded:
    """A copy in the workspace: of `rows` rows of `columns` elements, from byte `offset` on."""

    rows: Extent
    columns: Extent
    offset: Any = 0

    @property
    def pitch(self) -> Any:
        """Elements from a row to the next."""
        return T.truncdiv(self.columns + (LINE - 1), LINE) * LINE

    @property
    def end(self) -> Any:
        """The byte behind it."""
        return self.offset + T.Cast("int64", self.rows) * T.Cast("int64", self.pitch * 2)


def pad_rows(
    workspace: Any, copies: Sequence[tuple[Any, Padded]], blocks: int, chained: bool, once: bool = False
) -> None:
    """Emit a kernel of `blocks` blocks that makes copies of arrays, each with its `Padded`.

    With `once` the cache keeps the copies rather than the arrays.
    """
    source = READ_ONCE + _PAD_ROWS.replace("__ldg(whole", "read_once(whole") if once else _PAD_ROWS
    with T.attr(0, "tirx.device_entry", True):
        block = T.cta_id([blocks])
        warp, lane = T.warp_id([_WARPS]), T.lane_id([32])
        thread = T.Bind((block * _WARPS + warp) * 32 + lane)
        if chained:
            wait_for_kernels_before()
        for array, copy in copies:
            to = T.address_of(workspace[copy.offset])
            threads = blocks * _WARPS * 32
            do(
                c_call(
                    "void", "pad_rows", to, array.data, copy.rows, copy.columns, thread, threads,
                    source=SHIFTED + source,
                )
            )  # fmt: skip
