"""Copies of operands whose rows begin anywhere, of which only a part is made before the product.

Before it, what the first tiles of all blocks need: about half of each operand, where tiles fill four waves. The
rest is copied beside these tiles by warps of the product's blocks that would be idle: memory has little to
do then. They take tasks of a few rows by tickets, so none waits for a block that is not there yet, part after
part as tiles need them, b before a, and count what they did. Who loads a later tile waits until its parts
are counted.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T
from tvm.tirx.script.builder import ir as builder

from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.kernels.gemm_arrays import COUNTED_BYTES, MOST_PARTS, Arrays
from tvmops.schedules.cuda.kernels.gemm_walk import Walk
from tvmops.schedules.cuda.kernels.pad_rows import READ_ONCE, SHIFTED
from tvmops.schedules.cuda.words import c_call, do, wait_for_kernels_before

_WARPS = 8
_TASK_ROWS = 4
# Of rows, the vectors of 16 bytes from `first` on: a warp takes each `step`-th row.
_COPY_WINDOW = """
struct Window {
  char* to;
  const void* from;
  int rows, columns, first, end;
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
# Tiles take an operand part by part: a by bands of rows of c, b by as many columns as the first tiles of all
# blocks need. Rows along k, or pieces of rows across it, of a part are tasks by fours.
_PARTS = """
struct Parts {{
  char* to;
  const void* from;
  int lines, k, size, across;
}};
__forceinline__ __device__ Parts parts_of_a(void* workspace, const void* a, int m, int n, int k) {{
  const int band = {group} * ((n + {bn} - 1) / {bn});
  const int size = ({workers} + band - 1) / band * {group} * {height};
  return {{static_cast<char*>(workspace) + {counted}, a, m, k, {a_there} ? min(size, m) : m, {a_across}}};
}}
__forceinline__ __device__ Parts parts_of_b(void* workspace, const void* b, int m, int n, int k) {{
  const int rows = min({group}, (m + {height} - 1) / {height}), size = ({workers} + rows - 1) / rows * {bn};
  char* to = static_cast<char*>(workspace) + {counted};
  if ({a_there}) to += static_cast<long long>({a_across} ? k : m) * ((({a_across} ? m : k) + 63) / 64 * 128);
  return {{to, b, n, k, {b_there} ? min(size, n) : n, {b_across}}};
}}
__forceinline__ __device__ int tasks_of(Parts x, int part) {{
  return ((x.across ? x.k : min(x.size, x.lines - part * x.size)) + {task} - 1) / {task};
}}
__forceinline__ __device__ int late_tasks(Parts x) {{
  const int left = x.lines - x.size;
  return x.across ? (left + x.size - 1) / x.size * tasks_of(x, 0) : (left + {task} - 1) / {task};
}}
__forceinline__ __device__ void copy_rows(Parts x, int part, int begin, int bottom, int step, int lane) {{
  const int top = part * x.size, end = min(top + x.size, x.lines);
  Window w = {{x.to, x.from, x.lines, x.k, 0, (x.k + 7) / 8}};
  if (x.across) w = {{x.to, x.from, x.k, x.lines, top / 8, (end + 7) / 8}};
  const int above = x.across ? 0 : top;
  copy_window(w, above + begin, min(above + bottom, x.across ? x.k : end), step, lane);
}}
"""
_COPY_FIRST = """
__forceinline__ __device__ void copy_first(void* workspace, const void* a, const void* b, int m, int n, int k,
                                           int warp, int warps, int lane) {{
  if (warp == 0)
    for (int i = lane; i < {counted} / 4; i += 32) static_cast<unsigned*>(workspace)[i] = 0;
  const Parts of_a = parts_of_a(workspace, a, m, n, k), of_b = parts_of_b(workspace, b, m, n, k);
  const int rows = of_a.across ? k : of_a.size;
  if ({a_there}) copy_rows(of_a, 0, warp, rows, warps, lane);
  if ({b_there}) copy_rows(of_b, 0, (warp + warps - rows % warps) % warps, of_b.across ? k : of_b.size, warps, lane);
}}
"""
# Tickets of tasks, and counts of what is done of them.
_COUNTING = """
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
# The first word counts tickets, that of a part what is done of it; the first parts' are not used.
_COPY_REST = """
__forceinline__ __device__ void copy_rest(void* workspace, const void* a, const void* b, int m, int n, int k, int lane) {{
  unsigned* words = static_cast<unsigned*>(workspace);
  const Parts of_a = parts_of_a(workspace, a, m, n, k), of_b = parts_of_b(workspace, b, m, n, k);
  const int before = late_tasks(of_b), all = before + late_tasks(of_a);
#pragma unroll 1
  for (int ticket = take_ticket(words); ticket < all; ticket = take_ticket(words)) {{
    const bool is_b = ticket < before;
    const Parts x = is_b ? of_b : of_a;
    const int number = is_b ? ticket : ticket - before, each = tasks_of(x, 0), part = number / each + 1;
    const int begin = (number - (part - 1) * each) * {task};
    copy_rows(x, part, begin, begin + {task}, 1, lane);
    count_copied(words + (is_b ? 0 : {parts}) + part);
  }}
}}
__forceinline__ __device__ void await_part(const unsigned* words, Parts x, int line) {{
  const int part = min(line, x.lines - 1) / x.size;
  if (part > 0) await_count(words + part, tasks_of(x, part));
}}
__forceinline__ __device__ void await_rest(void* workspace, int top, int column, int m, int n, int k) {{
  const unsigned* words = static_cast<unsigned*>(workspace);
  const Parts of_a = parts_of_a(workspace, nullptr, m, n, k);
  await_part(words, parts_of_b(workspace, nullptr, m, n, k), column);
  await_part(words + {parts}, of_a, top);
  await_part(words + {parts}, of_a, top + {bm} - 1);
}}
"""
# One function for all: TVM emits the text of each.
_LATE_COPIES = """
__forceinline__ __device__ void late_copies(int step, void* workspace, const void* a, const void* b, int m, int n,
                                            int k, int x, int y, int lane) {
  if (step == 0) copy_first(workspace, a, b, m, n, k, x, y, lane);
  if (step == 1) copy_rest(workspace, a, b, m, n, k, lane);
  if (step == 2) await_rest(workspace, x, y, m, n, k);
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
            "bm": tiles.bm,
            "bn": tiles.bn,
            "height": tiles.bm * tiles.cluster,
            "group": tiles.group,
            "workers": tiles.blocks // tiles.cluster,
            "task": _TASK_ROWS,
            "counted": COUNTED_BYTES,
            "parts": MOST_PARTS,
        }
        of_these = _PARTS + _COPY_FIRST, _COPY_REST
        parts, rest = (text.format(**constants) for text in of_these)
        self._source = SHIFTED + READ_ONCE + _COPY_WINDOW + parts + _COUNTING + rest + _LATE_COPIES

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
        self._call(_AWAIT, walk.top, walk.tn * self.tiles.bn, 0)

    def _call(self, step: int, x: Any, y: Any, lane: Any) -> None:
        a, b, workspace = (self.arrays[name].data for name in ("a", "b", "workspace"))
        of = self.arrays_of
        arguments = (step, workspace, a, b, of.m, of.n, of.k, x, y, lane)
        do(c_call("void", "late_copies", *arguments, source=self._source))
