"""Copies of operands whose rows begin anywhere, made beside the product that reads them.

Warps of a block that multiplies, which would be idle, make the copies of `pad_rows` while the product goes
on: memory, which it leaves alone, then works for them. They take tasks in the order in which the first tiles
need them, stretch of k after stretch, and count what is done of each; who loads a tile waits for the counts
of its stretch. Tasks are taken by tickets: whichever blocks there are make all copies, so none waits for a
block that is not there yet.

A task is eight rows of up to `MOST` vectors of 16 bytes. They come to a ring of a few rows in shared memory
(cp.async), and are shifted on their way to the copy.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T
from tvm.tirx.script.builder import ir as builder

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.gemm_tiles import COPIERS, COPY_BYTES, COPY_ROWS, COPY_SLOTS, MOST_COPIED, Tiles
from tvmops.schedules.cuda.kernels.gemm_arrays import Arrays, counters_of, end_of
from tvmops.schedules.cuda.kernels.gemm_walk import Walk, variable
from tvmops.schedules.cuda.kernels.gemm_stream_k import again
from tvmops.schedules.cuda.kernels.pad_rows import SHIFTED
from tvmops.schedules.cuda.words import c_call, do, wait_for_kernels_before

_CLEARERS = 8  # warps
_CLEAR = """
__forceinline__ __device__ void clear_counters(void* counters, int count, int thread, int threads) {
  for (int at = thread; at < count; at += threads) static_cast<unsigned*>(counters)[at] = 0;
}
"""
# Under other names: a kernel beside this one may hold the same functions.
_SHIFTED_HERE = SHIFTED.replace("shifted", "shifted_ahead").replace("by_element", "element_ahead")
# Words between threads of the machine.
_WORDS = f"""
__forceinline__ __device__ int take_ticket(unsigned* counter) {{
  return (threadIdx.x & 31) == 0 ? atomicAdd(counter, 1u) : 0;
}}
__forceinline__ __device__ int ticket_of_all(int ticket) {{
  return __shfl_sync(0xFFFFFFFFu, ticket, 0);
}}
__forceinline__ __device__ void count_copied(unsigned* counter) {{
  asm volatile("fence.proxy.async.global;" ::: "memory");
  __syncwarp();
  if ((threadIdx.x & 31) == 0)
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" :: "l"(counter) : "memory");
}}
__forceinline__ __device__ void fetch_vector(void* to, const void* from) {{
  unsigned long long policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::
               "r"(static_cast<unsigned>(__cvta_generic_to_shared(to))), "l"(from), "l"(policy) : "memory");
}}
__forceinline__ __device__ void commit_fetched() {{
  asm volatile("cp.async.commit_group;" ::: "memory");
}}
__forceinline__ __device__ void await_fetched() {{
  asm volatile("cp.async.wait_group {COPY_SLOTS - 1};" ::: "memory");
  __syncwarp();
}}
"""
# Of the slot of a row: where it goes, how many vectors, shifted how far, and which counter it completes.
_COPY = """
__forceinline__ __device__ void place_fetched(const char* slot, unsigned* counters, int lane) {{
  const uint4 head = *reinterpret_cast<const uint4*>(slot);
  const uint4* from = reinterpret_cast<const uint4*>(slot) + 1;
  uint4* to = reinterpret_cast<uint4*>(head.x | static_cast<unsigned long long>(head.y) << 32);
  const int vectors = head.z & 0xFFFF;
#pragma unroll
  for (int i = 0; i < {most}; i += 32)
    if (i + lane < vectors) to[i + lane] = shifted_ahead(from[i + lane], from[i + lane + 1], head.z >> 16);
  if (head.w) count_copied(counters + head.w);
  __syncwarp();
}}
__forceinline__ __device__ void copy_ahead(void* slots, void* words, void* a_to, const void* a, void* b_to,
                                           const void* b, int m, int n, int k, int early, int depth,
                                           int a_width, int b_width, int lane) {{
  unsigned* counters = static_cast<unsigned*>(words);
  const int stretches = (k + depth - 1) / depth;
  const int a_parts = {a_across} ? (m + a_width - 1) / a_width : (m + {bm} - 1) / {bm};
  const int b_parts = {b_across} ? (n + b_width - 1) / b_width : (n + {bn} - 1) / {bn};
  const int a_units = {a_there} ? {a_across} ? a_parts * (depth / {rows}) : (m + {rows} - 1) / {rows} : 0;
  const int b_units = {b_there} ? {b_across} ? b_parts * (depth / {rows}) : (n + {rows} - 1) / {rows} : 0;
  const int b_early = min(b_units, {b_across} ? (early + b_width - 1) / b_width * (depth / {rows}) : (early + {rows} - 1) / {rows});
  const int first = stretches * (a_units + b_early), all = stretches * (a_units + b_units);
  const int b_counters = 2 + ({a_there} ? stretches * a_parts : 0);
  const void* from = a;
  char* to = static_cast<char*>(a_to);
  long long begin = 0, size = 0;
  int columns = 0, rows = 0, vectors = 0, counter = 0, behind = 0;
  bool more = true;
  int upcoming = take_ticket(counters);
  for (int step = 0; behind < {slots}; ++step) {{
    while (rows <= 0 && more) {{
      const int ticket = ticket_of_all(upcoming), late = ticket >= first;
      if (ticket >= all) {{
        more = false;
        break;
      }}
      const int each = late ? b_units - b_early : a_units + b_early, number = late ? ticket - first : ticket, stretch = number / each;
      int unit = number - stretch * each + (late ? a_units + b_early : 0);
      upcoming = take_ticket(counters);
      const bool is_a = unit < a_units;
      unit -= is_a ? 0 : a_units;
      const bool across = is_a ? {a_across} : {b_across};
      const int lines = is_a ? m : n, parts = is_a ? a_parts : b_parts, width = is_a ? a_width : b_width;
      const int part = across ? unit / (depth / {rows}) : unit * {rows} / (is_a ? {bm} : {bn});
      const int row = across ? stretch * depth + (unit - part * (depth / {rows})) * {rows} : unit * {rows};
      const int column = across ? part * width : stretch * depth;
      columns = across ? lines : k;
      rows = min({rows}, (across ? min(k, (stretch + 1) * depth) : lines) - row);
      vectors = (min(width, columns - column) + 7) / 8;
      counter = (is_a ? 2 : b_counters) + stretch * parts + part;
      from = is_a ? a : b;
      begin = static_cast<long long>(row) * columns + column;
      size = static_cast<long long>(across ? k : lines) * columns;
      to = static_cast<char*>(is_a ? a_to : b_to) + (static_cast<long long>(row) * ((columns + 63) / 64) * 64 + column) * 2;
    }}
    char* slot = static_cast<char*>(slots) + step % {slots} * {slot_bytes};
    uint4 head = {{0, 0, 0, 0}};
    if (rows > 0) {{
      const bool whole = begin + 8 * vectors + 8 <= size;
      const unsigned long long place = reinterpret_cast<unsigned long long>(to);
      head.x = static_cast<unsigned>(place), head.y = static_cast<unsigned>(place >> 32);
      head.z = whole ? vectors | static_cast<unsigned>(begin & 7) << 16 : 0, head.w = rows == 1 ? counter : 0;
      if (whole)
        for (int i = lane; i <= vectors; i += 32)
          fetch_vector(slot + 16 + 16 * i, static_cast<const uint4*>(from) + begin / 8 + i);
      else
        for (int i = lane; i < vectors; i += 32)
          reinterpret_cast<uint4*>(to)[i] = element_ahead(from, begin + 8 * i, size);
      begin += columns, to += (columns + 63) / 64 * 128, --rows;
    }} else {{
      ++behind;
    }}
    if (lane == 0) *reinterpret_cast<uint4*>(slot) = head;
    commit_fetched();
    if (step >= {slots} - 1) {{
      await_fetched();
      place_fetched(static_cast<const char*>(slots) + (step + 1) % {slots} * {slot_bytes}, counters, lane);
    }}
  }}
  count_copied(counters + 1);
}}
"""
_AWAIT = """
__forceinline__ __device__ void await_count(const unsigned* counter, int count) {
  unsigned found;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(found) : "l"(counter) : "memory");
  } while (static_cast<int>(found) < count);
}
__forceinline__ __device__ int is_counted(const unsigned* counter, int count) {
  unsigned found;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(found) : "l"(counter) : "memory");
  return static_cast<int>(found) >= count;
}
__forceinline__ __device__ void order_copied() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}
__forceinline__ __device__ void await_parts(const unsigned* counters, int across, int size, int tile, int height,
                                            int width, int rows) {
  if (tile * height >= size) return;
  const int end = min(tile * height + height, size);
  if (across)
    for (int part = tile * height / width; part * width < end; ++part) await_count(counters + part, rows);
  else
    await_count(counters + tile, (end - tile * height + TASK - 1) / TASK);
}
"""
_AWAIT_TILE = """
__forceinline__ __device__ int await_copied(const void* words, int tm, int tn, int m, int n, int k, int first,
                                            int depth, int a_width, int b_width, int warps) {{
  const unsigned* counters = static_cast<const unsigned*>(words);
  const int known = is_counted(counters + 1, warps);
  if (!known) {{
    const int stretches = (k + depth - 1) / depth, stretch = first / depth;
    const int a_parts = {a_across} ? (m + a_width - 1) / a_width : (m + {bm} - 1) / {bm};
    const int b_parts = {b_across} ? (n + b_width - 1) / b_width : (n + {bn} - 1) / {bn};
    const int rows = (min(depth, k - first) + {rows} - 1) / {rows};
    if ({a_there}) await_parts(counters + 2 + stretch * a_parts, {a_across}, m, tm, {bm}, a_width, rows);
    if ({b_there})
      await_parts(counters + 2 + ({a_there} ? stretches * a_parts : 0) + stretch * b_parts, {b_across}, n, tn, {bn}, b_width, rows);
  }}
  order_copied();
  return known;
}}
"""


class CopyAhead:
    """The copies of a product's operands, made beside it."""

    def __init__(self, arrays_of: Arrays, arrays: dict[str, Any], tiles: Tiles) -> None:
        self.arrays_of, self.arrays, self.tiles = arrays_of, arrays, tiles
        self.depth: Any = None  # of k, that is copied and waited for together
        self.widths: tuple[Any, Any] = (None, None)  # of a row of a, of b, copied at a time

    def begin(self) -> None:
        """Find out how rows are cut."""
        m, n, k = _sizes_here(self.arrays_of)
        form = self.arrays_of.form
        self.depth = variable("depth", stretch_of(k))
        a_width = variable("a_width", stretch_of(m)) if form.trans_a else self.depth
        b_width = self.depth if form.trans_b else variable("b_width", stretch_of(n))
        self.widths = (a_width, b_width)

    def copy(self, slots: Any, columns: Any, warp: Any, lane: Any) -> None:
        """Copy, as one warp of many, what no other does; first what up to `columns` of c need."""
        self.begin()
        a, b = (self.arrays[name].data for name in "ab")
        a_to, b_to = (self._memory(name) for name in "ab")
        place = (*self._sizes, columns, self.depth, *self.widths, lane)
        source = _SHIFTED_HERE + _WORDS + _COPY.format(**self._constants)
        ring = slots.ptr_to([warp, 0, 0])
        do(c_call("void", "copy_ahead", ring, self._counters, a_to, a, b_to, b, *place, source=source))

    def begin_waiting(self) -> None:
        self.begin()
        self.known = variable("known", 0)  # whether all is there

    # fmt: off
    @T.inline
    def wait(self, walk, step):
        """Wait for what the tile takes of k from this step on."""
        if (self.known == 0) & (T.truncmod(step * self.tiles.bk, self.depth) == 0):
            self.known = self._await(walk, step * self.tiles.bk)
    # fmt: on

    def _await(self, walk: Walk, first: Any) -> Any:
        place = (walk.tm, walk.tn, *self._sizes, first, self.depth, *self.widths, walk.blocks * COPIERS)
        source = _AWAIT.replace("TASK", str(COPY_ROWS)) + _AWAIT_TILE.format(**self._constants)
        return c_call("int32", "await_copied", self._counters, *place, source=source)

    @property
    def _sizes(self) -> tuple[Extent, Extent, Extent]:
        return self.arrays_of.m, self.arrays_of.n, self.arrays_of.k

    @property
    def _counters(self) -> Any:
        return counters_in(self.arrays_of, self.arrays)

    def _memory(self, name: str) -> Any:
        copy = self.arrays_of.copies_of(*_sizes_here(self.arrays_of)).get(name)
        return builder.address_of(self.arrays["workspace"][copy.offset if copy else 0])

    @property
    def _constants(self) -> dict[str, int]:
        form = self.arrays_of.form
        return {
            "a_there": int("a" in form.ahead),
            "b_there": int("b" in form.ahead),
            "a_across": int(form.trans_a),
            "b_across": int(not form.trans_b),
            "bm": self.tiles.bm,
            "bn": self.tiles.bn,
            "rows": COPY_ROWS,
            "most": MOST_COPIED,
            "slots": COPY_SLOTS,
            "slot_bytes": COPY_BYTES,
        }


