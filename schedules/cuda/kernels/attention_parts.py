"""What several clusters have of a head: left in a workspace, where a second kernel adds it up in a fixed order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.attention_shares import PAD
from tvmops.schedules.cuda.kernels.neighbours import FOUR, STORE_FOUR
from tvmops.schedules.cuda.words import Scalar, c_call, do, pack, wait_and_let_next_begin, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.attention_split import SplitKernel

_LEAVE_FOUR = """
__forceinline__ __device__ void leave_four(void* workspace, int row, int pitch, int column,
                                           float a, float b, float c, float d) {
  float* to = static_cast<float*>(workspace) + static_cast<long long>(row) * pitch + column;
  *reinterpret_cast<float4*>(to) = make_float4(a, b, c, d);
}
"""
# The maximum and the total of a part lie behind its sums.
_ADD_PARTS = """
__forceinline__ __device__ void add_{parts}_parts(float* sums, const void* workspace, int row, int pitch,
                                                  int column) {{
  const float* from = static_cast<const float*>(workspace) + static_cast<long long>(row) * {parts} * pitch;
  float4 part[{parts}], scale[{parts}];
#pragma unroll
  for (int i = 0; i < {parts}; ++i) {{
    part[i] = __ldcg(reinterpret_cast<const float4*>(from + i * pitch + column));
    scale[i] = __ldcg(reinterpret_cast<const float4*>(from + i * pitch + pitch - {pad}));
  }}
  float most = scale[0].x;
#pragma unroll
  for (int i = 1; i < {parts}; ++i) most = fmaxf(most, scale[i].x);
  const float base = most < -3.4e38f ? 0.0f : most;  // no key was seen
#pragma unroll
  for (int i = 0; i < 5; ++i) sums[i] = 0.0f;
#pragma unroll
  for (int i = 0; i < {parts}; ++i) {{
    const float worth = exp2f(scale[i].x - base);
    sums[0] += part[i].x * worth;
    sums[1] += part[i].y * worth;
    sums[2] += part[i].z * worth;
    sums[3] += part[i].w * worth;
    sums[4] += scale[i].y * worth;
  }}
}}
"""


def workspace_argument() -> Any:
    shape = (tirx.Var("workspace_bytes", "int64"),)
    return T.arg("workspace", T.buffer(shape, "uint8", align=16, buffer_name="workspace"))


def workspace_function(arguments: Callable[[], None], nbytes: Callable[[], Any]) -> tirx.PrimFunc:
    """Return `main_workspace(...)`: the bytes of workspace that `main` needs, of the same `arguments`."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main_workspace")
        arguments()
        T.Return(nbytes())
    function: tirx.PrimFunc = builder.get().with_attr("global_symbol", "main_workspace")
    return function


def workspace_bytes(kernel: SplitKernel) -> Any:
    s = kernel.sizes
    return T.Cast("int64", s.batch) * (s.heads * kernel.split.clusters * _pitch(kernel) * 4)


def leave_part(kernel: SplitKernel, row: Any, column: Any, most: Any, total: Any, values: list[Any]) -> None:
    """Leave four sums of this cluster's part of a head; `row` counts heads over the batch."""
    dim = kernel.sizes.head_dim
    place = kernel.workspace.data, T.Bind(row * kernel.split.clusters + kernel.part), _pitch(kernel)
    do(c_call("void", "leave_four", *place, column, *values, source=_LEAVE_FOUR))
    with when(column == 0):
        nothing = T.float32(0)
        do(c_call("void", "leave_four", *place, dim, most, total, nothing, nothing, source=_LEAVE_FOUR))


def add_parts(kernel: SplitKernel) -> None:
    """Emit the second kernel: a block finishes a head, a thread four columns of it."""
    s, parts = kernel.sizes, kernel.split.clusters
    fours = s.head_dim // FOUR
    warps = -(-fours // 32)
    with T.attr(0, "tirx.device_entry", True):
        row = T.cta_id([s.batch * s.heads])
        warp, lane = T.warp_id([warps]), T.lane_id([32])
        at = T.Bind(warp * 32 + lane)
        sums = T.alloc_local((FOUR + 1,), "float32")
        if kernel.chained:
            wait_and_let_next_begin()
        with when(at < fours):
            source = _ADD_PARTS.format(parts=parts, pad=PAD)
            to, memory = T.address_of(sums[0]), kernel.workspace.data
            column = T.Bind(at * FOUR)
            name = f"add_{parts}_parts"
            do(c_call("void", name, to, memory, row, _pitch(kernel), column, source=source))
            sequence, head = T.Bind(T.truncdiv(row, s.heads)), T.Bind(T.truncmod(row, s.heads))
            finish(kernel, sequence, head, column, sums[FOUR], [sums[i] for i in range(FOUR)])


def finish(kernel: SplitKernel, sequence: Any, head: Any, column: Any, total: Any, values: list[Any]) -> None:
    """Divide four sums by the total of their weights, and store them."""
    store_share(kernel.sizes.dtype, kernel.out.ptr_to([sequence, head, 0, column]), total, values)


def store_share(dtype: str, at: Any, total: Any, values: list[Any]) -> None:
    """Divide four sums by the total of their weights, and store them at an address."""
    share = Scalar(tirx.Select(total == 0, T.float32(0), T.float32(1) / total), "float32")
    halves = [pack(dtype, *(value * share() for value in values[i : i + 2])) for i in (0, 2)]
    do(c_call("void", "store_four", at, *halves, source=STORE_FOUR))


def _pitch(kernel: SplitKernel) -> int:
    """Return the floats of a part: its sums, their maximum and their total."""
    return kernel.sizes.head_dim + PAD
