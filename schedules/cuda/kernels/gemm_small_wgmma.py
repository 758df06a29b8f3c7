"""`gemm_small` with wgmma: a warpgroup multiplies 64 rows by all columns of the block's tile.

Chunks lie in shared memory as wgmma reads them, 128-byte swizzled; cp.async puts them there, as wide as
rows allow: the copy engine takes none whose rows begin at less than multiples of 16 bytes.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.kernels.gemm_small import SmallKernel
from tvmops.schedules.cuda.kernels.whole_operand import STEP, WholeOperand
from tvmops.schedules.cuda.pieces import PIECE
from tvmops.schedules.cuda.words import PTX_TYPES, do, ptx, swizzled, tie

PANEL, ROW_BYTES = 64, 128  # elements of a row of the swizzle


class SwizzledOperand(WholeOperand):
    """A chunk as panels of rows of 64 elements."""

    @property
    def stage_bytes(self) -> int:
        return self.rows * -(-self.line // PANEL) * ROW_BYTES

    def place(self, stage: Any, row: Any, column: Any) -> Any:
        piece = T.truncdiv(T.truncmod(column, PANEL), PIECE) ^ T.truncmod(row, 8)
        inside = row * ROW_BYTES + piece * 16 + T.truncmod(column, PIECE) * 2
        panel = T.truncdiv(column, PANEL) * (self.rows * ROW_BYTES)
        return self.base + T.Cast("uint32", stage * self.stage_bytes + panel + inside)

    def view(self, stage: int, step: int, group: Any = 0) -> Any:
        """Return wgmma's view of 16 along k, of the `group`-th 64 rows."""
        if self.k_inner:
            inside = group * (PANEL * ROW_BYTES) + (step // 4 * self.rows * ROW_BYTES + step % 4 * 32)
        else:
            inside = group * (self.bk * ROW_BYTES) + step * (STEP * ROW_BYTES)
        address = self.base + T.Cast("uint32", stage * self.stage_bytes + inside)
        return swizzled(address, leading=1 if self.k_inner else self.bk * 8)


class SmallWgmmaKernel(SmallKernel):
    """Each warp has the 16 rows of a tile that wgmma gives it, and all columns."""

    alignment = 1024
    a: SwizzledOperand
    b: SwizzledOperand

    @classmethod
    def operand_of(
        cls, array: Any, extent: Extent, k: Extent, k_inner: bool, block: int, vector: int, bk: int
    ) -> SwizzledOperand:
        return SwizzledOperand(array, extent, k, k_inner, block, vector, bk)

    def _publish(self, rewrites: bool) -> None:
        ptx("fence.proxy.async.shared::cta")
        if rewrites:
            ptx("wgmma.wait_group.sync.aligned", 0)

    def _multiply_chunk(self, stage: int, steps: int) -> None:
        count = self.n_parts * 4
        tie(self.sums, count)
        ptx("wgmma.fence.sync.aligned")
        kind = PTX_TYPES[self.product.dtype]
        name = f"wgmma.mma_async.sync.aligned.m64n{self.tiles.bn}k16.f32.{kind}.{kind}"
        across = (int(not self.a.k_inner), int(not self.b.k_inner))
        for step in range(steps):
            views = self.a.view(stage, step, T.truncdiv(self.warp, 4)), self.b.view(stage, step)
            sums = (self.sums[i] for i in range(count))
            do(T.ptx[name](*sums, *views, tirx.const(True, "bool"), 1, 1, *across))
        ptx("wgmma.commit_group.sync.aligned")

    def _store(self) -> None:
        ptx("wgmma.wait_group.sync.aligned", 0)
        tie(self.sums, self.n_parts * 4)
        super()._store()
