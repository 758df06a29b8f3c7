"""What blocks of `attention_few` have of a row: left in a workspace, where a second kernel adds it up.

Row by row, part by part: `head_dim` sums in float32, then their maximum and their total.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.attention_parts import store_share
from tvmops.schedules.cuda.kernels.attention_shares import PAD
from tvmops.schedules.cuda.kernels.attention_softmax import Registers
from tvmops.schedules.cuda.kernels.attention_tiles import ROWS, Heads
from tvmops.schedules.cuda.kernels.neighbours import FOUR
from tvmops.schedules.cuda.words import c_call, do, slice_of, wait_and_let_next_begin, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.attention_few import FewKernel, ShareWalk

_THREADS = 128  # of a block that adds parts
_AT_ONCE = 8  # parts that are read before the first is added

_LEAVE_TWO = """
__forceinline__ __device__ void leave_two(const void* row, int column, float a, float b) {
  float* to = static_cast<float*>(const_cast<void*>(row)) + column;
  *reinterpret_cast<float2*>(to) = make_float2(a, b);
}
"""
_ADD_PARTS = """
__forceinline__ __device__ void add_{parts}_parts(float* sums, const void* row, int pitch, int column) {{
  const float* from = static_cast<const float*>(row);
  float most = __uint_as_float(0xff800000u);
  for (int i = 0; i < 5; ++i) sums[i] = 0.0f;
#pragma unroll 1
  for (int first = 0; first < {parts}; first += {at_once}) {{
    float4 part[{at_once}];
    float2 scale[{at_once}];
    float highest = most;
#pragma unroll
    for (int i = 0; i < {at_once}; ++i) {{
      const float* at = from + min(first + i, {parts} - 1) * pitch;
      part[i] = __ldcg(reinterpret_cast<const float4*>(at + column));
      scale[i] = __ldcg(reinterpret_cast<const float2*>(at + pitch - {pad}));
    }}
#pragma unroll
    for (int i = 0; i < {at_once}; ++i) highest = fmaxf(highest, scale[i].x);
    const float base = highest < -3.4e38f ? 0.0f : highest;  // no key was seen
    const float before = exp2f(most - base);
#pragma unroll
    for (int i = 0; i < 5; ++i) sums[i] *= before;
#pragma unroll
    for (int i = 0; i < {at_once}; ++i) {{
      if (first + i >= {parts}) break;
      const float worth = exp2f(scale[i].x - base);
      sums[0] += part[i].x * worth;
      sums[1] += part[i].y * worth;
      sums[2] += part[i].z * worth;
      sums[3] += part[i].w * worth;
      sums[4] += scale[i].y * worth;
    }}
    most = highest;
  }}
}}
"""


def workspace_bytes(kernel: FewKernel) -> Any:
    s = kernel.given
    return T.Cast("int64", s.batch) * (s.heads * s.q_len) * (kernel.splits * _pitch(s) * 4)


def leave_part(kernel: FewKernel, held: Registers, walk: ShareWalk) -> None:
    """Leave what a thread has of its two rows."""
    s = kernel.sizes
    for row in range(2):
        own = T.Bind(
            walk.first_row + kernel.group * ROWS + kernel.warp * 16 + T.truncdiv(kernel.lane, 4) + row * 8
        )
        with when(own < s.q_len):
            part = (walk.pair * s.q_len + own) * kernel.splits + walk.part
            to = T.Bind(slice_of(kernel.workspace.data, part, 1, _pitch(s), 4))
            for block in range(s.head_dim // 8):
                at = block * 4 + row * 2
                column = block * 8 + kernel.lane % 4 * 2
                two = held.out[at], held.out[at + 1]
                do(c_call("void", "leave_two", to, column, *two, source=_LEAVE_TWO))
            with when(kernel.lane % 4 == 0):
                scale = held.most[row], held.total[row]
                do(c_call("void", "leave_two", to, s.head_dim, *scale, source=_LEAVE_TWO))


def add_parts(kernel: FewKernel) -> None:
    """Emit the second kernel: a block finishes some rows, a thread four columns of one."""
    s, parts = kernel.given, kernel.splits
    fours = s.head_dim // FOUR
    rows, count = _THREADS // fours, s.batch * s.heads * s.q_len
    with T.attr(0, "tirx.device_entry", True):
        block = T.cta_id([T.truncdiv(count + (rows - 1), rows)])
        warp, lane = T.warp_id([_THREADS // 32]), T.lane_id([32])
        thread = T.Bind(warp * 32 + lane)
        row = T.Bind(block * rows + T.truncdiv(thread, fours))
        column = T.Bind(T.truncmod(thread, fours) * FOUR)
        sums = T.alloc_local((FOUR + 1,), "float32")
        wait_and_let_next_begin()
        with when((thread < rows * fours) & (row < count)):
            source = _ADD_PARTS.format(parts=parts, at_once=min(parts, _AT_ONCE), pad=PAD)
            of_row = slice_of(kernel.workspace.data, row, parts, _pitch(s), 4)
            name, to = f"add_{parts}_parts", T.address_of(sums[0])
            do(c_call("void", name, to, of_row, _pitch(s), column, source=source))
            at = kernel.arrays["out"].ptr_to([0, 0, 0, row * s.head_dim + column])
            store_share(s.dtype, at, sums[FOUR], [sums[i] for i in range(FOUR)])


def _pitch(sizes: Heads) -> int:
    """Return the floats of a part."""
    return sizes.head_dim + PAD
