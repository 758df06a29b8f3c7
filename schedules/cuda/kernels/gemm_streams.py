"""Sums of tiles whose k several blocks share (stream-K): left in a workspace, and added in a fixed order.

A thread of one block holds the sums of the same places as its counterpart in another: it leaves them
for that one alone, neighbours in memory next to neighbours in the warp. Warps tell each other by flags.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T
from tvm.tirx.script.builder import ir as builder

from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.kernels.gemm_results import Consumer, Results
from tvmops.schedules.cuda.words import c_call, do, tie, wait_for_kernels_before, when

LEAVING = 5  # steps that take as long as leaving the sums of a tile
_CLEARERS = 8  # warps
_CLEAR = """
__forceinline__ __device__ void clear_flags(void* flags, int count, int thread, int threads) {
  for (int at = thread; at < count; at += threads) static_cast<unsigned*>(flags)[at] = 0;
}
"""
_LEAVE = """
__forceinline__ __device__ void leave_sums_{count}(void* workspace, int place, int thread, const float* sums) {{
  float4* to = static_cast<float4*>(workspace) + {count} / 4 * 128ll * place + thread;
#pragma unroll
  for (int i = 0; i < {count}; i += 4)
    to[32 * i] = make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]);
}}
"""
_ADD = """
__forceinline__ __device__ void add_left_{count}(float* sums, const void* workspace, int place, int thread) {{
  const float4* from = static_cast<const float4*>(workspace) + {count} / 4 * 128ll * place + thread;
#pragma unroll
  for (int i = 0; i < {count}; i += 4) {{
    const float4 x = __ldcg(from + 32 * i);
    sums[i] += x.x, sums[i + 1] += x.y, sums[i + 2] += x.z, sums[i + 3] += x.w;
    if (i % 32 == 28) asm volatile("" ::: "memory");  // no more loads at a time than there are registers
  }}
}}
"""
_RAISE = """
__forceinline__ __device__ void raise_flag(void* flags, int number) {
  __syncwarp();
  if ((threadIdx.x & 31) == 0)
    asm volatile("st.release.gpu.global.u32 [%0], 1;" :: "l"(static_cast<unsigned*>(flags) + number) : "memory");
}
"""
_AWAIT = """
__forceinline__ __device__ void await_flag(const void* flags, int number) {
  unsigned raised;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                 : "=r"(raised) : "l"(static_cast<const unsigned*>(flags) + number) : "memory");
  } while (raised == 0);
}
"""


_MEET = """
__forceinline__ __device__ void meet_{count}_{parts}(float* sums, const void* workspace, long long at, int pitch,
                                                   int left) {{
  const float4* from = static_cast<const float4*>(workspace) + at;
  float4 x[{parts}][{count} / 4];
#pragma unroll
  for (int part = 0; part < {parts}; ++part)
#pragma unroll
    for (int i = 0; i < {count} / 4; ++i)
      x[part][i] = 4 * i < left ? __ldcg(from + part * pitch + 128 * i) : make_float4(0, 0, 0, 0);
#pragma unroll
  for (int i = 0; i < {count} / 4; ++i) {{
    float4 y = x[0][i];
#pragma unroll
    for (int part = 1; part < {parts}; ++part)
      y.x += x[part][i].x, y.y += x[part][i].y, y.z += x[part][i].z, y.w += x[part][i].w;
    sums[4 * i] = y.x, sums[4 * i + 1] = y.y, sums[4 * i + 2] = y.z, sums[4 * i + 3] = y.w;
  }}
}}
"""
_AGAIN = """
__forceinline__ __device__ int taken_again(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
"""


def again(value: Any) -> Any:
    """Return `value` such that what is computed from it is computed here, and not kept from before."""
    return c_call("int32", "taken_again", value, source=_AGAIN)


class SharedSums:
    """Sums of one thread that go to another block, or come from others."""

    def __init__(self, arrays: dict[str, Any], tiles: Tiles, at: Consumer, rank: Any) -> None:
        self.workspace, self.tiles, self.at, self.rank = arrays["workspace"], tiles, at, rank
        self.count = tiles.blocks_a_group * tiles.bn // 2

    def leave(self, place: Any) -> None:
        """Leave this thread's sums at one of as many places as there are blocks."""
        tie(self.at.acc, self.count)
        place, first = self._of_group(place), T.address_of(self.at.acc[0])
        source = _LEAVE.format(count=self.count)
        do(c_call("void", f"leave_sums_{self.count}", self.workspace.data, place, self._thread, first, source=source))
        do(c_call("void", "raise_flag", self._flags, place * 4 + self.at.warp, source=_RAISE))

    def add(self, place: Any) -> None:
        """Add what was left there, when it is."""
        place, first = self._of_group(place), T.address_of(self.at.acc[0])
        source = _ADD.format(count=self.count)
        do(c_call("void", "await_flag", self._flags, place * 4 + self.at.warp, source=_AWAIT))
        tie(self.at.acc, self.count)
        do(c_call("void", f"add_left_{self.count}", first, self.workspace.data, place, self._thread, source=source))

    def meet(self, results: Results, tile: Any, part: Any) -> None:
        """Add up what all parts of a tile left, a stretch of each thread's sums for each, and store that."""
        parts, at, n = self.tiles.streams, self.at, results.n
        count = -(-self.count // 4 // parts) * 4  # whole fours, fewer for the last
        place, pitch = self._of_group(tile * parts), self._of_group(1) - self._of_group(0)
        for other in range(parts):
            number = (place + other * pitch) * 4 + at.warp
            do(c_call("void", "await_flag", self._flags, number, source=_AWAIT))
        sums = builder.alloc_local((count,), "float32")
        begin = T.Cast("int64", place) * (self.count * 32) + part * (count * 32) + self._thread
        left = T.min(self.count - part * count, count)
        source = _MEET.format(count=count, parts=parts)
        first, memory = T.address_of(sums[0]), self.workspace.data
        do(c_call("void", f"meet_{count}_{parts}", first, memory, begin, pitch * (self.count * 32), left, source=source))
        for i in range(0, count, 4):
            of_thread = part * (count // 4) + i // 4
            block = T.truncdiv(of_thread, self.tiles.bn // 8)
            column = at.tn * self.tiles.bn + T.truncmod(of_thread, self.tiles.bn // 8) * 8 + at.lane % 4 * 2
            row = at.tm * self.tiles.bm + (at.group * self.tiles.blocks_a_group + block) * 64 + self._row
            for half in range(2):
                with when((i < left) & (row + 8 * half < results.m) & (column < n)):
                    results.finish_two(sums, i + 2 * half, row + 8 * half, column)

    @property
    def _row(self) -> Any:
        return self.at.warp * 16 + T.truncdiv(self.at.lane, 4)

    @property
    def _thread(self) -> Any:
        return self.at.warp * 32 + self.at.lane

    @property
    def _flags(self) -> Any:
        return T.address_of(self.workspace[self.tiles.left_bytes])

    def _of_group(self, place: Any) -> Any:
        return (place * self.tiles.cluster + self.rank) * self.tiles.consumers + self.at.group


def clear_flags(arrays: dict[str, Any], tiles: Tiles) -> None:
    """Emit the kernel that takes all flags down, when the product before is done with them."""
    with builder.attr(0, "tirx.device_entry", True):
        builder.cta_id([1])
        warp, lane = builder.warp_id([_CLEARERS]), builder.lane_id([32])
        thread = builder.Bind(warp * 32 + lane)
        wait_for_kernels_before()
        flags = builder.address_of(arrays["workspace"][tiles.left_bytes])
        do(c_call("void", "clear_flags", flags, tiles.flags, thread, _CLEARERS * 32, source=_CLEAR))
