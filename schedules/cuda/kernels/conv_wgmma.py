"""The kernel of `WgmmaConv`, for Hopper GPUs: convolution as a product of matrices that are never made.

A patch is up to 64 pixels of the output, a box of columns, rows and images. What one place of
the kernel sees of the image for a patch is a box, too, moved and with gaps where the stride is
larger than 1; the copy engine (TMA) fetches it, `depth` channels at a time, with zeros for what lies
outside of the image: padding costs nothing. (Of channels it does: 24 are read as 32 faster than as 64.) Weights lie as rows of (kh, kw, ci), one an output
channel. So each step of a place and `depth` channels is a product of swizzled shared memory, as in
`gemm_wgmma`: one thread of a producer warpgroup fills a ring, consumer warpgroups multiply with
wgmma, float32 accumulators in registers, each its own patches times `bn` output channels. They share
each tile, or take tiles in turn, so that the end of one tile runs under the products of the next.

Blocks of a cluster may share the weights, each fetching a part of them for all.
A residual is fetched to where the results will lie before they leave, while the sums are made.
Blocks stay and take tile after tile; or, with `split_k` > 1, a cluster of blocks adds up one
tile through its shared memory, each block a stretch of the steps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm import IRModule
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.conv_tiles import PANEL, ROWS, ConvTiles
from tvmops.schedules.cuda.gemm_tiles import PARTIAL_PAD
from tvmops.schedules.cuda.kernels.conv_arrays import conv_module
from tvmops.schedules.cuda.kernels.conv_consumer import Consumer
from tvmops.schedules.cuda.kernels.conv_partials import ClusterSum
from tvmops.schedules.cuda.kernels.conv_producer import Producer, Tile
from tvmops.schedules.cuda.kernels.conv_results import Results
from tvmops.schedules.cuda.words import Barriers, Ring, Scalar, do, ptx, tensor_map, when


class WgmmaConvKernel:
    """`main(x, w, [bias], [residual], y)`, all NHWC."""

    def __init__(self, shape: ConvShape, dtype: str, tiles: ConvTiles) -> None:
        self.given, self.dtype, self.tiles = shape, dtype, tiles
        self.shape = self.multiplied(shape)
        self.grouped = shape.groups > 1
        self.rank = 5 if self.grouped else 4
        self.epilogue = shape.epilogue

    def multiplied(self, shape: ConvShape) -> ConvShape:
        """Return the convolution that is computed: of a 1x1 kernel all pixels are one row of one image."""
        flat = shape.n * shape.h * shape.w
        return replace(shape, n=1, h=1, w=flat) if shape.is_pointwise else shape

    def module(self) -> IRModule:
        return conv_module(self.given, self.dtype, self._begin, self._body, self.tiles.beside)

    def _begin(self, arrays: dict[str, Any]) -> None:
        self.bias, self.residual, self.y = (arrays.get(name) for name in ("bias", "residual", "y"))
        self.maps = self._tensor_maps(arrays)

    def _tensor_maps(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Describe the arrays to the copy engine; what is in no box is never read or written."""
        s, t = self.shape, self.tiles
        places = s.down.size * s.across.size
        maps = {
            "x": self._seen_map(arrays["x"]),
            "w": tensor_map(
                arrays["w"], self.dtype, [s.ci_each, places, s.co], [t.depth, 1, t.bn // t.cluster]
            ),
        }
        return maps | self._result_maps(arrays)

    def _seen_map(self, x: Any) -> Any:
        s = self.shape
        strides = s.across.stride, s.down.stride
        return self._image_map(x, s.ci_each, self.tiles.depth, (s.w, s.h, s.n), strides)

    def _result_maps(self, arrays: dict[str, Any]) -> dict[str, Any]:
        s = self.shape
        if self.tiles.split_k > 1:
            return {}
        names = ("y", "residual") if self.epilogue.residual else ("y",)
        return {name: self._image_map(arrays[name], s.co_each, PANEL, (s.ow, s.oh, s.n)) for name in names}

    def _image_map(
        self,
        array: Any,
        channels: Extent,
        at_once: int,
        image: tuple[Extent, ...],
        strides: tuple[int, int] = (1, 1),
    ) -> Any:
        t = self.tiles
        groups = [self.shape.groups] if self.grouped else []
        ones = [1] * len(groups)
        across, down = strides
        return tensor_map(
            array,
            self.dtype,
            [channels, *groups, *image],
            [at_once, *ones, t.patch_w * across, t.patch_h * down, t.patch_n],
            [1, *ones, across, down, 1],
        )

    def _body(self) -> None:
        s, t = self.shape, self.tiles
        self._count()
        self.block = T.cta_id([self.tile_count * t.split_k if t.split_k > 1 else t.blocks])
        self.cluster_rank = T.cta_id_in_cluster([t.meeting]) if t.meeting > 1 else 0
        self.warpgroup = T.warpgroup_id([t.consumers + 1])
        self.warp, self.lane = T.warp_id_in_wg([4]), T.lane_id([32])
        self._shared_memory()
        with when((self.warpgroup == 0) & (self.warp == 0) & (self.lane == 0)):
            for each in self.maps.values():
                ptx("prefetch.tensormap", T.address_of(each))
            self.ring.init()
            if self.counts_residual:
                self.arrived.init()
            if t.alternate:
                self.turns.init()
            ptx("fence.mbarrier_init.release.cluster")
        do(T.cuda.cluster_sync() if t.meeting > 1 else T.cuda.cta_sync())
        self.await_arrays()
        self.first, self.last = Scalar(0), Scalar(self.steps)
        if t.split_k > 1:
            self.first.set(T.truncdiv(self.steps * self.cluster_rank, t.split_k))
            self.last.set(T.truncdiv(self.steps * (self.cluster_rank + 1), t.split_k))
        with T.If(self.warpgroup == t.consumers):
            with T.Then():
                ptx("setmaxnreg.dec.sync.aligned.u32", t.producer_registers)
                with when(self.warp == 0), when(T.cuda.elect_sync()):
                    Producer(self).run()
            with T.Else():
                ptx("setmaxnreg.inc.sync.aligned.u32", t.consumer_registers)
                consumer = Consumer(self)
                if t.split_k > 1:
                    consumer.share()
                else:
                    consumer.run()
        if t.split_k > 1:
            do(T.cuda.cluster_sync())
            with when(self.warpgroup < t.consumers):
                self.cluster_sum().run()
        if t.meeting > 1:
            do(T.cuda.cluster_sync())  # no block leaves while others read its memory or wait at its barriers

    @property
    def waits_for_residual(self) -> bool:
        return self.epilogue.residual and self.tiles.split_k == 1

    @property
    def counts_residual(self) -> bool:
        """Whether barriers count the bytes of it that the copy engine brings."""
        return self.waits_for_residual

    def _count(self) -> None:
        """Count patches, tiles and steps."""
        s, t = self.shape, self.tiles
        self.across = _ceildiv(s.ow, t.patch_w)
        self.down = _ceildiv(s.oh, t.patch_h)
        patches = self.across * self.down * _ceildiv(s.n, t.patch_n)
        self.columns = _ceildiv(s.co_each, t.bn)
        self.tile_count = _ceildiv(patches, t.all_patches * t.cluster) * s.groups * self.columns
        self.chunks = _ceildiv(s.ci_each, t.depth)
        self.steps = self.chunks * (s.down.size * s.across.size)

    def _shared_memory(self) -> None:
        t = self.tiles
        pool = SMEMPool()
        if t.split_k > 1:  # it takes the place of the ring, when that has been read
            self.partial = pool.alloc((ROWS * t.all_patches, t.bn + PARTIAL_PAD), "float32", align=16)
            pool.move_base_to(0)
        self.pixels = pool.alloc((t.stages, t.all_patches, ROWS, t.depth), self.dtype, align=1024)
        self.weights = pool.alloc((t.stages, t.bn, t.depth), self.dtype, align=1024)
        if t.split_k == 1:
            self.results = pool.alloc((t.consumers, t.store_buffers, ROWS, PANEL), self.dtype, align=1024)
        self.ring = Ring(pool, t.stages, t.sharers * t.cluster)
        if self.counts_residual:
            self.arrived = Barriers(pool, t.consumers, 1)
        if t.alternate:
            self.turns = Barriers(pool, t.consumers, 1)
        pool.commit()

    def first_tile(self) -> Any:
        return T.truncdiv(self.block, self.tiles.meeting) if self.tiles.meeting > 1 else self.block

    def locate(self, index: Any) -> Tile:
        """Find a tile: all output channels of some pixels come one after the other."""
        t = self.tiles

        def own(rows: Any) -> Any:
            """Return the first patch of this block among those of its cluster."""
            rows = rows * t.cluster + self.cluster_rank if t.cluster > 1 else rows
            return Scalar(rows * t.all_patches)()

        rows = Scalar(T.truncdiv(index, self.columns))()
        channel = Scalar((index - rows * self.columns) * t.bn)()
        if not self.grouped:
            return Tile(own(rows), channel, 0)
        groups = self.shape.groups
        return Tile(own(T.truncdiv(rows, groups)), channel, Scalar(T.truncmod(rows, groups))())

    def corner(self, patch: Any) -> tuple[Any, Any, Any]:
        """Return the first column, row and image of a patch; beyond the last one, an image that is not."""
        t = self.tiles
        rest = Scalar(T.truncdiv(patch, self.across))()
        image = Scalar(T.truncdiv(rest, self.down))()
        column, row = (patch - rest * self.across) * t.patch_w, (rest - image * self.down) * t.patch_h
        return Scalar(column)(), Scalar(row)(), Scalar(image * t.patch_n)()

    def moved(self, corner: tuple[Any, Any, Any], pixel: Any) -> tuple[Any, Any, Any]:
        """Return the column, row and image of the `pixel`-th pixel of a patch."""
        t, (x, y, image) = self.tiles, corner
        return (
            x + T.truncmod(pixel, t.patch_w),
            y + T.truncmod(T.truncdiv(pixel, t.patch_w), t.patch_h),
            image + T.truncdiv(pixel, t.patch_w * t.patch_h),
        )

    def await_arrays(self) -> None:
        """Wait until what is read is there: another kernel may make it."""

    def results_of(self, sums: Any) -> Results:
        """Return what stores the sums of a warpgroup."""
        return Results(self, sums)

    def cluster_sum(self) -> ClusterSum:
        return ClusterSum(self)

    def place_in_image(self, channel: Any, group: Any, corner: tuple[Any, Any, Any]) -> tuple[Any, ...]:
        """Return the coordinates of a box of x."""
        return self.place(channel, group, corner)

    def place(self, channel: Any, group: Any, corner: tuple[Any, Any, Any]) -> tuple[Any, ...]:
        """Return the coordinates of a box, innermost first."""
        return (channel, *((group,) if self.grouped else ()), *corner)


def _ceildiv(extent: Extent, size: int) -> Any:
    """Return a quotient rounded up, in a variable lest what the launch computes becomes an argument."""
    if isinstance(extent, int):
        return -(-extent // size)
    return T.truncdiv(extent + (size - 1), size)
