"""`gemm_small` with wgmma: a warpgroup multiplies 64 rows by all columns of the block's tile."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.kernels.gemm_small import SmallKernel
from tvmops.schedules.cuda.kernels.small_panels import PanelsOfShifted, SwizzledOperand
from tvmops.schedules.cuda.kernels.whole_operand import WholeOperand
from tvmops.schedules.cuda.words import PTX_TYPES, do, ptx, tie


class SmallWgmmaKernel(SmallKernel):
    """Each warp has the 16 rows of a tile that wgmma gives it, and all columns."""

    alignment = 1024
    a: SwizzledOperand
    b: SwizzledOperand

    @classmethod
    def operand_of(
        cls, array: Any, extent: Extent, k: Extent, k_inner: bool, block: int, vector: int, bk: int
    ) -> WholeOperand:
        kind = PanelsOfShifted if vector == 1 else SwizzledOperand
        return kind(array, extent, k, k_inner, block, vector, bk)

    def _publish(self, rewrites: bool) -> None:
        ptx("fence.proxy.async.shared::cta")
        if rewrites or self.a.shifts or self.b.shifts:
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
