"""Sums of tiles whose k several blocks share (stream-K): left in a workspace, and added in a fixed order.

A thread of one block holds the sums of the same places as its counterpart in another: it leaves them
for that one alone, neighbours in memory next to neighbours in the warp. Warps tell each other by flags.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.kernels.gemm_results import Consumer, Results
from tvmops.schedules.cuda.words import c_call, do, tie, when

LEAVING = 5  # steps that take as long as leaving the sums of a tile
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
# A raised flag is a number of 64 bits that memory holds by chance in no lifetime; who waited for it takes it
# down. So nothing needs to be cleared before a call.
_RAISE = """
__forceinline__ __device__ void raise_flags(void* flags, int number, int readers, int self) {
  __syncwarp();
  const int reader = threadIdx.x & 31;
  if (reader < readers && reader != self)
    asm volatile("st.release.gpu.global.u64 [%0], 0x9d3f6c21b75ae084;" ::
                 "l"(static_cast<unsigned long long*>(flags) + number * readers + reader) : "memory");
}
"""
_AWAIT = """
__forceinline__ __device__ void await_flag(void* flags, int number) {
  unsigned long long *at = static_cast<unsigned long long*>(flags) + number, raised;
  do {
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(raised) : "l"(at) : "memory");
  } while (raised != 0x9d3f6c21b75ae084ull);
  __syncwarp();
  if ((threadIdx.x & 31) == 0) *at = 0;
}
"""
_SHARE = """
__forceinline__ __device__ void share_sums_{fours}_{parts}(void* workspace, long long at, int part, const float* sums) {{
  float4* to = static_cast<float4*>(workspace) + at;
#pragma unroll
  for (int i = 0; i < {fours}; ++i)
    if (i / {own} != part) to[128 * i] = make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
}}
"""
_TAKE = """
__forceinline__ __device__ void take_sums_{part}_of_{parts}_{begin}_{end}(float* sums, const void* workspace, long long at, int pitch) {{
  const float4* from = static_cast<const float4*>(workspace) + at;
  float4 x[{parts}][{end} - {begin}];
#pragma unroll
  for (int part = 0; part < {parts}; ++part)
#pragma unroll
    for (int i = {begin}; i < {end}; ++i)
      if (part != {part}) x[part][i - {begin}] = __ldcg(from + static_cast<long long>(part) * pitch + 128 * i);
#pragma unroll
  for (int part = 0; part < {parts}; ++part)
#pragma unroll
    for (int i = {begin}; i < {end}; ++i)
      if (part != {part}) {{
        const float4 y = x[part][i - {begin}];
        sums[4 * i] += y.x, sums[4 * i + 1] += y.y, sums[4 * i + 2] += y.z, sums[4 * i + 3] += y.w;
      }}
}}
"""
_ONCE = 16  # vectors that a thread reads at a time
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
        do(
            c_call(
                "void",
                f"leave_sums_{self.count}",
                self.workspace.data,
                place,
                self._thread,
                first,
                source=source,
            )
        )
        self._raise(place, -1)

    def add(self, place: Any) -> None:
        """Add what was left there, when it is."""
        place, first = self._of_group(place), T.address_of(self.at.acc[0])
        source = _ADD.format(count=self.count)
        self._await(place, 0)
        tie(self.at.acc, self.count)
        do(
            c_call(
                "void",
                f"add_left_{self.count}",
                first,
                self.workspace.data,
                place,
                self._thread,
                source=source,
            )
        )

    @T.inline
    def add_all(self, walk):
        """Add what others left of a tile that is shared evenly, in the order of its steps."""
        walk.at = T.truncdiv(walk.tile * walk.behind, walk.share)
        while walk.at * walk.share < (walk.tile + 1) * walk.behind:
            self.add(walk.tile + walk.at)
            walk.at = walk.at + 1

    def meet(self, results: Results, tile: Any, part: Any) -> None:
        """Finish the `part`-th stretch of each thread's sums, when others have left what they have of it.

        Of the other stretches, each other part's, this one leaves what it has.
        """
        parts, fours = self.tiles.streams, self.count // 4
        own = -(-fours // parts)  # fewer for the last
        tie(self.at.acc, self.count)
        first = self._of_group(tile * parts)
        pitch = self._of_group(1) - self._of_group(0)
        place = first + part * pitch
        source = _SHARE.format(fours=fours, parts=parts, own=own)
        sums = T.address_of(self.at.acc[0])
        call = f"share_sums_{fours}_{parts}", self.workspace.data, self._vector(place), part, sums
        do(c_call("void", *call, source=source))
        self._raise(place, part)
        for number in range(parts):
            with when(part == number):
                for other in range(parts):
                    if other != number:
                        self._await(first + other * pitch, number)
                self._finish(
                    results, first, pitch, number, range(number * own, min(number * own + own, fours))
                )

    def _finish(self, results: Results, first: Any, pitch: Any, part: int, stretch: range) -> None:
        """Add to a stretch of vectors of four sums what all parts but `part` left, and store that."""
        parts = self.tiles.streams
        once = max(1, _ONCE // (parts - 1))
        for begin in stretch[::once]:
            end = min(begin + once, stretch.stop)
            name = f"take_sums_{part}_of_{parts}_{begin}_{end}"
            source = _TAKE.format(part=part, parts=parts, begin=begin, end=end)
            call = (
                T.address_of(self.at.acc[0]),
                self.workspace.data,
                self._vector(first),
                pitch * (self.count * 32),
            )
            do(c_call("void", name, *call, source=source))
            for number in range(begin, end):
                self._store_four(results, number)

    def _store_four(self, results: Results, number: int) -> None:
        """Store four of a thread's sums, the `number`-th of all: two neighbours in each of two rows."""
        tiles, where = self.tiles, self.at
        block, run = divmod(number, tiles.bn // 8)
        column = where.left + run * 8 + where.lane % 4 * 2
        top = where.top + (where.group * tiles.blocks_a_group + block) * 64
        for half in range(2):
            row = top + where.warp * 16 + T.truncdiv(where.lane, 4) + 8 * half
            with when((row < results.m) & (column < results.n)):
                results.finish_two(where.acc, 4 * number + 2 * half, row, column)

    def _raise(self, place: Any, reader: Any) -> None:
        """Tell all who wait for this warp's sums, but the `reader`-th, that they are there."""
        number, readers = place * 4 + self.at.warp, self.tiles.streams
        do(c_call("void", "raise_flags", self._flags, number, readers, reader, source=_RAISE))

    def _await(self, place: Any, reader: int) -> None:
        """Wait, as the `reader`-th, until the sums of this warp's counterpart are there."""
        number = (place * 4 + self.at.warp) * self.tiles.streams + reader
        do(c_call("void", "await_flag", self._flags, number, source=_AWAIT))

    def _vector(self, place: Any) -> Any:
        """Return this thread's first of the vectors that are left at a place."""
        return T.Cast("int64", place) * (self.count * 32) + self._thread

    @property
    def _thread(self) -> Any:
        return self.at.warp * 32 + self.at.lane

    @property
    def _flags(self) -> Any:
        return T.address_of(self.workspace[self.tiles.left_bytes])

    def _of_group(self, place: Any) -> Any:
        return (place * self.tiles.sharers + self.rank) * self.tiles.consumers + self.at.group
