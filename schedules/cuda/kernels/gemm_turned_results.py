"""The end of a wgmma product c^T = b^T a^T: rows of what was multiplied become columns of c."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from tvmops.schedules.cuda.kernels.gemm_arrays import BOX_ROWS
from tvmops.schedules.cuda.kernels.gemm_results import STORE, Results, finished
from tvmops.schedules.cuda.words import c_call, do

_STORE_ONE = """
__forceinline__ __device__ void store_one(void* array, int row, int pitch, int column, float x) {
  static_cast<float*>(array)[static_cast<long long>(row) * pitch + column] = x;
}
"""


class TurnedResults(Results):
    """What becomes of the sums of c^T: its rows are columns of c."""

    # fmt: off
    @T.inline
    def store(self, tile, view):
        """Store by TMA, 64 columns of c by up to 64 rows at a time; they are turned on their way to `tile`."""
        for w in T.unroll(self.blocks):
            for s in T.unroll(self.parts):
                if (self.at.warp == 0) & (self.at.lane == 0):
                    T.ptx.cp.async_.bulk.wait_group.read(self.unread)
                T.cuda.warpgroup_sync(self.at.group + 1)
                self._round_to(tile, (w * self.parts + s) % self.buffers, w, s)
                T.ptx.fence.proxy.async_.shared__cta()
                T.cuda.warpgroup_sync(self.at.group + 1)
                if (self.at.warp == 0) & (self.at.lane == 0):
                    for i in T.unroll(4):
                        if s * 64 + i * BOX_ROWS < self.bn:
                            T.ptx[STORE.format(rank=2)](T.address_of(view), self.at.top + self.at.group * (64 * self.blocks) + w * 64, self.at.tn * self.bn + s * 64 + i * BOX_ROWS, tile.ptr_to([self.at.group, (w * self.parts + s) % self.buffers, i * BOX_ROWS, 0]))
                    T.ptx.cp.async_.bulk.commit_group()

    @T.inline
    def _round_to(self, tile, buffer, w, s):
        """Round 64 rows of c to swizzled shared memory."""
        for p in T.unroll(4):
            if s * 64 + p * 16 < self.bn:
                for q in T.unroll(4):
                    T.ptx[self.rounding](self.at.packed[q], self._sum(w * self.sums + s * 32 + p * 8 + q * 2 + 1), self._sum(w * self.sums + s * 32 + p * 8 + q * 2))
                T.ptx["stmatrix.sync.aligned.m8n8.x4.trans.shared.b16"](
                    tile.ptr_to([self.at.group, buffer, p * 16 + self.at.lane // 16 * 8 + self.at.lane % 8, ((self.at.warp * 2 + self.at.lane // 8 % 2) ^ (self.at.lane % 8)) * 8]),
                    self.at.packed[0], self.at.packed[1], self.at.packed[2], self.at.packed[3])

    @T.inline
    def finish_all(self):
        for w in T.unroll(self.blocks):
            for j in T.unroll(self.bn // 8):
                for e in T.unroll(2):
                    r: T.int32 = self.at.tn * self.bn + j * 8 + self.at.lane % 4 * 2 + e
                    if r < self.n:
                        for half in T.unroll(2):
                            if self.form.finishes:
                                self.finish(self.at.acc, w * self.sums + j * 4 + half * 2 + e, self.at.item * self.n + r, T.min(self.at.top + self.row_of(w, half), self.m - 1))
                        if self.form.across:
                            self.store_where(self.at.top + self.row_of(w, 0), 2, r, w * self.sums + j * 4 + e)
                        elif not self.form.turns_back:
                            for half in T.unroll(2):
                                self.store_where(self.at.top + self.row_of(w, half), 1, r, w * self.sums + j * 4 + half * 2 + e)
    # fmt: on

    def finish(self, sums: Any, at: Any, row: Any, column: Any) -> None:
        T.buffer_store(sums, finished(self.form, self.arrays, self.m, sums[at], row, column), [at])

    # fmt: off
    @T.inline
    def store_where(self, column, count, row, at):
        """Store one sum, or two of neighbouring columns, if they are in c."""
        if column < self.m:
            self._store_next(self.at.item * self.n + row, column, count, at)
    # fmt: on

    def _store_next(self, row: Any, column: Any, count: int, at: Any) -> None:
        if count == 2:
            self.store_two(row, column, self._sum(at), self._sum(at + 2))
            return
        do(c_call("void", "store_one", self.c.data, row, self.m, column, self._sum(at), source=_STORE_ONE))
