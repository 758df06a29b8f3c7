"""What the warpgroups of a wgmma product multiply: stage after stage of the ring, each released when it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.kernels.gemm_arrays import Form
from tvmops.schedules.cuda.kernels.gemm_fragments import STEPS, Fragments
from tvmops.schedules.cuda.kernels.gemm_operands import AcrossFloats, Operand, multiply
from tvmops.schedules.cuda.kernels.gemm_results import Consumer
from tvmops.schedules.cuda.kernels.gemm_walk import Walk, variable


@dataclass(frozen=True)
class Factor:
    """A factor as a thread finds it."""

    operand: Operand
    base: Any  # the shared-memory address of the thread's part of the first stage

    def view(self, stage: Any, step: Any, block: Any = 0) -> Any:
        return self.operand.view(self.base, stage, step, block)


@dataclass(frozen=True)
class RingBarriers:
    """The barriers of the stages."""

    full: Any
    empty: Any
    remote: Any  # the address of `empty` in that block of the cluster for which this warp releases stages


class Products:
    """The products of one thread's warpgroup, of one tile at a time."""

    def __init__(
        self,
        form: Form,
        tiles: Tiles,
        walk: Walk,
        at: Consumer,
        factors: tuple[Factor, Factor],
        barriers: RingBarriers,
    ) -> None:
        self.form, self.tiles, self.walk, self.at, self.barriers = form, tiles, walk, at, barriers
        self.a, self.b = factors
        self.before = variable("before", 0)  # the stage that products may still read
        self.fragments: Fragments | None = None
        if isinstance(self.a.operand, AcrossFloats):
            self.fragments = Fragments(self.a.operand, tiles.blocks_a_group, self.a.base, at.warp, at.lane)

    def multiply(self) -> None:
        """Multiply the steps of a tile."""
        if self.fragments is None:
            self._multiply()
        else:
            self._multiply_fragments(self.fragments)

    # fmt: off
    @T.inline
    def _multiply(self):
        for kt in T.serial(self.walk.steps):
            T.cuda.mbarrier_wait(self.barriers.full.ptr_to([self.walk.stage]), self.walk.phase)
            T.ptx.wgmma.fence.sync.aligned()
            for step in T.unroll(self.tiles.bk // 16):
                for w in T.unroll(self.tiles.blocks_a_group):
                    multiply(self.form, self.tiles.columns_a_group, self.at.acc, w * (self.tiles.columns_a_group // 2), self.a.view(self.walk.stage, step, w), self.b.view(self.walk.stage, step), T.Not((kt == 0) & (step == 0)))
            T.ptx.wgmma.commit_group.sync.aligned()
            T.ptx.wgmma.wait_group.sync.aligned(1)
            if kt > 0:
                self._release()
            self.before = self.walk.stage
            self.walk.advance()
        T.ptx.wgmma.wait_group.sync.aligned(0)
        self._release()

    @T.inline
    def _multiply_fragments(self, fragments):
        for kt in T.serial(self.walk.steps):
            T.cuda.mbarrier_wait(self.barriers.full.ptr_to([self.walk.stage]), self.walk.phase)
            for half in T.unroll(self.tiles.bk // (16 * STEPS)):
                fragments.load(self.walk.stage, half)
                T.ptx.wgmma.fence.sync.aligned()
                fragments.multiply(self.b.operand, self.b.base, self.walk.stage, half, self.at.acc, self.tiles.bn, T.Not((kt == 0) & (half == 0)))
                T.ptx.wgmma.commit_group.sync.aligned()
                T.ptx.wgmma.wait_group.sync.aligned(1)
                if (half == 0) & (kt > 0):
                    self._release()
            self.before = self.walk.stage
            self.walk.advance()
        T.ptx.wgmma.wait_group.sync.aligned(0)
        self._release()

    @T.inline
    def _release(self):
        if (self.at.lane == 0) & (self.at.warp < self.tiles.sharers):
            if self.tiles.sharers > 1:
                T.ptx.mbarrier.arrive.shared__cluster.b64(self.barriers.remote + T.Cast("uint32", self.before * 8))
            else:
                T.ptx.mbarrier.arrive.shared.b64(self.barriers.empty.ptr_to([self.before]), T.uint32(1))
    # fmt: on