def stretch_of(size: Any) -> Any:
    """Return how many elements of a row of `size` are copied together: rows are cut evenly, into whole lines."""
    vectors = T.truncdiv(size + 7, 8)
    count = T.truncdiv(vectors + (MOST_COPIED - 1), MOST_COPIED)
    return T.truncdiv(T.truncdiv(vectors + (count - 1), count) + 7, 8) * 64


def counters_in(arrays_of: Arrays, arrays: dict[str, Any]) -> Any:
    """Return the address of the counters."""
    return builder.address_of(arrays["workspace"][end_of(arrays_of.copies_of(*_sizes_here(arrays_of)))])


def _sizes_here(arrays_of: Arrays) -> tuple[Any, Any, Any]:
    """Return the sizes such that what is computed from them is computed here, and not passed by the launch."""
    return again(arrays_of.m), again(arrays_of.n), again(arrays_of.k)


def clear_counters(arrays_of: Arrays, arrays: dict[str, Any]) -> int:
    """Emit the kernel that sets all counters to 0, when the product before is done with them."""
    with builder.attr(0, "tirx.device_entry", True):
        builder.cta_id([1])
        warp, lane = builder.warp_id([_CLEARERS]), builder.lane_id([32])
        thread = builder.Bind(warp * 32 + lane)
        wait_for_kernels_before()
        counters = counters_in(arrays_of, arrays)
        count = T.Cast("int32", counters_of(*_sizes_here(arrays_of)))
        do(c_call("void", "clear_counters", counters, count, thread, _CLEARERS * 32, source=_CLEAR))
    return 1
