"""The kernel of `StreamedHaloConv`: `conv_halo` with more weights than shared memory holds.

What a tile sees of the image comes `depth` channels at a time, once for all taps; the weights of a tap
and those channels come one after the other, through a ring of their own. Blocks stay and take tile after
tile; or, with `split_k` > 1, a cluster of blocks adds up one tile through its shared memory, each block a
stretch of the channels.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.gemm_tiles import PARTIAL_PAD
from tvmops.schedules.cuda.halo_tiles import ROWS, SIDE, StreamedLayout, StreamedTiles
from tvmops.schedules.cuda.kernels.conv_halo_partials import HaloSum, leave_sums
from tvmops.schedules.cuda.kernels.conv_halo_results import Results
from tvmops.schedules.cuda.kernels.conv_producer import LOAD
from tvmops.schedules.cuda.kernels.halo_image import HaloImage, of_now, view
from tvmops.schedules.cuda.words import (
    PTX_TYPES,
    Position,
    Ring,
    Scalar,
    do,
    ptx,
    shared_address,
    tie,
    wait_for_kernels_before,
    when,
)


class StreamedKernel(HaloImage):
    """`main(x, w, [bias], [residual], y)`, all NHWC; channels are known."""

    tiles: StreamedTiles
    layout: StreamedLayout

    def __init__(self, shape: ConvShape, dtype: str, tiles: StreamedTiles) -> None:
        super().__init__(shape, dtype, tiles, StreamedLayout(shape, tiles))

    def _body(self) -> None:
        t, layout = self.tiles, self.layout
        self.count_tiles()
        split = t.split_k > 1
        count = self.across * self.down * self.shape.n * layout.jobs
        self.block = T.cta_id([count * t.split_k if split else t.blocks])
        self.cluster_rank = T.cta_id_in_cluster([t.split_k]) if split else 0
        self.warpgroup = T.warpgroup_id([t.consumers + 1])
        self.warp, self.lane = T.warp_id_in_wg([4]), T.lane_id([32])
        self._shared_memory()
        with when((self.warpgroup == 0) & (self.warp == 0) & (self.lane == 0)):
            for each in (self.x, self.w):
                ptx("prefetch.tensormap", T.address_of(each))
            self.ring.init()
            self.weight_ring.init()
            ptx("fence.mbarrier_init.release.cluster")
        do(T.cuda.cluster_sync() if split else T.cuda.cta_sync())
        wait_for_kernels_before()
        self.tile_count = Scalar(count)()
        self.first = Scalar(T.truncdiv(layout.chunks * self.cluster_rank, t.split_k))() if split else 0
        last = T.truncdiv(layout.chunks * (self.cluster_rank + 1), t.split_k) if split else layout.chunks
        self.chunks = Scalar(last - self.first)()  # of this block
        with T.If(self.warpgroup == t.consumers):
            with T.Then():
                ptx("setmaxnreg.dec.sync.aligned.u32", t.producer_registers)
                with when(self.warp == 0), when(T.cuda.elect_sync()):
                    self._produce()
            with T.Else():
                ptx("setmaxnreg.inc.sync.aligned.u32", t.consumer_registers)
                _Consumer(self).run()
        if split:
            do(T.cuda.cluster_sync())
            with when(self.warpgroup < t.consumers):
                HaloSum(self).run()
            do(T.cuda.cluster_sync())  # no block leaves while others read its memory

    def _shared_memory(self) -> None:
        t, layout = self.tiles, self.layout
        pool = SMEMPool()
        if t.split_k > 1:  # it takes the place of the rings, when they have been read
            self.partial = pool.alloc((ROWS * layout.all_patches, t.bn + PARTIAL_PAD), "float32", align=16)
            pool.move_base_to(0)
        self.images = pool.alloc((layout.stages, layout.stage_bytes // 2), self.dtype, align=1024)
        self.weights = pool.alloc((layout.weight_stages, t.bn, t.depth), self.dtype, align=1024)
        if t.split_k == 1:
            rows = layout.patches * ROWS
            self.results = pool.alloc((t.consumers, rows, layout.result_pitch), self.dtype, align=16)
        self.ring = Ring(pool, layout.stages, t.consumers)
        self.weight_ring = Ring(pool, layout.weight_stages, t.consumers)
        pool.commit()

    def tile(self, index: Any) -> tuple[tuple[Any, Any, Any], Any, Any]:
        """Return where a tile begins, its group, and its first channel there: those of one place follow each other."""
        layout = self.layout
        place = Scalar(T.truncdiv(index, layout.jobs))()
        job = Scalar(index - place * layout.jobs)()
        group = Scalar(T.truncdiv(job, layout.columns))()
        return self.locate(place), group, Scalar((job - group * layout.columns) * self.tiles.bn)()

    def first_tile(self) -> Any:
        return T.truncdiv(self.block, self.tiles.split_k)

    @property
    def stride(self) -> Any:
        """What a block goes on by to its next tile."""
        return self.tile_count if self.tiles.split_k > 1 else self.tiles.blocks

    def _produce(self) -> None:
        s, t, layout = self.shape, self.tiles, self.layout
        at, weights = Position(layout.stages), Position(layout.weight_stages)
        index = Scalar(self.first_tile())
        with T.While(index() < self.tile_count):
            corner, self.group, channel = self.tile(index())
            seen, first = self.seen(*corner), Scalar(self.group * s.co_each + channel)()
            with T.serial(self.chunks) as number:
                chunk = Scalar(self.first + number)()
                self.ring.empty.wait(at.stage, at.phase ^ 1)
                self.ring.full.expect(at.stage, layout.loaded_bytes)
                self.load_planes(at.stage, 0, chunk, seen)
                at.advance()
                with T.serial(len(layout.taps)) as tap:
                    self.weight_ring.empty.wait(weights.stage, weights.phase ^ 1)
                    self.weight_ring.full.expect(weights.stage, layout.weight_stage_bytes)
                    ptx(
                        LOAD.format(rank=3),
                        self.weights.ptr_to([weights.stage, 0, 0]), T.address_of(self.w),
                        chunk * t.depth, tap, first, self.weight_ring.full.at(weights.stage),
                    )  # fmt: skip
                    weights.advance()
            index.set(index() + self.stride)


class _Consumer:
    """One warpgroup: its patches of a tile."""

    def __init__(self, kernel: StreamedKernel) -> None:
        t, layout = kernel.tiles, kernel.layout
        self.kernel = kernel
        self.at, self.weights = Position(layout.stages), Position(layout.weight_stages)
        self.each = t.bn // 2  # sums of a patch
        self.sums = T.alloc_local((layout.patches * self.each,), "float32")
        self.own = kernel.warpgroup * layout.patches  # its first patch
        self.starts = kernel.starts(self.own)
        weights = shared_address(kernel.weights, 0, 0, 0)
        self.b_at = Scalar(view(weights, t.row_bytes, SIDE * t.row_bytes), "uint64")()
        self.leads = (kernel.warp == 0) & (kernel.lane == 0)

    def run(self) -> None:
        kernel = self.kernel
        if kernel.tiles.split_k > 1:
            self._multiply()
            leave_sums(kernel, self.sums, self.own)
            return
        results, index = Results(kernel, self.sums, self.own), Scalar(kernel.first_tile())
        with T.While(index() < kernel.tile_count):
            corner, group, channel = kernel.tile(index())
            results.begin(group, channel)
            results.fetch_residual(*corner)
            self._multiply()
            results.store(*corner)
            index.set(index() + kernel.stride)

    def _multiply(self) -> None:
        """Add up all channels; each stage is released when the products after it have begun."""
        kernel, layout = self.kernel, self.kernel.layout
        image, before = Scalar(0), Scalar(0)
        with T.serial(kernel.chunks) as chunk:
            kernel.ring.full.wait(self.at.stage, self.at.phase)
            views = kernel.views(self.starts, self.at.stage)
            for number, tap in enumerate(layout.taps):
                kernel.weight_ring.full.wait(self.weights.stage, self.weights.phase)
                ptx("wgmma.fence.sync.aligned")
                self._multiply_tap(views, layout.seen_by(tap), chunk > 0 if number == 0 else True)
                ptx("wgmma.commit_group.sync.aligned")
                ptx("wgmma.wait_group.sync.aligned", 1)
                with when(tirx.all(self.leads, chunk > 0) if number == 0 else self.leads):
                    kernel.weight_ring.empty.arrive(before())
                    if number == 0:
                        kernel.ring.empty.arrive(image())
                before.set(self.weights.stage)
                self.weights.advance()
            image.set(self.at.stage)
            self.at.advance()
        ptx("wgmma.wait_group.sync.aligned", 0)
        tie(self.sums, layout.patches * self.each)
        with when(self.leads):
            kernel.weight_ring.empty.arrive(before())
            kernel.ring.empty.arrive(image())

    def _multiply_tap(self, views: list[Any], seen: int, adds: Any) -> None:
        """Multiply what a tap sees by its weights."""
        kernel, t, layout = self.kernel, self.kernel.tiles, self.kernel.layout
        kind = PTX_TYPES[kernel.dtype]
        product = f"wgmma.mma_async.sync.aligned.m64n{t.bn}k16.f32.{kind}.{kind}"
        stage = T.Cast("uint64", self.weights.stage * (layout.weight_stage_bytes // 16))
        weights = Scalar(self.b_at + stage, "uint64")()
        views = [of_now(each) for each in views]
        for part in range(t.depth // 16):
            for patch, pixels in enumerate(views):
                ptx(
                    product, *(self.sums[patch * self.each + i] for i in range(self.each)),
                    pixels + T.uint64((seen + part * 32) >> 4), weights + T.uint64(part * 32 >> 4),
                    adds if part == 0 and adds is not True else tirx.const(True, "bool"), 1, 1, 0, 0,
                )  # fmt: skip
