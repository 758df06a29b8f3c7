"""The end of a product whose k is cut in parts: a kernel adds up their sums, in a fixed order."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.gemm_arrays import Arrays, Form
from tvmops.schedules.cuda.kernels.gemm_results import finished
from tvmops.schedules.cuda.row_memory import store_vector
from tvmops.schedules.cuda.words import Scalar, c_call, do, wait_and_let_next_begin, when

_WARPS = 8
_RUN = 8  # columns of a thread
_ADD_PARTS = """
__forceinline__ __device__ void add_{parts}_parts(float* sums, const void* workspace, int at, int size) {{
  const float4* from = static_cast<const float4*>(workspace) + 2ll * at;
  float4 low[{parts}], high[{parts}];
#pragma unroll
  for (int i = 0; i < {parts}; ++i) {{
    low[i] = __ldcg(from + 2ll * i * size);
    high[i] = __ldcg(from + 2ll * i * size + 1);
  }}
  float4 x = low[0], y = high[0];
#pragma unroll
  for (int i = 1; i < {parts}; ++i) {{
    x.x += low[i].x, x.y += low[i].y, x.z += low[i].z, x.w += low[i].w;
    y.x += high[i].x, y.y += high[i].y, y.z += high[i].z, y.w += high[i].w;
  }}
  sums[0] = x.x, sums[1] = x.y, sums[2] = x.z, sums[3] = x.w;
  sums[4] = y.x, sums[5] = y.y, sums[6] = y.z, sums[7] = y.w;
}}
"""


def add_up(form: Form, arrays_of: Arrays, arrays: dict[str, Any]) -> int:
    """Emit the kernel, in which a thread finishes and stores 8 neighbours; return how many parts it adds."""
    parts, threads = form.parts, _WARPS * 32
    runs = arrays_of.m * T.truncdiv(arrays_of.n, _RUN)
    with T.attr(0, "tirx.device_entry", True):
        block = T.cta_id([T.truncdiv(runs + (threads - 1), threads)])
        # Through variables, lest what the launch computes becomes arguments of the kernel.
        m, n = T.Bind(Scalar(arrays_of.m)()), T.Bind(Scalar(arrays_of.n)())
        runs = T.Bind(m * T.truncdiv(n, _RUN))
        warp, lane = T.warp_id([_WARPS]), T.lane_id([32])
        at = T.Bind((block * _WARPS + warp) * 32 + lane)
        sums = T.alloc_local((_RUN,), "float32")
        wait_and_let_next_begin()
        with when(at < runs):
            source = _ADD_PARTS.format(parts=parts)
            memory = arrays["workspace"].data
            do(c_call("void", f"add_{parts}_parts", T.address_of(sums[0]), memory, at, runs, source=source))
            row = T.Bind(T.truncdiv(at, T.truncdiv(n, _RUN)))
            column = T.Bind(T.truncmod(at, T.truncdiv(n, _RUN)) * _RUN)
            if form.finishes or form.scales:
                for i in range(_RUN):
                    T.buffer_store(sums, finished(form, arrays, n, sums[i], row, column + i), [i])
            width = 4 if form.result == "float32" else _RUN
            for i in range(0, _RUN, width):
                store_vector(arrays["c"].ptr_to([row, column + i]), sums, i, form.result, width)
    return parts
