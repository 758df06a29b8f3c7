"""Copies of operands whose rows begin anywhere, made beside a product of one wave by blocks that have no tile.

All tiles of such a product begin at once and need all rows, but not all of k. Before it, a share of k is copied
by the whole machine. The rest follows stretch by stretch: blocks that would be idle take tasks of it by tickets,
all their warps, and count what they did. Who loads a tile waits, stretch by stretch, until both operands'
parts are counted. The first blocks are those without a tile: each waits for blocks launched before it alone.
Where few blocks have none, all of k is copied before.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as builder

from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.kernels.gemm_arrays import COUNTED_BYTES, MOST_PARTS, Arrays
from tvmops.schedules.cuda.kernels.late_copies import COUNTING
from tvmops.schedules.cuda.kernels.pad_rows import READ_ONCE, SHIFTED
from tvmops.schedules.cuda.words import c_call, do, wait_for_kernels_before

_WARPS = 8
FEWEST_SPARE = 4  # blocks without a tile, for others to wait for
_FEWEST_STEPS = 4  # of a stretch
_TOGETHER = 8  # pieces whose loads are on their way together
# Of rows from `top` on, the vectors of 16 bytes from `first` on, as pieces of 32; a warp copies several.
_COPY_PIECES = """
struct Window {{
  char* to;
  const void* from;
  int rows, columns, top, bottom, first, end;
}};
__forceinline__ __device__ int pieces_of(Window w) {{
  return max(0, w.bottom - w.top) * ((max(0, w.end - w.first) + 31) / 32);
}}
__forceinline__ __device__ void copy_pieces(Window w, int begin, int lane) {{
  const int wide = (w.end - w.first + 31) / 32, pitch = (w.columns + 63) / 64 * 8, all = pieces_of(w);
  const long long size = static_cast<long long>(w.rows) * w.columns;
  uint4 x[{together}], y[{together}];
#pragma unroll
  for (int i = 0; i < {together}; ++i) {{
    const int piece = min(begin + i, all - 1), row = w.top + piece / wide;
    const int v = min(w.first + piece % wide * 32 + lane, w.end - 1);
    const long long at = static_cast<long long>(row) * w.columns + 8 * v;
    const uint4* from = static_cast<const uint4*>(w.from) + at / 8;
    const bool inside = at + 16 <= size;  // what is behind it may not be there
    x[i] = inside ? read_once(from) : by_element(w.from, at, size);
    y[i] = inside ? read_once(from + 1) : x[i];
  }}
#pragma unroll
  for (int i = 0; i < {together}; ++i) {{
    const int piece = begin + i, row = w.top + piece / wide, v = w.first + piece % wide * 32 + lane;
    const long long at = static_cast<long long>(row) * w.columns + 8 * v;
    if (piece < all && v < w.end)
      reinterpret_cast<uint4*>(w.to)[static_cast<long long>(row) * pitch + v] =
          shifted(x[i], y[i], at + 16 <= size ? at % 8 : 0);
  }}
}}
"""
# Stretch 0 is what is copied before the product, the others have as many steps along k each.
_STRETCHES = """
struct Stretches {{
  int first, each, depth;
}};
__forceinline__ __device__ Stretches stretches_of(int m, int n, int k) {{
  const int depth = (k + {step} - 1) / {step};
  const int count = ((m + {height} - 1) / {height}) * ((n + {width} - 1) / {width});
  const int first = {workers} - count >= {spare} ? max(1, depth * {share} / 100) : depth;
  return {{first, max({fewest}, (depth - first + {parts} - 2) / ({parts} - 1)), depth}};
}}
__forceinline__ __device__ Window window_of(char* to, const void* from, int lines, int k, bool across, Stretches s,
                                            int number) {{
  const int begin = {step} * (number == 0 ? 0 : s.first + (number - 1) * s.each);
  const int end = min(k, number == 0 ? {step} * s.first : begin + {step} * s.each);
  if (across) return {{to, from, k, lines, begin, end, 0, (lines + 7) / 8}};
  return {{to, from, lines, k, 0, lines, begin / 8, (end + 7) / 8}};
}}
__forceinline__ __device__ Window window_of_a(void* workspace, const void* a, int m, int k, Stretches s, int number) {{
  return window_of(static_cast<char*>(workspace) + {counted}, a, m, k, {a_across}, s, number);
}}
__forceinline__ __device__ Window window_of_b(void* workspace, const void* b, int m, int n, int k, Stretches s,
                                              int number) {{
  char* to = static_cast<char*>(workspace) + {counted};
  if ({a_there}) to += static_cast<long long>({a_across} ? k : m) * ((({a_across} ? m : k) + 63) / 64 * 128);
  return window_of(to, b, n, k, {b_across}, s, number);
}}
__forceinline__ __device__ int tasks_of(Window w) {{
  return (pieces_of(w) + {together} - 1) / {together};
}}
__forceinline__ __device__ void copy_task(Window of_a, Window of_b, int task, int lane) {{
  const int before = {a_there} ? tasks_of(of_a) : 0;
  if (task < before)
    copy_pieces(of_a, task * {together}, lane);
  else if ({b_there} && task - before < tasks_of(of_b))
    copy_pieces(of_b, (task - before) * {together}, lane);
}}
__forceinline__ __device__ int tasks_of_both(Window of_a, Window of_b) {{
  return ({a_there} ? tasks_of(of_a) : 0) + ({b_there} ? tasks_of(of_b) : 0);
}}
"""
_SPARE_COPIES = """
__forceinline__ __device__ void copy_first_share(void* workspace, const void* a, const void* b, int m, int n, int k,
                                           int warp, int warps, int lane) {{
  if (warp == 0)
    for (int i = lane; i < {counted} / 4; i += 32) static_cast<unsigned*>(workspace)[i] = 0;
  const Stretches s = stretches_of(m, n, k);
  const Window of_a = window_of_a(workspace, a, m, k, s, 0), of_b = window_of_b(workspace, b, m, n, k, s, 0);
  const int all = tasks_of_both(of_a, of_b);
#pragma unroll 1
  for (int task = warp; task < all; task += warps) copy_task(of_a, of_b, task, lane);
}}
__forceinline__ __device__ void copy_stretches(void* workspace, const void* a, const void* b, int m, int n, int k,
                                          int lane) {{
  unsigned* words = static_cast<unsigned*>(workspace);
  const Stretches s = stretches_of(m, n, k);
  const int each = tasks_of_both(window_of_a(workspace, a, m, k, s, 1), window_of_b(workspace, b, m, n, k, s, 1));
  const int stretches = (s.depth - s.first + s.each - 1) / s.each;
#pragma unroll 1
  for (int ticket = take_ticket(words); ticket < stretches * each; ticket = take_ticket(words)) {{
    const int number = ticket / each + 1;
    copy_task(window_of_a(workspace, a, m, k, s, number), window_of_b(workspace, b, m, n, k, s, number),
              ticket % each, lane);
    count_copied(words + number);
  }}
}}
__forceinline__ __device__ void await_step(void* workspace, int at, int m, int n, int k) {{
  const Stretches s = stretches_of(m, n, k);
  if (at < s.first || (at - s.first) % s.each) return;
  const int each = tasks_of_both(window_of_a(workspace, nullptr, m, k, s, 1),
                                 window_of_b(workspace, nullptr, m, n, k, s, 1));
  await_count(static_cast<unsigned*>(workspace) + 1 + (at - s.first) / s.each, each);
}}
// One function for all: TVM emits the text of each.
__forceinline__ __device__ void spare_copies(int what, void* workspace, const void* a, const void* b, int m, int n,
                                             int k, int x, int y, int lane) {{
  if (what == 0) copy_first_share(workspace, a, b, m, n, k, x, y, lane);
  if (what == 1) copy_stretches(workspace, a, b, m, n, k, lane);
  if (what == 2) await_step(workspace, x, m, n, k);
}}
"""
_FIRST, _REST, _AWAIT = range(3)


class SpareCopies:
    """The copies of a product's operands, in the order in which its steps along k need them."""

    def __init__(self, arrays_of: Arrays, arrays: dict[str, Any], tiles: Tiles) -> None:
        self.arrays_of, self.arrays = arrays_of, arrays
        form = arrays_of.form
        constants = {
            "a_there": int("a" in form.pads),
            "b_there": int("b" in form.pads),
            "a_across": int(form.trans_a),
            "b_across": int(not form.trans_b),
            "step": tiles.bk,
            "height": tiles.bm * tiles.cluster,
            "width": tiles.bn * tiles.abreast,
            "workers": tiles.blocks // tiles.sharers,
            "spare": FEWEST_SPARE,
            "share": form.first_share,
            "fewest": _FEWEST_STEPS,
            "together": _TOGETHER,
            "counted": COUNTED_BYTES,
            "parts": MOST_PARTS,
        }
        texts = (_COPY_PIECES, _STRETCHES, _SPARE_COPIES)
        pieces, stretches, copies = (text.format(**constants) for text in texts)
        self._source = SHIFTED + READ_ONCE + pieces + stretches + COUNTING + copies

    def make_copies(self, arrays: dict[str, Any], blocks: int, chained: bool) -> int:
        """Emit the kernel of `blocks` blocks that copies what is needed first; return how many copies that are."""
        with builder.attr(0, "tirx.device_entry", True):
            block = builder.cta_id([blocks])
            warp, lane = builder.warp_id([_WARPS]), builder.lane_id([32])
            if chained:
                wait_for_kernels_before()
            self._call(_FIRST, builder.Bind(block * _WARPS + warp), blocks * _WARPS, lane)
        return len(self.arrays_of.copies)

    def copy_rest(self, lane: Any) -> None:
        """Copy, as a warp of many, what is left."""
        self._call(_REST, 0, 0, lane)

    def wait(self, step: Any) -> None:
        """Wait for what a step along k needs."""
        self._call(_AWAIT, step, 0, 0)

    def _call(self, what: int, x: Any, y: Any, lane: Any) -> None:
        a, b, workspace = (self.arrays[name].data for name in ("a", "b", "workspace"))
        of = self.arrays_of
        arguments = (what, workspace, a, b, of.m, of.n, of.k, x, y, lane)
        do(c_call("void", "spare_copies", *arguments, source=self._source))
