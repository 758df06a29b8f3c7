"""The result of a Winograd convolution: y = activation(A^T M A + bias + residual)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cpu.emit import (
    Extent,
    broadcast,
    ceildiv,
    divides,
    lanes,
    load,
    minimum,
    store,
    transpose,
)
from tvmops.schedules.cpu.linear import Vector, apply
from tvmops.schedules.cpu.winograd_grid import Block, Grid
from tvmops.signatures.winograd import transforms

_DTYPE = "float32"


class Result:
    """y, an array (n, oh, ow, co), or (n, co, oh, ow) where channels do not come last."""

    def __init__(self, y: Any, bias: Any, residual: Any, shape: ConvShape, grid: Grid, width: int) -> None:
        self._y, self._bias, self._residual = y, bias, residual
        self._oh, self._ow, self._co = shape.oh, shape.ow, shape.co
        self._channels_last, self._epilogue = shape.channels_last, shape.epilogue
        self._grid, self._width = grid, width
        self._t = grid.m + 2
        self._matrix = transforms(grid.m).output
        self._limit = None if divides(width, self._co) else self._co

    def transform(self, block: Block, channel: Extent, products: Any, at: Extent) -> None:
        """Store the outputs of all tiles of `block` for one vector of channels, from `channel` on.

        Parameters
        ----------
        products
            Has them at products[place, tile, at].
        """
        write = self._write_tiles if self._channels_last else self._write_planes
        write(block, channel, lambda row, column: self._outputs(products, block.place(row, column), at))

    def _outputs(self, products: Any, tile: Extent, at: Extent) -> list[list[Vector]]:
        """Return the rows of A^T M A."""
        t, width = self._t, self._width
        columns = [
            apply(self._matrix, [products[i * t + k, tile, lanes(at, width)] for i in range(t)], width)
            for k in range(t)
        ]
        return [apply(self._matrix, [column[i] for column in columns], width) for i in range(self._grid.m)]

    def _write_tiles(
        self, block: Block, channel: Extent, outputs: Callable[[Extent, Extent], list[list[Vector]]]
    ) -> None:
        m, width = self._grid.m, self._width
        with T.serial(block.rows.count) as row, T.serial(block.columns.count) as column:
            top, left = (block.rows.start + row) * m, (block.columns.start + column) * m
            for i, values in enumerate(outputs(row, column)):
                for j, value in enumerate(values):
                    at = [block.image, top + i, left + j]

                    def write(value: Vector = value, at: list[Extent] = at) -> None:
                        made = self._epilogue.apply(
                            value,
                            width,
                            bias=lambda: load(self._bias, [], channel, width, self._limit),
                            residual=lambda: load(self._residual, at, channel, width, self._limit),
                        )
                        store(self._y, made, at, channel, width, self._limit)

                    self._where_inside(top + i, left + j, write)

    def _where_inside(self, row: Extent, column: Extent, write: Callable[[], None]) -> None:
        """Call `write` in a branch for outputs that are some; tiles may overhang."""
        conditions = []
        if not divides(self._grid.m, self._oh):
            conditions.append(row < self._oh)
        if not divides(self._grid.m, self._ow):
            conditions.append(column < self._ow)
        if not conditions:
            write()
            return
        with T.If(tirx.all(*conditions)), T.Then():
            write()

    def _write_planes(
        self, block: Block, channel: Extent, outputs: Callable[[Extent, Extent], list[list[Vector]]]
    ) -> None:
        """Write through a row of tiles with its channels last, of which squares are transposed."""
        m, width = self._grid.m, self._width
        staged = T.alloc_buffer((m, self._grid.columns * m + width, width), _DTYPE)
        left = block.columns.start * m
        count = minimum(block.columns.count * m, self._ow - left)
        with T.serial(block.rows.count) as row:
            with T.serial(block.columns.count) as column:
                for i, values in enumerate(outputs(row, column)):
                    for j, value in enumerate(values):
                        T.buffer_store(staged, value, [i, column * m + j, lanes(0, width)])
            with T.serial(m) as i:
                y_row = (block.rows.start + row) * m + i

                def write(y_row: Extent = y_row, i: Extent = i) -> None:
                    with T.serial(ceildiv(count, width)) as square:
                        self._write_square(
                            staged, i, square * width, [block.image, channel, y_row], left, left + count
                        )

                self._where_inside(y_row, 0, write)

    def _write_square(
        self, staged: Any, i: Extent, first: Extent, corner: list[Extent], left: Extent, end: Extent
    ) -> None:
        """Store `width` columns of a row, from staged[i, first] on, plane by plane."""
        width = self._width
        image, channel, row = corner
        pixels = [staged[i, first + k, lanes(0, width)] for k in range(width)]
        limit = None if divides(width, end) and divides(width, left) else end
        for k, plane in enumerate(transpose(pixels, _DTYPE)):
            at = [image, channel + k, row]

            def write(plane: Vector = plane, at: list[Extent] = at) -> None:
                made = self._epilogue.apply(
                    plane,
                    width,
                    bias=lambda: broadcast(self._bias[at[1]], width),
                    residual=lambda: load(self._residual, at, left + first, width, limit),
                )
                store(self._y, made, at, left + first, width, limit)

            if divides(width, self._co):
                write()
            else:
                with T.If(at[1] < self._co), T.Then():
                    write()
