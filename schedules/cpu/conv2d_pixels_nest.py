"""The loops of `tvmops.schedules.cpu.conv2d_pixels`, which says what each knob means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

from tvm import IRModule, tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvKernel, ConvShape
from tvmops.schedules.cpu.conv2d_image import PaddedImage
from tvmops.schedules.cpu.conv2d_pixels_tile import Cut, Piece, PixelTiling, Tile
from tvmops.schedules.cpu.emit import (
    Extent,
    Span,
    broadcast,
    ceildiv,
    chunk,
    chunks,
    divides,
    lanes,
    load,
    minimum,
    share,
    store,
)


class PixelsNest:
    """y[co, pixel] = sum over (ci, r, s) of w[co, (ci, r, s)] * x[ci, pixel shifted by (r, s)]."""

    def __init__(self, shape: ConvShape, dtype: str, width: int, tiling: PixelTiling) -> None:
        self.kernel = ConvKernel(shape, dtype, width)
        self.shape, self.dtype, self.width = shape, dtype, width
        self.tiling = tiling

    def module(self) -> IRModule:
        return self.kernel.module(self._tasks)

    @property
    def flat(self) -> bool:
        """True if the image is read where it lies, as one long row."""
        return self.shape.is_pointwise

    @cached_property
    def cut(self) -> Cut:
        return Cut(self.width, self.tiling.nv, masks=self.flat)

    @cached_property
    def pixels(self) -> Extent:
        return self.shape.oh * self.shape.ow

    def _tasks(self) -> None:
        """Give each task some channels and some pixels of one group of one image."""
        shape, tiling = self.shape, self.tiling
        parts = tiling.split_co * tiling.split_px
        count = shape.n * shape.groups * parts
        if isinstance(count, int) and count == 1:
            self._task(0, 0, 0, 0)
            return
        with T.parallel(count) if tiling.parallel else T.serial(count) as task:
            part, image = task % parts, task // parts
            channels, pixels = part // tiling.split_px, part % tiling.split_px
            if shape.groups == 1:
                self._task(image, 0, channels, pixels)
            else:
                self._task(image // shape.groups, image % shape.groups, channels, pixels)

    def _task(self, image: Extent, group: Extent, channels: Extent, pixels: Extent) -> None:
        tiling = self.tiling
        tiles = share(Span(0, ceildiv(self.shape.co_each, tiling.mr)), channels, tiling.split_co)
        if self.flat:
            steps = share(Span(0, ceildiv(self.pixels, self.cut.step)), pixels, tiling.split_px)
            _FlatTask(self, image, group, tiles, steps).emit()
        else:
            rows = share(Span(0, self.shape.oh), pixels, tiling.split_px)
            _RowsTask(self, image, group, tiles, rows).emit()


class _Task(ABC):
    """One group of one image, for some tiles of its output channels."""

    def __init__(self, nest: PixelsNest, image: Extent, group: Extent, tiles: Span) -> None:
        self.nest = nest
        self.image, self.group, self.tiles = image, group, tiles

    @abstractmethod
    def emit(self) -> None: ...

    def tile(self, index: Extent) -> Tile:
        nest = self.nest
        return Tile(nest.kernel, nest.tiling, self.group, (self.tiles.start + index) * nest.tiling.mr)

    @property
    def first_channel(self) -> Extent:
        """The first output channel of the group."""
        return self.group * self.nest.shape.co_each

    def finish(self, value: tirx.Expr, channel: Extent, row: Extent, column: Extent, piece: Piece) -> None:
        """Apply the epilogue to a vector of sums and store it."""
        kernel, width, at = self.nest.kernel, piece.width, [self.image, channel, row]
        done = self.nest.shape.epilogue.apply(
            value,
            width,
            lambda: broadcast(kernel.bias[channel], width),
            lambda: load(kernel.residual, at, column, width, piece.limit),
        )
        store(kernel.y, done, at, column, width, piece.limit)


class _FlatTask(_Task):
    """Pixels are one long row; x is read where it lies, or from a panel of its own."""

    def __init__(self, nest: PixelsNest, image: Extent, group: Extent, tiles: Span, steps: Span) -> None:
        super().__init__(nest, image, group, tiles)
        self.steps = steps

    def emit(self) -> None:
        nest = self.nest
        if nest.tiling.pack_x:
            with T.serial(self.steps.count) as step:
                start = (self.steps.start + step) * nest.cut.step
                panel = self._pack_x(start)
                with T.serial(self.tiles.count) as index:
                    self._tile(self.tile(index), start, None, panel)
            return
        with T.serial(self.tiles.count) as index:
            tile = self.tile(index)
            packed = tile.pack_w() if nest.tiling.pack_w else None
            with T.serial(self.steps.count) as step:
                self._tile(tile, (self.steps.start + step) * nest.cut.step, packed, None)

    def _pack_x(self, start: Extent) -> Any:
        """Copy the pixels of a tile, all channels, to one place."""
        nest = self.nest
        panel = T.alloc_buffer((nest.shape.ci_each, nest.cut.step), nest.dtype)

        def copy(pieces: list[Piece]) -> None:
            with T.serial(nest.shape.ci_each) as c:
                for piece in pieces:
                    T.buffer_store(panel, self._read(start, c, piece), [c, lanes(piece.at, piece.width)])

        nest.cut.at(start, nest.pixels, copy)
        return panel

    def _read(self, start: Extent, c: Extent, piece: Piece) -> tirx.Expr:
        at = [self.image, self.group * self.nest.shape.ci_each + c, 0]
        return load(self.nest.kernel.x, at, start + piece.at, piece.width, piece.limit)

    def _tile(self, tile: Tile, start: Extent, packed: Any | None, panel: Any | None) -> None:
        def x(c: Extent, r: Extent, s: int, piece: Piece) -> tirx.Expr:
            if panel is not None:
                return panel[c, lanes(piece.at, piece.width)]
            return self._read(start, c, piece)

        def emit(pieces: list[Piece]) -> None:
            sums = tile.sums(pieces, packed, x, unroll_rows=False)
            for i in range(self.nest.tiling.mr):
                self._store(sums, i, tile.first + i, start, pieces)

        self.nest.cut.at(start, self.nest.pixels, emit)

    def _store(self, sums: Any, i: int, index: Extent, start: Extent, pieces: list[Piece]) -> None:
        nest = self.nest

        def put() -> None:
            for piece in pieces:
                value = sums[i, lanes(piece.at, piece.width)]
                self.finish(value, self.first_channel + index, 0, start + piece.at, piece)

        if divides(nest.tiling.mr, nest.shape.co_each):
            put()
        else:
            with T.If(index < nest.shape.co_each), T.Then():
                put()


class _RowsTask(_Task):
    """Some rows of the output at a time, from a padded copy of the rows of x under the kernel."""

    def __init__(self, nest: PixelsNest, image: Extent, group: Extent, tiles: Span, rows: Span) -> None:
        super().__init__(nest, image, group, tiles)
        self.rows = rows

    def emit(self) -> None:
        nest, whole, step = self.nest, self.rows.count, self.nest.cut.step
        each = nest.tiling.rows or ceildiv(nest.shape.oh, nest.tiling.split_px)
        if isinstance(whole, int):
            each = min(each, whole)
        padded = PaddedImage(nest.shape, nest.dtype, nest.width, each, slack=step)
        most = (each - 1) * padded.pitch + nest.shape.ow  # pixels, those between rows included
        staged = T.alloc_buffer((nest.tiling.mr, ceildiv(most, step) * step), nest.dtype)
        with T.serial(chunks(self.rows, each)) as block:
            rows = chunk(self.rows, block, each)
            image = padded.copy(nest.kernel.x, self.image, self.group, rows)
            pixels = (rows.count - 1) * padded.pitch + nest.shape.ow
            with T.serial(self.tiles.count) as index:
                tile = self.tile(index)
                packed = tile.pack_w() if nest.tiling.pack_w else None
                with T.serial(ceildiv(pixels, step)) as j:
                    self._tile(tile, j * step, pixels, padded, image, packed, staged)
                self._write(staged, tile.first, padded.pitch, rows)

    def _tile(
        self,
        tile: Tile,
        start: Extent,
        end: Extent,
        padded: PaddedImage,
        image: Any,
        packed: Any | None,
        staged: Any,
    ) -> None:
        def x(c: Extent, r: Extent, s: int, piece: Piece) -> tirx.Expr:
            return image[lanes(padded.offset(c, r, s) + start + piece.at, piece.width)]

        def emit(pieces: list[Piece]) -> None:
            sums = tile.sums(pieces, packed, x, padded.unrolls_rows)
            for i in range(self.nest.tiling.mr):
                for piece in pieces:
                    value = sums[i, lanes(piece.at, piece.width)]
                    T.buffer_store(staged, value, [i, lanes(start + piece.at, piece.width)])

        self.nest.cut.at(start, end, emit)

    def _write(self, staged: Any, first: Extent, pitch: Extent, rows: Span) -> None:
        """Copy sums to y, row by row, leaving out what lies between rows."""
        nest, ow = self.nest, self.nest.shape.ow
        mr, channels = nest.tiling.mr, nest.shape.co_each
        left = mr if divides(mr, channels) else minimum(mr, channels - first)
        with T.serial(left) as i, T.serial(rows.count) as row:
            channel = self.first_channel + first + i

            def put(start: Extent, piece: Piece) -> None:
                value = staged[i, lanes(row * pitch + start, piece.width)]
                self.finish(value, channel, rows.start + row, start, piece)

            with T.serial(ow // nest.width) as v:
                put(v * nest.width, Piece(0, nest.width))
            if not divides(nest.width, ow):
                whole = ow // nest.width * nest.width
                if isinstance(ow, int):
                    rest = ow - whole
                    short = 1 << (rest - 1).bit_length()
                    put(whole, Piece(0, short, ow if short != rest else None))
                else:
                    with T.If(whole < ow), T.Then():
                        put(whole, Piece(0, nest.width, ow))
