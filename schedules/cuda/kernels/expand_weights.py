"""Integer weights as a matrix of 16-bit floats in a workspace, for products that multiply many rows by them.

`WeightGroups` says how they are packed. A thread takes four columns of eight values of k at a time,
16 bytes of nibbles or 32 of bytes; eight neighbours of a warp write 128 bytes of a column. Integers
less their zero points are exact as floats, times the scale they are rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T
from tvm.tirx.script.builder import ir as builder

from tvmops.schedules.cpu.emit import ceildiv
from tvmops.schedules.cuda.kernels.gemm_arrays import Arrays, Form
from tvmops.schedules.cuda.words import c_call, do, wait_for_kernels_before
from tvmops.signatures.weight_groups import WeightGroups
from tvmops.signatures.words import COLUMNS

_WARPS = 8
_ROW_BYTES = 64  # of packed weights
_ROUND = {
    "float16": "__half_as_ushort(__float2half_rn(x))",
    "bfloat16": "__bfloat16_as_ushort(__float2bfloat16_rn(x))",
}
_EXPAND = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
__forceinline__ __device__ unsigned short expanded_{dtype}(unsigned offset, float zero, float scale) {{
  const float x = (static_cast<float>(offset) - zero) * scale;
  return {round};
}}
__forceinline__ __device__ void expand_weights_{dtype}(void* to, const void* from, int n, int k, int pitch,
                                                       int thread, int threads) {{
  const unsigned groups = (k + {group} - 1) / {group}, eights = groups * {eights};
  const unsigned all = (n + 15) / 16 * eights * 4;
  for (unsigned at = thread; at < all; at += threads) {{
    const unsigned four = at % 4, eight = at / 4 % eights, panel = at / 4 / eights;
    const unsigned begin = 8 * eight;
    const uint4* block = static_cast<const uint4*>(from) + (panel * groups + eight / {eights}) * {rows} * 4 + four;
    if (begin >= k) continue;
    union {{ uint4 vectors[{words}]; unsigned words[4 * {words}]; }} loaded;
#pragma unroll
    for (int i = 0; i < {words}; ++i)
      loaded.vectors[i] = __ldg(block + ({heads} + eight % {eights} * {words} + i) * 4);
    union {{ uint4 vector; float values[4]; }} scales, zeros;
    scales.vector = __ldg(block);
    if ({heads} == 2) zeros.vector = __ldg(block + 4);
#pragma unroll
    for (int c = 0; c < 4; ++c) {{
      union {{ uint4 vector; unsigned short items[8]; }} made;
      const float zero = {heads} == 2 ? zeros.values[c] : {zero}.0f;
#pragma unroll
      for (int i = 0; i < 8; ++i) {{
        const unsigned word = loaded.words[{words} == 2 ? i / 4 * 4 + c : c];
        const unsigned offset = {words} == 2 ? word >> 8 * (i % 4) & 255 : word >> (i % 4 * 8 + i / 4 * 4) & 15;
        made.items[i] = expanded_{dtype}(offset, zero, scales.values[c]);
      }}
      const unsigned column = panel * 16 + four * 4 + c;
      if (column < n)
        *reinterpret_cast<uint4*>(static_cast<unsigned short*>(to) + static_cast<long long>(column) * pitch + begin) =
            made.vector;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class WeightOnlyForm(Form):
    """A product with weights that lie in a workspace, when they have been expanded."""

    groups: WeightGroups = WeightGroups(4, 128, False)


class WeightOnlyArrays(Arrays):
    """x, w as `WeightGroups` packs it, bias and c; b is a matrix in the workspace."""

    form: WeightOnlyForm

    def declare(self, workspace: bool) -> dict[str, Any]:
        form, groups = self.form, self.form.groups
        packed = (ceildiv(self.n, COLUMNS), ceildiv(self.k, groups.group) * groups.rows, _ROW_BYTES)
        arrays: dict[str, Any] = {"x": (form.dtype, (self.m, self.k)), "w": ("uint8", packed)}
        arrays |= {"bias": (form.bias, (self.n,))} if form.bias else {}
        arrays |= {"c": (form.result, (self.m, self.n))}
        arrays |= {"workspace": ("uint8", (T.Var("workspace_bytes", "int64"),))} if workspace else {}
        declared = {
            name: builder.arg(name, builder.buffer(shape, dtype, align=16, buffer_name=name))
            for name, (dtype, shape) in arrays.items()
        }
        return {{"x": "a", "w": "b"}.get(name, name): array for name, array in declared.items()}

    def make_copies(self, arrays: dict[str, Any], blocks: int, chained: bool) -> int:
        copy, groups, dtype = self.copies["b"], self.form.groups, self.form.dtype
        source = _EXPAND.format(
            dtype=dtype, round=_ROUND[dtype], group=groups.group, eights=groups.group // 8, rows=groups.rows,
            words=groups.bits // 4, heads=1 + groups.has_zero_points, zero=groups.zero,
        )  # fmt: skip
        with builder.attr(0, "tirx.device_entry", True):
            block = builder.cta_id([blocks])
            warp, lane = builder.warp_id([_WARPS]), builder.lane_id([32])
            thread = builder.Bind((block * _WARPS + warp) * 32 + lane)
            if chained:
                wait_for_kernels_before()
            to = builder.address_of(arrays["workspace"][copy.offset])
            place = (self.n, self.k, copy.pitch, thread, blocks * _WARPS * 32)
            do(c_call("void", f"expand_weights_{dtype}", to, arrays["b"].data, *place, source=source))
        return 1
