"""The end of a wgmma product c^T = b^T a^T: rows of what was multiplied become columns of c."""

from __future__ import annotations

import itertools
from typing import Any

from tvm.script import tirx as T

from tvmops.schedules.cuda.kernels.gemm_arrays import BOX_ROWS
from tvmops.schedules.cuda.kernels.gemm_results import STORE, Results, finished
from tvmops.schedules.cuda.words import c_call, do, when

_STORE_ONE = """
__forceinline__ __device__ void store_one(void* array, int row, int pitch, int column, float x) {
  static_cast<float*>(array)[static_cast<long long>(row) * pitch + column] = x;
}
"""


class TurnedResults(Results):
    """What becomes of the sums of c^T: its rows are columns of c."""

    saving = "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16"  # it turns them on their way

    # fmt: off
    @T.inline
    def _store_box(self, tile, buffer, view, row, s):
        """Begin to store the `s`-th 64 rows of c, as far as the tile has them, of the 64 columns from `row` on."""
        for i in T.unroll(64 // BOX_ROWS):
            if s * 64 + i * BOX_ROWS < self.bn:
                T.ptx[STORE.format(rank=2)](T.address_of(view), row, self.at.left + s * 64 + i * BOX_ROWS, tile.ptr_to([self.at.group, buffer, i * BOX_ROWS, 0]))

    @T.inline
    def finish_all(self):
        for w in T.unroll(self.blocks):
            for j in T.unroll(self.bn // 8):
                for e in T.unroll(2):
                    r: T.int32 = self.at.left + j * 8 + self.at.lane % 4 * 2 + e
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

    def store_stretch(self, tile: Any, view: Any, stretch: range) -> None:
        """Store a stretch of the sums, counted by boxes: 16 rows of c, of 64 columns."""
        boxes = self.bn // BOX_ROWS  # of a block
        alone = (self.at.warp == 0) & (self.at.lane == 0)
        for w, s in itertools.product(range(self.blocks), range(self.parts)):
            own = [p for p in range(4) if s * 4 + p < boxes and w * boxes + s * 4 + p in stretch]
            if not own:
                continue
            buffer = (w * self.parts + s) % self.buffers
            with when(alone):
                do(T.ptx.cp.async_.bulk.wait_group.read(self.buffers - 1))
            do(T.cuda.warpgroup_sync(self.at.group + 1))
            for p in own:
                self._round_box(tile, buffer, w, s, p)
            do(T.ptx.fence.proxy.async_.shared__cta())
            do(T.cuda.warpgroup_sync(self.at.group + 1))
            with when(alone):
                for p in own:
                    to = self.at.top + self.first_row + w * 64, self.at.left + s * 64 + p * BOX_ROWS
                    box = tile.ptr_to([self.at.group, buffer, p * BOX_ROWS, 0])
                    do(T.ptx[STORE.format(rank=2)](T.address_of(view), *to, box))
                do(T.ptx.cp.async_.bulk.commit_group())

    def _round_box(self, tile: Any, buffer: int, w: int, s: int, p: int) -> None:
        """Round 16 columns of sums, and turn them."""
        first = w * self.sums + s * 32 + p * 8
        for q in range(4):
            pair = self._sum(first + q * 2 + 1), self._sum(first + q * 2)
            do(T.ptx[self.rounding](self.at.packed[q], *pair))
        to = tile.ptr_to([self.at.group, buffer, *self._place(p)])
        do(T.ptx[self.saving](to, *(self.at.packed[q] for q in range(4))))

    def _place(self, p: Any) -> tuple[Any, Any]:
        lane = self.at.lane
        row, piece = p * 16 + lane // 16 * 8 + lane % 8, self.at.warp * 2 + lane // 8 % 2
        return row, (piece ^ (lane % 8)) * 8

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
