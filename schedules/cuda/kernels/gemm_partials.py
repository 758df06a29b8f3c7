"""Partial sums of a wgmma product whose k a cluster of blocks shares: exchanged, and added in a fixed order."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.kernels.gemm_results import Results, rounding_of
from tvmops.schedules.cuda.words import c_call, do

_READ_PARTIAL = """
__device__ __forceinline__ void tvmops_add_partial({kind}* sums, const void* mine, int rank) {{
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(mine)), remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  for (int half = 0; half < 2; ++half) {{
    {kind} x, y, z, w;
    asm volatile("ld.shared::cluster.v4.{ptx} {{%0, %1, %2, %3}}, [%4];"
                 : "={c}"(x), "={c}"(y), "={c}"(z), "={c}"(w) : "r"(remote + 16 * half) : "memory");
    sums[4 * half] += x; sums[4 * half + 1] += y; sums[4 * half + 2] += z; sums[4 * half + 3] += w;
  }}
}}
"""
_KINDS = {
    "float32": {"kind": "float", "ptx": "f32", "c": "f"},
    "uint32": {"kind": "unsigned", "ptx": "u32", "c": "r"},
}
_STORE_APART = """
__forceinline__ __device__ void store_apart_{dtype}(void* array, int row, int pitch, int column, const float* sums) {{
  {kind}* at = static_cast<{kind}*>(array) + static_cast<long long>(row) * pitch + column;
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (column + i < pitch) at[i] = {rounded};
}}
"""
_ROUNDED = {
    "float32": ("float", "sums[i]"),
    "float16": ("half", "__float2half_rn(sums[i])"),
    "bfloat16": ("nv_bfloat16", "__float2bfloat16_rn(sums[i])"),
}


class PartialSums:
    """The sums of one tile in the shared memory of each block, `memory`, and their end."""

    def __init__(self, results: Results, tiles: Tiles, memory: Any, rank: Any) -> None:
        self.results, self.form, self.at = results, results.form, results.at
        self.memory, self.rank = memory, rank
        self.dtype = memory.dtype
        self.tiles, self.c = tiles, results.c
        rows = results.m, self.at.top, tiles.bm
        columns = results.n, self.at.left, tiles.bn
        turned = self.form.turned  # of c, whose rows are those of what is multiplied or its columns
        (self.m, self.top, self.height), (self.n, self.left, self.width) = (
            (columns, rows) if turned else (rows, columns)
        )
        self.runs = self.width // 8  # of a row
        self.rounding = rounding_of(self.form.result)

    # fmt: off
    @T.inline
    def share(self, nothing):
        """Leave this thread's sums, of `nothing` 0, where the other blocks find them."""
        if nothing:
            for i in T.unroll(self.results.blocks * self.results.sums):
                self.at.acc[i] = tirx.const(0, self.dtype)
        for w in T.unroll(self.results.blocks):
            for i in T.unroll(self.results.sums):
                if self.form.turned:
                    self.memory[i // 4 * 8 + self.at.lane % 4 * 2 + i % 2, self.results.row_of(w, i // 2 % 2)] = self.at.acc[w * self.results.sums + i]
                elif self.form.across:
                    self.memory[self.results.row_of(w, i // 2 % 2), i // 4 * 8 + self.at.lane % 4 * 2 + i % 2] = self.at.acc[w * self.results.sums + i]
                else:
                    self.memory[self.at.group * (64 * self.results.blocks) + w * 64 + self.at.warp * 16 + self.at.lane // 4 + (i // 2 % 2) * 8, i // 4 * 8 + self.at.lane % 4 * 2 + i % 2] = self.at.acc[w * self.results.sums + i]

    @T.inline
    def add(self):
        """Add up what all blocks left, of this block's stretch of the tile, and store it."""
        at: T.int32 = (self.rank * self.tiles.consumers + self.at.group) * 128 + self.at.warp * 32 + self.at.lane
        total = T.alloc_local((8,), self.dtype)
        halves = T.alloc_local((4,), "uint32")
        while at < self.height * self.runs:
            r: T.int32 = T.truncdiv(at, self.runs)
            column: T.int32 = T.truncmod(at, self.runs) * 8
            target: T.int32 = self.top + r
            if (target < self.m) & (self.left + column < self.n):
                for i in T.unroll(8):
                    total[i] = tirx.const(0, self.dtype)
                for source in T.unroll(self.tiles.split_k):
                    do(c_call("void", "tvmops_add_partial", T.address_of(total[0]), self.memory.ptr_to([r, column]), source, source=_READ_PARTIAL.format(**_KINDS[self.dtype])))
                if self.form.finishes or self.form.scales != "":
                    for e in T.unroll(8):
                        self.results.finish(total, e, self.at.item * self.m + target, T.min(self.left + column + e, self.n - 1))
                place = T.meta_var([self.at.item, target] if self.form.batched else [target])
                if self.form.loose:
                    self._store_apart(self.at.item * self.m + target, self.left + column, total)
                elif self.dtype != "float32":
                    self.results.store_eight(self.at.item * self.m + target, self.left + column, total)
                elif self.form.stores_directly:
                    for half in T.unroll(2):
                        if self._has(self.left + column + half * 4):
                            T.ptx["st.global.v4.f32"](self.c.ptr_to([*place, self.left + column + half * 4]), total[half * 4], total[half * 4 + 1], total[half * 4 + 2], total[half * 4 + 3])
                else:
                    for q in T.unroll(4):
                        T.ptx[self.rounding](halves[q], total[q * 2 + 1], total[q * 2])
                    T.ptx["st.global.v4.b32"](self.c.ptr_to([*place, self.left + column]), halves[0], halves[1], halves[2], halves[3])
            at = at + self.tiles.split_k * (128 * self.tiles.consumers)
    # fmt: on

    def _has(self, column: Any) -> Any:
        """Say whether c has a column where the half of eight begins: of floats there may be four less."""
        return column < self.n if self.form.item == 4 else True

    def _store_apart(self, row: Any, column: Any, sums: Any) -> None:
        dtype = self.form.result
        kind, rounded = _ROUNDED[dtype]
        source = _STORE_APART.format(dtype=dtype, kind=kind, rounded=rounded)
        first = T.address_of(sums[0])
        do(c_call("void", f"store_apart_{dtype}", self.c.data, row, self.n, column, first, source=source))
