"""Copies of operands whose rows begin anywhere, of which only a part is made before the product.

Before it, what the first tiles of all blocks need: about half of each operand, where tiles fill four waves. The
rest is copied beside these tiles by warps of the product's blocks that would be idle: memory has little to
do then. They take tasks of a few rows by tickets, so none waits for a block that is not there yet, b before
a, and count what they did. Who loads a later tile waits until all it needs is counted.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T
from tvm.tirx.script.builder import ir as builder

from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.kernels.gemm_arrays import COUNTED_BYTES, Arrays
from tvmops.schedules.cuda.kernels.gemm_walk import Walk
from tvmops.schedules.cuda.kernels.pad_rows import READ_ONCE, SHIFTED
from tvmops.schedules.cuda.words import c_call, do, wait_for_kernels_before

_WARPS = 8
_TASK_ROWS = 4
# Rows from `top` on, of each the vectors of 16 bytes from `first` on: a warp takes each `step`-th row.
_COPY_WINDOW = """
struct Window {
  char* to;
  const void* from;
  int rows, columns, top, height, first, end;
};
__forceinline__ __device__ void copy_window(Window w, int begin, int bottom, int step, int lane) {
  const int pitch = (w.columns + 63) / 64 * 8, last = w.end - 1;
  const long long size = static_cast<long long>(w.rows) * w.columns;
#pragma unroll 1
  for (int row = begin; row < bottom; row += step) {
    const long long at = static_cast<long long>(row) * w.columns;
    const uint4* from = static_cast<const uint4*>(w.from) + at / 8;
    uint4* to = reinterpret_cast<uint4*>(w.to) + static_cast<long long>(row) * pitch;
    const unsigned shift = at % 8;
    if (at + 8 * w.end + 8 > size) {  // what is behind it may not be there
#pragma unroll 1
      for (int v = w.first + lane; v < w.end; v += 32)
        to[v] = by_element(w.from, at + 8 * v, size);
      continue;
    }
#pragma unroll 1
    for (int v = w.first + lane; v < w.end; v += 128) {
      uint4 x[4], y[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        x[i] = read_once(from + min(v + 32 * i, last)), y[i] = read_once(from + min(v + 32 * i, last) + 1);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (v + 32 * i <= last) to[v + 32 * i] = shifted(x[i], y[i], shift);
    }
  }
}
"""
# What blocks' first tiles need: bands of rows, and of the columns those that come first.
_WINDOWS = """
__forceinline__ __device__ int first_rows(int m, int n) {{
  const int band = {group} * ((n + {bn} - 1) / {bn});
  return min(m, ({workers} + band - 1) / band * {group} * {height});
}}
__forceinline__ __device__ int first_columns(int m, int n) {{
  const int rows = min({group}, (m + {height} - 1) / {height});
  return min(n, ({workers} + rows - 1) / rows * {bn});
}}
__forceinline__ __device__ Window window_of(char* to, const void* from, int rows, int columns, int across,
                                            int begin, int end) {{
  Window w = {{to, from, rows, columns, 0, rows, 0, (columns + 7) / 8}};
  if (across)
    w.first = begin / 8, w.end = begin / 8 + (end - begin + 7) / 8;
  else
    w.top = begin, w.height = end - begin;
  return w;
}}
__forceinline__ __device__ char* copy_of_b(void* workspace, int m, int k) {{
  const int rows = {a_across} ? k : m, columns = {a_across} ? m : k;
  return static_cast<char*>(workspace) + {counted} + ({a_there} ? static_cast<long long>(rows) * ((columns + 63) / 64 * 128) : 0);
}}
__forceinline__ __device__ Window window_of_a(void* workspace, const void* a, int m, int k, int begin, int end) {{
  char* to = static_cast<char*>(workspace) + {counted};
  return window_of(to, a, {a_across} ? k : m, {a_across} ? m : k, {a_across}, begin, {a_there} ? end : begin);
}}
__forceinline__ __device__ Window window_of_b(void* workspace, const void* b, int m, int n, int k, int begin, int end) {{
  char* to = copy_of_b(workspace, m, k);
  return window_of(to, b, {b_across} ? k : n, {b_across} ? n : k, {b_across}, begin, {b_there} ? end : begin);
}}
__forceinline__ __device__ int tasks_of(Window w) {{
  return w.first < w.end ? (w.height + {task} - 1) / {task} : 0;
}}
"""
_COPY_FIRST = """
__forceinline__ __device__ void copy_first(void* workspace, const void* a, const void* b, int m, int n, int k,
                                           int warp, int warps, int lane) {
  if (warp == 0 && lane < 3) static_cast<unsigned*>(workspace)[lane] = 0;
  const Window of_a = window_of_a(workspace, a, m, k, 0, first_rows(m, n));
  const Window of_b = window_of_b(workspace, b, m, n, k, 0, first_columns(m, n));
  copy_window(of_a, warp, of_a.height, warps, lane);
  copy_window(of_b, (warp + warps - of_a.height % warps) % warps, of_b.height, warps, lane);
}
"""
_WORDS = """
__forceinline__ __device__ int take_ticket(unsigned* counter) {
  int ticket = (threadIdx.x & 31) == 0 ? static_cast<int>(atomicAdd(counter, 1u)) : 0;
  return __shfl_sync(0xFFFFFFFFu, ticket, 0);
}
__forceinline__ __device__ void count_copied(unsigned* counter) {
  asm volatile("fence.proxy.async.global;" ::: "memory");
  __syncwarp();
  if ((threadIdx.x & 31) == 0)
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" :: "l"(counter) : "memory");
}
__forceinline__ __device__ void await_count(const unsigned* counter, int count) {
  unsigned found;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(found) : "l"(counter) : "memory");
  } while (static_cast<int>(found) < count);
  asm volatile("fence.proxy.async.global;" ::: "memory");
}
"""
_COPY_REST = """
__forceinline__ __device__ void copy_rest(void* workspace, const void* a, const void* b, int m, int n, int k, int lane) {{
  unsigned* words = static_cast<unsigned*>(workspace);
  const Window of_a = window_of_a(workspace, a, m, k, first_rows(m, n), m);
  const Window of_b = window_of_b(workspace, b, m, n, k, first_columns(m, n), n);
  const int before = tasks_of(of_b), all = before + tasks_of(of_a);
  for (int ticket = take_ticket(words); ticket < all; ticket = take_ticket(words)) {{
    const bool is_b = ticket < before;
    const Window w = is_b ? of_b : of_a;
    const int row = w.top + (is_b ? ticket : ticket - before) * {task};
    copy_window(w, row, min(row + {task}, w.top + w.height), 1, lane);
    count_copied(words + (is_b ? 2 : 1));
  }}
}}
__forceinline__ __device__ void await_rest(void* workspace, int bottom, int m, int n, int k) {{
  unsigned* words = static_cast<unsigned*>(workspace);
  const int rows = first_rows(m, n);
  await_count(words + 2, tasks_of(window_of_b(workspace, nullptr, m, n, k, first_columns(m, n), n)));
  if (bottom > rows) await_count(words + 1, tasks_of(window_of_a(workspace, nullptr, m, k, rows, m)));
}}
"""
# One function for all: TVM emits the text of each.
_LATE_COPIES = """
__forceinline__ __device__ void late_copies(int step, void* workspace, const void* a, const void* b, int m, int n,
                                            int k, int x, int y, int lane) {
  if (step == 0) copy_first(workspace, a, b, m, n, k, x, y, lane);
  if (step == 1) copy_rest(workspace, a, b, m, n, k, lane);
  if (step == 2) await_rest(workspace, x, m, n, k);
}
"""
_FIRST, _REST, _AWAIT = range(3)


class LateCopies:
    """The copies of a product's operands, in the order in which its tiles need them."""

    def __init__(self, arrays_of: Arrays, arrays: dict[str, Any], tiles: Tiles) -> None:
        self.arrays_of, self.arrays, self.tiles = arrays_of, arrays, tiles
        form = arrays_of.form
        constants = {
            "a_there": int("a" in form.pads),
            "b_there": int("b" in form.pads),
            "a_across": int(form.trans_a),
            "b_across": int(not form.trans_b),
            "bn": tiles.bn,
            "height": tiles.bm * tiles.cluster,
            "group": tiles.group,
            "workers": tiles.blocks // tiles.cluster,
            "task": _TASK_ROWS,
            "counted": COUNTED_BYTES,
        }
        windows = _WINDOWS.format(**constants) + _COPY_FIRST
        self._source = SHIFTED + READ_ONCE + _COPY_WINDOW + windows + _WORDS + _COPY_REST.format(**constants)
        self._source += _LATE_COPIES

    def make_copies(self, arrays: dict[str, Any], blocks: int, chained: bool) -> int:
        """Emit the kernel of `blocks` blocks that copies what is needed first; return how many copies that are."""
        with builder.attr(0, "tirx.device_entry", True):
            block = builder.cta_id([blocks])
            warp, lane = builder.warp_id([_WARPS]), builder.lane_id([32])
            if chained:
                wait_for_kernels_before()
            number, count = builder.Bind(block * _WARPS + warp), blocks * _WARPS
            self._call(_FIRST, number, count, lane)
        return len(self.arrays_of.copies)

    def copy_rest(self, lane: Any) -> None:
        """Copy, as a warp of many, what is left."""
        self._call(_REST, 0, 0, lane)

    # fmt: off
    @T.inline
    def wait(self, walk):
        """Wait for what a tile needs, unless it is the block's first."""
        if walk.tile >= self.tiles.blocks // self.tiles.cluster:
            self._wait(walk)
    # fmt: on

    def _wait(self, walk: Walk) -> None:
        self._call(_AWAIT, walk.top + self.tiles.bm, 0, 0)

    def _call(self, step: int, x: Any, y: Any, lane: Any) -> None:
        a, b, workspace = (self.arrays[name].data for name in ("a", "b", "workspace"))
        of = self.arrays_of
        arguments = (step, workspace, a, b, of.m, of.n, of.k, x, y, lane)
        do(c_call("void", "late_copies", *arguments, source=self._source))
