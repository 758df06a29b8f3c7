"""The kernel of `GroupedConv`: few channels a group, by mma.sync from a tile that many groups share.

What a tile of the output sees of the image, of as many channels as fill whole lines of memory, comes
to shared memory once. Pixels lie there an odd number of 16-byte pieces apart, so that ldmatrix meets
no bank twice, and what a place of the kernel sees is a constant away from what the first sees:
8 channels of one tap are 8 of k, whatever follows them. Where columns are strided, those that
neighbouring pixels of the output see lie side by side. Groups of which a piece holds several are
multiplied together, with zeros among the weights. Weights stay in shared memory; blocks stay and
take tile after tile, whose copies run under the products of another. Results leave as whole lines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import IRModule, tirx
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.grouped_tiles import PIECE_BYTES, ROWS, GroupedLayout, GroupedTiles
from tvmops.schedules.cuda.kernels.conv_arrays import conv_module
from tvmops.schedules.cuda.kernels.conv_grouped_image import Image
from tvmops.schedules.cuda.kernels.conv_grouped_results import Results
from tvmops.schedules.cuda.words import (
    PROGRAMMATIC_LAUNCH,
    PTX_TYPES,
    Scalar,
    do,
    ptx,
    wait_for_kernels_before,
    when,
)


class GroupedKernel:
    """`main(x, w, [bias], [residual], y)`, NHWC."""

    def __init__(self, shape: ConvShape, dtype: str, tiles: GroupedTiles) -> None:
        self.shape, self.dtype, self.tiles = shape, dtype, tiles
        self.layout = GroupedLayout(shape, tiles)

    def module(self) -> IRModule:
        module = conv_module(self.shape, self.dtype, self._begin, self._body, self.tiles.beside)
        if self.tiles.early:
            module["main"] = module["main"].with_attr(*PROGRAMMATIC_LAUNCH)
        return module

    def _begin(self, arrays: dict[str, Any]) -> None:
        self.arrays = arrays

    def _body(self) -> None:
        s, t, layout = self.shape, self.tiles, self.layout
        tiles = _over(s.n, t.tile_n) * _over(s.oh, t.tile_h) * _over(s.ow, t.tile_w)
        places = tirx.min(tiles, layout.places) if not isinstance(tiles, int) else min(tiles, layout.places)
        block = T.cta_id([places * layout.blocks_deep])
        self.warp, self.lane = T.warp_id([t.warps]), T.lane_id([32])
        self.thread = Scalar(self.warp * 32 + self.lane)()
        pool = SMEMPool()
        self.weights = pool.alloc((layout.weight_bytes // 2,), self.dtype, align=16)
        self.stages = pool.alloc((t.stages * layout.stage_bytes // 2,), self.dtype, align=16)
        self.results = pool.alloc((layout.result_bytes // 2,), self.dtype, align=16)
        pool.commit()
        self.bundle = Scalar(T.truncmod(block, layout.blocks_deep))()
        self.across = Scalar(_over(s.ow, t.tile_w))()
        self.down = Scalar(_over(s.oh, t.tile_h))()
        self.count = Scalar(self.across * self.down * _over(s.n, t.tile_n))()
        self._prepare()
        image, results = Image(self), Results(self)
        if t.early:
            wait_for_kernels_before()
        image.stage_weights()
        first = Scalar(T.truncdiv(block, layout.blocks_deep))()
        step = Scalar(places)()
        for stage in range(t.stages):
            with when(first + stage * step < self.count):
                image.fetch(stage, *self._corner(first + stage * step))
            ptx("cp.async.commit_group")
        index, use = Scalar(first), Scalar(0)
        with T.While(index() < self.count):
            corner = self._corner(index())
            ptx("cp.async.wait_group", t.stages - 1)
            do(T.cuda.cta_sync())  # and the last results have left
            self._multiply(use(), results, corner)
            do(T.cuda.cta_sync())
            ahead = Scalar(index() + t.stages * step)()
            with when(ahead < self.count):
                image.fetch(use(), *self._corner(ahead))
            ptx("cp.async.commit_group")
            results.leave(*corner)
            index.set(index() + step)
            if t.stages > 1:
                use.set(tirx.Select(use() == t.stages - 1, 0, use() + 1))
        ptx("cp.async.wait_group", 0)

    def _corner(self, index: Any) -> tuple[Any, Any, Any]:
        """Return the image, the row and the column of the output at which a tile begins."""
        t = self.tiles
        row = Scalar(T.truncdiv(index, self.across))()
        image = Scalar(T.truncdiv(row, self.down))()
        y, x = (row - image * self.down) * t.tile_h, (index - row * self.across) * t.tile_w
        return Scalar(image * t.tile_n)(), Scalar(y)(), Scalar(x)()

    def each_line(self, lines: int, do_line: Callable[[Any], None]) -> None:
        """Do something for each line of a tile, of which a warp has its share."""
        warps = self.tiles.warps
        with T.serial(-(-lines // warps)) as step:
            line = Scalar(step * warps + self.warp)()
            with when(line < lines):
                do_line(line)

    def each_piece(self, columns: int, pieces: int, do_piece: Callable[[Any, Any], None]) -> None:
        """Do something for each piece of a line of pixels, of which a lane has its share."""
        for at in range(0, columns * pieces, 32):
            if 32 % pieces == 0:  # always the same piece of a pixel
                column = at // pieces + T.truncdiv(self.lane, pieces)
                piece = T.truncmod(self.lane, pieces)
            else:
                column = Scalar(T.truncdiv(at + self.lane, pieces))()
                piece = Scalar(at + self.lane - column * pieces)()
            if at + 32 <= columns * pieces:
                do_piece(column, piece)
                continue
            with when(at + self.lane < columns * pieces):
                do_piece(column, piece)

    def _prepare(self) -> None:
        t, layout = self.tiles, self.layout
        self.sums = T.alloc_local((t.parts * (t.bn // 8) * 4,), "float32")
        self.a_parts, self.b_parts = (
            T.alloc_local((4,), "uint32"),
            T.alloc_local((t.bn // 8 * 4,), "uint32"),
        )
        self.starts = T.alloc_local((t.parts,), "uint32")
        self.row = Scalar(T.truncdiv(self.warp, t.warps_n) * (t.parts * ROWS))()
        self.job = Scalar(T.truncmod(self.warp, t.warps_n))()
        self.base = [
            Scalar(T.cuda.cvta_generic_to_shared(each.ptr_to([0])), "uint32")()
            for each in (self.weights, self.stages)
        ]

    def _multiply(self, stage: Any, results: Results, corner: tuple[Any, Any, Any]) -> None:
        """Compute a tile: each warp its pixels and its channels."""
        t, layout = self.tiles, self.layout
        bn = t.bn
        of_unit = layout.co // bn
        with T.serial(t.units * of_unit // t.warps_n) as number:
            job = Scalar(number * t.warps_n + self.job)()
            unit = T.truncdiv(job, of_unit)
            weights = self.base[0] + T.Cast(
                "uint32",
                (job * bn + self.lane % 8) * layout.weight_pitch + T.truncdiv(self.lane, 8) * PIECE_BYTES,
            )
            weights = Scalar(weights, "uint32")()
            tile = Scalar(
                self.base[1]
                + T.Cast("uint32", stage * layout.stage_bytes + unit * (layout.pieces * PIECE_BYTES)),
                "uint32",
            )()
            with T.serial(t.rounds) as turn:
                first = Scalar(turn * (t.warps_m * t.parts * ROWS) + self.row)()
                self._start(first, tile)
                self._add(weights)
                results.place(first, job * bn, corner)

    def _start(self, first: Any, tile: Any) -> None:
        """Find where the windows of this lane's pixels begin."""
        s, t, layout = self.shape, self.tiles, self.layout
        for part in range(t.parts):
            pixel = Scalar(tirx.min(first + part * ROWS + self.lane % 16, t.pixels - 1))()
            line = Scalar(T.truncdiv(pixel, t.tile_w))()
            image = T.truncdiv(line, t.tile_h)
            y, x = T.truncmod(line, t.tile_h), pixel - line * t.tile_w
            place = (image * layout.h + y * s.down.stride) * layout.line + x
            T.buffer_store(self.starts, tile + T.Cast("uint32", place * layout.pitch), [part])

    def _add(self, weights: Any) -> None:
        t, layout = self.tiles, self.layout
        columns = t.bn // 8
        for i in range(t.parts * columns * 4):
            T.buffer_store(self.sums, T.float32(0), [i])
        for chunk in range(0, layout.chunks, 2):
            if chunk % 4 == 0:
                for j in range(columns):
                    address = weights + T.uint32(j * 8 * layout.weight_pitch + chunk * PIECE_BYTES)
                    self._load(self.b_parts, j * 4, address)
            is_last = chunk + 1 == layout.chunks
            low, high = self._offset(chunk), self._offset(chunk if is_last else chunk + 1)
            offset = Scalar(tirx.Select(self.lane < 16, T.uint32(low), T.uint32(high)), "uint32")()
            for part in range(t.parts):
                self._load(self.a_parts, 0, self.starts[part] + offset)
                for j in range(columns):
                    self._mma((part * columns + j) * 4, j * 4 + chunk % 4, 1 if is_last else 2)

    def _offset(self, chunk: int) -> int:
        """Return how far from the window's begin its `chunk`-th 8 channels lie."""
        s, layout = self.shape, self.layout
        tap, piece = divmod(chunk, layout.pieces)
        r, c = divmod(tap, s.across.size)
        column = c * s.across.dilation
        place = column % s.across.stride * layout.column + column // s.across.stride
        return (r * s.down.dilation * layout.line + place) * layout.pitch + piece * PIECE_BYTES

    def _load(self, registers: Any, at: int, address: Any) -> None:
        ptx("ldmatrix.sync.aligned.m8n8.x4.shared.b16", *(registers[at + i] for i in range(4)), address)

    def _mma(self, at: int, b: int, chunks: int) -> None:
        kind = PTX_TYPES[self.dtype]
        own = [self.sums[at + i] for i in range(4)]
        ptx(
            f"mma.sync.aligned.m16n8k{8 * chunks}.row.col.f32.{kind}.{kind}.f32",
            *own, *(self.a_parts[i] for i in range(2 * chunks)),
            *(self.b_parts[b + i] for i in range(chunks)), *own,
        )  # fmt: skip


def _over(extent: Any, size: int) -> Any:
    if isinstance(extent, int):
        return -(-extent // size)
    return T.truncdiv(extent + (size - 1), size)
