"""The image of a Winograd convolution, transformed: v = B^T d B for each tile d.

The two products are taken apart. Down the columns first: neighbouring tiles share columns,
so each is transformed once for a whole row of tiles, and zeros of the padding are written
here, so that nothing later needs to look for edges. Then along the rows, tile by tile.

All is vectorised over channels. Where those do not lie side by side, the pixels under a
block are transposed first, squares of width x width in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cpu.emit import (
    Extent,
    branch,
    ceildiv,
    divides,
    lanes,
    load,
    load_or_zeros,
    minimum,
    transpose,
    zeros,
)
from tvmops.schedules.cpu.linear import Vector, apply
from tvmops.schedules.cpu.winograd_grid import Block, Grid
from tvmops.signatures.winograd import transforms

_DTYPE = "float32"
_Pixel = Callable[[int, Extent], Vector]  # of a row of a tile and a column of the block


class Image:
    """x, an array (n, h, w, ci), or (n, ci, h, w) where channels do not come last."""

    def __init__(self, x: Any, shape: ConvShape, grid: Grid, width: int) -> None:
        self._x, self._grid, self._width = x, grid, width
        self._h, self._w, self._ci = shape.h, shape.w, shape.ci
        self._channels_last = shape.channels_last
        self._t = grid.m + 2
        self._matrix = transforms(grid.m).input

    @property
    def vectors(self) -> Extent:
        """How many vectors the channels of a pixel fill."""
        return ceildiv(self._ci, self._width)

    def transform(self, block: Block, vector: Extent, v: Any, at: Extent) -> None:
        """Store v[at, place, tile, channel] for one vector of channels of all tiles of `block`."""
        rows, columns = self._grid.span
        partly = T.alloc_buffer((self._t, columns, self._width), _DTYPE)
        if self._channels_last:
            read = self._read_where_it_lies
        else:
            pixels = T.alloc_buffer((rows, columns + self._width, self._width), _DTYPE)
            self._gather(block, vector, pixels)

            def read(block: Block, vector: Extent, row: Extent, partly: Any) -> None:
                def pixel(i: int, column: Extent) -> Vector:
                    return pixels[row * self._grid.m + i, column, lanes(0, self._width)]

                self._down(pixel, 0, block.columns.count * self._grid.m + 2, partly)

        with T.serial(block.rows.count) as row:
            read(block, vector, row, partly)
            with T.serial(block.columns.count) as column, T.serial(self._t) as i:
                tile = block.place(row, column)
                self._across(partly, column, i, v, [at], [tile, lanes(vector * self._width, self._width)])

    def _read_where_it_lies(self, block: Block, vector: Extent, row: Extent, partly: Any) -> None:
        """Transform columns that are read from x, with zeros around it."""
        m, t = self._grid.m, self._t
        first = (block.rows.start + row) * m - self._grid.top
        left, begin, end, count = self._columns(block)
        limit = None if divides(self._width, self._ci) else self._ci
        with T.serial(begin) as column:
            self._clear(partly, column)
        with T.serial(count - end) as column:
            self._clear(partly, end + column)

        def pixel(i: int, column: Extent) -> Vector:
            at = [block.image, first + i, left + column]
            return load(self._x, at, vector * self._width, self._width, limit)

        def pixel_or_zero(i: int, column: Extent) -> Vector:
            inside = tirx.all(first + i >= 0, first + i < self._h)
            return tirx.if_then_else(inside, pixel(i, column), zeros(_DTYPE, self._width))

        def inner() -> None:
            self._down(pixel, begin, end, partly)

        last = self._grid.down * m + 2 - self._grid.top  # one row beyond the lowest tile
        if self._grid.top == 0 and isinstance(last, int) and isinstance(self._h, int) and last <= self._h:
            inner()
        else:
            inside = tirx.all(first >= 0, first + t <= self._h)
            branch(inside, inner, lambda: self._down(pixel_or_zero, begin, end, partly))

    def _columns(self, block: Block) -> tuple[Extent, Extent, Extent, Extent]:
        """Return the column of x at which `block` begins, and where in the block x begins and ends."""
        left = block.columns.start * self._grid.m - self._grid.left
        count = block.columns.count * self._grid.m + 2
        return left, _clamped(0 - left, 0, count), _clamped(self._w - left, 0, count), count

    def _gather(self, block: Block, vector: Extent, pixels: Any) -> None:
        """Store pixels[row, column, channel] of one vector of channels; zeros beyond the image."""
        width = self._width
        left, begin, end, count = self._columns(block)
        top = block.rows.start * self._grid.m - self._grid.top
        squares = ceildiv(end - begin, width)

        def clear(row: Extent, first: Extent, last: Extent) -> None:
            with T.serial(last - first) as column:
                T.buffer_store(pixels, zeros(_DTYPE, width), [row, first + column, lanes(0, width)])

        def copy(row: Extent) -> None:
            clear(row, 0, begin)
            with T.serial(squares) as square:
                column = begin + square * width
                planes = [
                    self._plane(block.image, vector * width + k, top + row, left + column)
                    for k in range(width)
                ]
                for k, pixel in enumerate(transpose(planes, _DTYPE)):
                    T.buffer_store(pixels, pixel, [row, column + k, lanes(0, width)])
            done = begin + squares * width
            clear(row, minimum(done, count), count)

        with T.serial(block.rows.count * self._grid.m + 2) as row:
            inside = tirx.all(top + row >= 0, top + row < self._h)
            branch(inside, lambda: copy(row), lambda: clear(row, 0, count))

    def _plane(self, image: Extent, channel: Extent, row: Extent, column: Extent) -> Vector:
        """Return neighbouring pixels of one channel; zeros beyond the row's end and the last channel."""
        value = load_or_zeros(self._x, [image, channel, row], column, self._width, self._w)
        if divides(self._width, self._ci):
            return value
        return tirx.if_then_else(channel < self._ci, value, zeros(_DTYPE, self._width))

    def _down(self, pixel: _Pixel, begin: Extent, end: Extent, partly: Any) -> None:
        """Store partly[i, column] = (B^T d)[i, column] for the columns from `begin` to `end`."""
        with T.serial(end - begin) as step:
            column = begin + step
            made = apply(self._matrix, [pixel(i, column) for i in range(self._t)], self._width)
            for i, value in enumerate(made):
                T.buffer_store(partly, value, [i, column, lanes(0, self._width)])

    def _across(
        self, partly: Any, column: Extent, i: Extent, v: Any, before: list[Extent], behind: list[Extent]
    ) -> None:
        """Store one row of a tile of v."""
        first = column * self._grid.m
        row = [partly[i, first + k, lanes(0, self._width)] for k in range(self._t)]
        for k, value in enumerate(apply(self._matrix, row, self._width)):
            T.buffer_store(v, value, [*before, i * self._t + k, *behind])

    def _clear(self, partly: Any, column: Extent) -> None:
        for i in range(self._t):
            T.buffer_store(partly, zeros(_DTYPE, self._width), [i, column, lanes(0, self._width)])


def _clamped(value: Extent, low: int, high: Extent) -> Extent:
    if isinstance(value, int) and isinstance(high, int):
        return max(low, min(value, high))
    return tirx.max(low, tirx.min(value, high))
