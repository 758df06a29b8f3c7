"""The kernel of `HaloConv`, for Hopper GPUs: what a tile sees of the image is copied once for all taps.

Weights stay in shared memory, all of them; a block stays, too, and takes tile after tile. One thread of
a producer warpgroup lets the copy engine (TMA) bring what the next tiles see, with zeros for what lies
outside of the image; rows and columns that a stride skips lie apart. Warpgroups multiply with wgmma,
which takes a factor that begins at any row of swizzled memory: each tap of the kernel is the same
pixels, some rows further. So a pixel is copied once where `conv_wgmma` copies it once a tap, and nobody
waits within a tile.

A wgmma multiplies 64 pixels, 8 times 8 neighbours: a square, or a run, in which what lies between two
rows of the tile is multiplied in vain. Its results are stored by the threads that hold them.
"""

from __future__ import annotations

from collections.abc import Iterator

from tvm import tirx
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.halo_tiles import ROWS, SIDE, HaloLayout, HaloTiles, Tap
from tvmops.schedules.cuda.kernels.conv_halo_results import Results
from tvmops.schedules.cuda.kernels.conv_producer import LOAD
from tvmops.schedules.cuda.kernels.halo_image import HaloImage, of_now, view
from tvmops.schedules.cuda.words import (
    PTX_TYPES,
    Barriers,
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


class HaloKernel(HaloImage):
    """`main(x, w, [bias], [residual], y)`, all NHWC; channels are known."""

    def __init__(self, shape: ConvShape, dtype: str, tiles: HaloTiles) -> None:
        super().__init__(shape, dtype, tiles, HaloLayout(shape, tiles))

    def _body(self) -> None:
        t, layout = self.tiles, self.layout
        block = T.cta_id([layout.blocks])
        self.warpgroup = T.warpgroup_id([t.consumers + 1])
        self.warp, self.lane = T.warp_id_in_wg([4]), T.lane_id([32])
        self._shared_memory()
        with when((self.warpgroup == 0) & (self.warp == 0) & (self.lane == 0)):
            for each in (self.x, self.w):
                ptx("prefetch.tensormap", T.address_of(each))
            self.ring.init()
            self.ready.init()
            ptx("fence.mbarrier_init.release.cluster")
        do(T.cuda.cta_sync())
        wait_for_kernels_before()
        self.count_tiles()
        self.first, self.stride = Scalar(T.truncdiv(block, layout.jobs))(), layout.blocks // layout.jobs
        job = Scalar(T.truncmod(block, layout.jobs))()
        self.group = Scalar(T.truncdiv(job, layout.columns))()
        self.channel = Scalar((job - self.group * layout.columns) * t.bn)()
        with T.If(self.warpgroup == t.consumers):
            with T.Then():
                ptx("setmaxnreg.dec.sync.aligned.u32", t.producer_registers)
                with when(self.warp == 0), when(T.cuda.elect_sync()):
                    self._produce()
            with T.Else():
                ptx("setmaxnreg.inc.sync.aligned.u32", t.consumer_registers)
                _Consumer(self).run()

    def _shared_memory(self) -> None:
        """Divide it: a run of pixels may reach beyond the last stage, into the weights."""
        t, layout = self.tiles, self.layout
        pool = SMEMPool()
        self.images = pool.alloc((layout.stages, layout.stage_bytes // 2), self.dtype, align=1024)
        self.weights = pool.alloc((layout.weight_bytes // 2,), self.dtype, align=1024)
        rows = layout.patches * ROWS
        self.results = pool.alloc((t.consumers, rows, layout.result_pitch), self.dtype, align=16)
        self.ring = Ring(pool, layout.stages, t.sharers)
        self.ready = Barriers(pool, 1, 1)  # weights
        pool.commit()

    def _produce(self) -> None:
        layout = self.layout
        at, index = Position(layout.stages), Scalar(self.first)
        self._load_weights()
        with T.While(index() < self.count):
            self.ring.empty.wait(at.stage, at.phase ^ 1)
            self.ring.full.expect(at.stage, layout.loaded_bytes)
            seen = self.seen(*self.locate(index()))
            for chunk in range(layout.chunks):
                self.load_planes(at.stage, chunk * len(layout.phases) * layout.plane_bytes, chunk, seen)
            at.advance()
            index.set(index() + self.stride)

    def _load_weights(self) -> None:
        s, t, layout = self.shape, self.tiles, self.layout
        self.ready.expect(0, layout.weight_bytes)
        first = self.group * s.co_each + self.channel
        for tap in range(len(layout.taps)):
            for chunk in range(layout.chunks):
                to = self.weights.ptr_to([(tap * layout.chunks + chunk) * t.bn * t.depth])
                place = (chunk * t.depth, tap, first)
                ptx(LOAD.format(rank=3), to, T.address_of(self.w), *place, self.ready.at(0))


class _Consumer:
    """One warpgroup: its patches of a tile."""

    def __init__(self, kernel: HaloKernel) -> None:
        t, layout = kernel.tiles, kernel.layout
        self.kernel, self.at = kernel, Position(layout.stages)
        self.each = t.bn // 2  # sums of a patch
        self.sums = T.alloc_local((layout.patches * self.each,), "float32")
        own = 0 if t.alternate else kernel.warpgroup * layout.patches  # its first patch
        self.starts = kernel.starts(own)
        weights = shared_address(kernel.weights, 0)
        self.b_at = Scalar(view(weights, t.row_bytes, SIDE * t.row_bytes), "uint64")()
        self.results = Results(kernel, self.sums, own)
        self.results.begin(kernel.group, kernel.channel)

    def run(self) -> None:
        kernel, t = self.kernel, self.kernel.tiles
        index = Scalar(kernel.first)
        if t.alternate:
            index.set(index() + kernel.warpgroup * kernel.stride)
            self.at.skip(kernel.warpgroup)
        with when(index() < kernel.count):
            kernel.ready.wait(0, 0)
        with T.While(index() < kernel.count):
            corner = kernel.locate(index())
            self.results.fetch_residual(*corner)
            kernel.ring.full.wait(self.at.stage, self.at.phase)
            self._multiply()
            with when((kernel.warp == 0) & (kernel.lane == 0)):
                kernel.ring.empty.arrive(self.at.stage)
            self.results.store(*corner)
            index.set(index() + kernel.stride * (t.consumers if t.alternate else 1))
            if t.alternate:
                self.at.skip(t.consumers)
            else:
                self.at.advance()

    def _multiply(self) -> None:
        kernel, t, layout = self.kernel, self.kernel.tiles, self.kernel.layout
        kind = PTX_TYPES[kernel.dtype]
        product = f"wgmma.mma_async.sync.aligned.m64n{t.bn}k16.f32.{kind}.{kind}"
        views, b_at = kernel.views(self.starts, self.at.stage), self.b_at
        ptx("wgmma.fence.sync.aligned")
        for number, tap in enumerate(layout.taps):
            views, b_at = [of_now(each) for each in views], of_now(b_at)
            for step, (a, b) in enumerate(self._steps(number, tap)):
                for patch, pixels in enumerate(views):
                    ptx(
                        product, *(self.sums[patch * self.each + i] for i in range(self.each)),
                        pixels + T.uint64(a >> 4), b_at + T.uint64(b >> 4),
                        tirx.const(number + step > 0, "bool"), 1, 1, 0, 0,
                    )  # fmt: skip
        ptx("wgmma.commit_group.sync.aligned")
        ptx("wgmma.wait_group.sync.aligned", 0)
        tie(self.sums, layout.patches * self.each)

    def _steps(self, number: int, tap: Tap) -> Iterator[tuple[int, int]]:
        """Yield where the factors of a tap's products lie, in bytes from the begin of a stage and of the weights."""
        t, layout = self.kernel.tiles, self.kernel.layout
        for chunk in range(layout.chunks):
            a = chunk * len(layout.phases) * layout.plane_bytes + layout.seen_by(tap)
            b = (number * layout.chunks + chunk) * t.bn * t.row_bytes
            yield from ((a + part * 32, b + part * 32) for part in range(t.depth // 16))
