"""The loops of `tvmops.schedules.cpu.conv2d_pixels`, which says what each knob means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tvm import IRModule, tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvKernel, ConvShape
from tvmops.schedules.cpu.conv2d_image import PaddedImage
from tvmops.schedules.cpu.emit import (
    Extent,
    Span,
    branch,
    broadcast,
    ceildiv,
    chunk,
    chunks,
    divides,
    lanes,
    load,
    minimum,
    registers,
    share,
    store,
    zeros,
)
from tvmops.signatures.layouts import PANEL
from tvmops.space import Config


@dataclass(frozen=True)
class Tiling:
    """The knobs, as numbers."""

    mr: int
    nv: int
    cu: int
    rows: int
    pack_w: bool
    pack_x: bool
    split_co: int
    split_px: int
    parallel: bool

    @classmethod
    def of(cls, config: Config) -> Tiling:
        return cls(**config.as_dict())  # type: ignore[arg-type]


@dataclass(frozen=True)
class Piece:
    """Some neighbouring lanes of a tile: a vector, or what is left over at the end."""

    at: int
    width: int
    limit: Extent | None = None  # pixels from here on are not there


class PixelsNest:
    """y[co, pixel] = sum over (ci, r, s) of w[co, (ci, r, s)] * x[ci, pixel shifted by (r, s)]."""

    def __init__(self, shape: ConvShape, dtype: str, width: int, tiling: Tiling) -> None:
        self.kernel = ConvKernel(shape, dtype, width)
        self.shape, self.dtype, self.width = shape, dtype, width
        self.tiling = tiling
        self.step = tiling.nv * width  # pixels of a tile

    def module(self) -> IRModule:
        return self.kernel.module(self._tasks)

    @property
    def flat(self) -> bool:
        """True if the image is read where it lies, as one long row."""
        return self.shape.is_pointwise

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
            steps = share(Span(0, ceildiv(self.pixels, self.step)), pixels, tiling.split_px)
            _FlatTask(self, image, group, tiles, steps).emit()
        else:
            rows = share(Span(0, self.shape.oh), pixels, tiling.split_px)
            _RowsTask(self, image, group, tiles, rows).emit()

    def channel(self, group: Extent, index: Extent, tile_row: int | None = None) -> Extent:
        """Return which output channel `index` of a group is; the last one where it lies beyond."""
        if not divides(self.tiling.mr, self.shape.co_each):
            index = minimum(index, self.shape.co_each - 1)
        return group * self.shape.co_each + index

    def finish(
        self, value: tirx.Expr, image: Extent, channel: Extent, row: Extent, column: Extent, piece: Piece
    ) -> None:
        """Apply the epilogue to a vector of sums and store it."""
        kernel, width, at = self.kernel, piece.width, [image, channel, row]
        done = self.shape.epilogue.apply(
            value,
            width,
            lambda: broadcast(kernel.bias[channel], width),
            lambda: load(kernel.residual, at, column, width, piece.limit),
        )
        store(kernel.y, done, at, column, width, piece.limit)

    def pack_w(self, group: Extent, tile: Extent) -> Any:
        """Copy the weights of a tile's channels to rows whose pitch is no power of two."""
        shape, mr = self.shape, self.tiling.mr
        assert isinstance(shape.ci_each, int)
        length = shape.ci_each * shape.down.size * shape.across.size
        whole = length // self.width * self.width
        packed = T.alloc_buffer((mr, -(-length // self.width) * self.width + 16), self.dtype)
        for i in range(mr):
            at = [self.channel(group, tile * mr + i), 0, 0]
            with T.serial(whole // self.width) as v:
                value = load(self.kernel.w, at, v * self.width, self.width, None)
                T.buffer_store(packed, value, [i, lanes(v * self.width, self.width)])
            with T.serial(length - whole) as k:
                T.buffer_store(packed, self.kernel.w[(*at, whole + k)], [i, whole + k])
        return packed


class _Task:
    """One group of one image, for some tiles of its output channels."""

    must_unroll = False  # the rows of the kernel

    def __init__(self, nest: PixelsNest, image: Extent, group: Extent, tiles: Span) -> None:
        self.nest = nest
        self.image, self.group, self.tiles = image, group, tiles

    def sums(
        self,
        tile: Extent,
        pieces: list[Piece],
        packed: Any | None,
        x: Callable[[Extent, Extent, int, Piece], tirx.Expr],
    ) -> Any:
        """Sum over the channels and the kernel: mr output channels of the pixels of `pieces`."""
        nest, shape, mr = self.nest, self.nest.shape, self.nest.tiling.mr
        accumulators = registers((mr, nest.step), nest.dtype)
        for i in range(mr):
            for piece in pieces:
                T.buffer_store(
                    accumulators, zeros(nest.dtype, piece.width), [i, lanes(piece.at, piece.width)]
                )
        first = [nest.channel(self.group, tile * mr + i) for i in range(mr)]
        taps = shape.down.size * shape.across.size

        def weight(i: int, c: Extent, r: Extent, s: int) -> tirx.Expr:
            if shape.packed is not None:
                k = c * taps + r * shape.across.size + s
                return nest.kernel.w[first[i] // PANEL, k, first[i] % PANEL]
            if packed is None:
                return nest.kernel.w[first[i], c, r, s]
            return packed[i, c * taps + r * shape.across.size + s]

        def step(c: Extent, r: Extent, s: int) -> None:
            pixels = [x(c, r, s, piece) for piece in pieces]
            for i in range(mr):
                scalar = weight(i, c, r, s)
                for piece, values in zip(pieces, pixels):
                    at = lanes(piece.at, piece.width)
                    total = accumulators[i, at] + broadcast(scalar, piece.width) * values
                    T.buffer_store(accumulators, total, [i, at])

        self._over_k(step)
        return accumulators

    def _over_k(self, step: Callable[[Extent, Extent, int], None]) -> None:
        """Call `step` for each (c, r, s): those of the kernel unrolled where they are few."""
        shape, cu = self.nest.shape, self.nest.tiling.cu
        kh, kw = shape.down.size, shape.across.size
        unroll_rows = kh * kw <= 9 or self.must_unroll

        def taps(c: Extent) -> None:
            if unroll_rows:
                for r in range(kh):
                    for s in range(kw):
                        step(c, r, s)
            else:
                with T.serial(kh) as r:
                    for s in range(kw):
                        step(c, r, s)

        channels = shape.ci_each
        with T.serial(channels // cu) as outer:
            for u in range(cu):
                taps(outer * cu + u)
        if not divides(cu, channels):
            with T.serial(channels % cu) as rest:
                taps(channels // cu * cu + rest)

    def at_pieces(
        self, start: Extent, count: Extent, masked: bool, emit: Callable[[list[Piece]], None]
    ) -> None:
        """Call `emit` with the pieces of a tile at pixel `start` of `count`: a whole one, or the last."""
        nest = self.nest
        whole = [Piece(v * nest.width, nest.width) for v in range(nest.tiling.nv)]
        if divides(nest.step, count):
            emit(whole)
        elif isinstance(count, int):
            last = self._last_pieces(count, masked)
            if count < nest.step:
                emit(last)
            else:
                branch(start + nest.step <= count, lambda: emit(whole), lambda: emit(last))
        elif masked:
            limited = [Piece(piece.at, piece.width, count) for piece in whole]
            branch(start + nest.step <= count, lambda: emit(whole), lambda: emit(limited))
        else:
            emit(whole)

    def _last_pieces(self, count: int, masked: bool) -> list[Piece]:
        """Cut what is left of `count` pixels into whole vectors and one as short as can hold the rest."""
        width, left = self.nest.width, count % self.nest.step
        pieces = [Piece(at, width) for at in range(0, left - width + 1, width)]
        rest = left % width
        if rest:
            short = 1 << (rest - 1).bit_length()
            pieces.append(Piece(left - rest, short, count if masked and short != rest else None))
        return pieces


class _FlatTask(_Task):
    """Pixels are one long row; x is read where it lies, or from a panel of its own."""

    def __init__(self, nest: PixelsNest, image: Extent, group: Extent, tiles: Span, steps: Span) -> None:
        super().__init__(nest, image, group, tiles)
        self.steps = steps

    def emit(self) -> None:
        tiling = self.nest.tiling
        if tiling.pack_x:
            with T.serial(self.steps.count) as step:
                start = (self.steps.start + step) * self.nest.step
                panel = self._pack_x(start)
                with T.serial(self.tiles.count) as index:
                    self._tile(self.tiles.start + index, start, None, panel)
            return
        with T.serial(self.tiles.count) as index:
            tile = self.tiles.start + index
            packed = self.nest.pack_w(self.group, tile) if tiling.pack_w else None
            with T.serial(self.steps.count) as step:
                self._tile(tile, (self.steps.start + step) * self.nest.step, packed, None)

    def _pack_x(self, start: Extent) -> Any:
        """Copy the pixels of a tile, all channels, to one place."""
        nest = self.nest
        panel = T.alloc_buffer((nest.shape.ci_each, nest.step), nest.dtype)

        def copy(pieces: list[Piece]) -> None:
            with T.serial(nest.shape.ci_each) as c:
                for piece in pieces:
                    T.buffer_store(panel, self._read(start, c, piece), [c, lanes(piece.at, piece.width)])

        self.at_pieces(start, nest.pixels, True, copy)
        return panel

    def _read(self, start: Extent, c: Extent, piece: Piece) -> tirx.Expr:
        at = [self.image, self.group * self.nest.shape.ci_each + c, 0]
        return load(self.nest.kernel.x, at, start + piece.at, piece.width, piece.limit)

    def _tile(self, tile: Extent, start: Extent, packed: Any | None, panel: Any | None) -> None:
        def x(c: Extent, r: Extent, s: int, piece: Piece) -> tirx.Expr:
            if panel is not None:
                return panel[c, lanes(piece.at, piece.width)]
            return self._read(start, c, piece)

        def emit(pieces: list[Piece]) -> None:
            sums = self.sums(tile, pieces, packed, x)
            for i in range(self.nest.tiling.mr):
                self._store(sums, i, tile, start, pieces)

        self.at_pieces(start, self.nest.pixels, True, emit)

    def _store(self, sums: Any, i: int, tile: Extent, start: Extent, pieces: list[Piece]) -> None:
        nest = self.nest
        index = tile * nest.tiling.mr + i
        channel = self.group * nest.shape.co_each + index

        def put() -> None:
            for piece in pieces:
                value = sums[i, lanes(piece.at, piece.width)]
                nest.finish(value, self.image, channel, 0, start + piece.at, piece)

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
        nest, whole = self.nest, self.rows.count
        each = nest.tiling.rows or ceildiv(nest.shape.oh, nest.tiling.split_px)
        if isinstance(whole, int):
            each = min(each, whole)
        padded = PaddedImage(nest.shape, nest.dtype, nest.width, each, slack=nest.step)
        self.must_unroll = padded.unrolls_rows
        most = (each - 1) * padded.pitch + nest.shape.ow  # pixels, those between rows included
        staged = T.alloc_buffer((nest.tiling.mr, ceildiv(most, nest.step) * nest.step), nest.dtype)
        with T.serial(chunks(self.rows, each)) as block:
            rows = chunk(self.rows, block, each)
            image = padded.copy(nest.kernel.x, self.image, self.group, rows)
            pixels = (rows.count - 1) * padded.pitch + nest.shape.ow
            with T.serial(self.tiles.count) as index:
                tile = self.tiles.start + index
                packed = nest.pack_w(self.group, tile) if nest.tiling.pack_w else None
                with T.serial(ceildiv(pixels, nest.step)) as step:
                    self._tile(tile, step * nest.step, pixels, padded, image, packed, staged)
                self._write(staged, tile, padded.pitch, rows)

    def _tile(
        self,
        tile: Extent,
        start: Extent,
        pixels: Extent,
        padded: PaddedImage,
        image: Any,
        packed: Any | None,
        staged: Any,
    ) -> None:
        def x(c: Extent, r: Extent, s: int, piece: Piece) -> tirx.Expr:
            return image[lanes(padded.offset(c, r, s) + start + piece.at, piece.width)]

        def emit(pieces: list[Piece]) -> None:
            sums = self.sums(tile, pieces, packed, x)
            for i in range(self.nest.tiling.mr):
                for piece in pieces:
                    value = sums[i, lanes(piece.at, piece.width)]
                    T.buffer_store(staged, value, [i, lanes(start + piece.at, piece.width)])

        self.at_pieces(start, pixels, False, emit)

    def _write(self, staged: Any, tile: Extent, pitch: Extent, rows: Span) -> None:
        """Copy sums to y, row by row, leaving out what lies between rows."""
        nest, ow = self.nest, self.nest.shape.ow
        mr = nest.tiling.mr
        left = minimum(mr, nest.shape.co_each - tile * mr) if not divides(mr, nest.shape.co_each) else mr
        with T.serial(left) as i, T.serial(rows.count) as row:
            channel = self.group * nest.shape.co_each + tile * mr + i

            def put(start: Extent, piece: Piece) -> None:
                value = staged[i, lanes(row * pitch + start, piece.width)]
                nest.finish(value, self.image, channel, rows.start + row, start, piece)

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
