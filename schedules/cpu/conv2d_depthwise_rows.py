"""`tvmops.schedules.cpu.conv2d_depthwise` in NCHW: vectors along rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d_depthwise_nest import DepthwiseNest, as_expr
from tvmops.schedules.cpu.emit import (
    Extent,
    Span,
    branch,
    broadcast,
    ceildiv,
    lanes,
    load,
    registers,
    store,
    zeros,
)
from tvmops.signatures.layouts import PANEL


class RowsNest(DepthwiseNest):
    """NCHW: a vector holds neighbours in a row; a unit is an image of one channel."""

    @property
    def units(self) -> Extent:
        return self.shape.n * self.shape.groups

    def emit(self, units: Span) -> None:
        shape, width = self.shape, self.width
        with T.serial(units.count) as unit:
            image, channel = (units.start + unit) // shape.groups, (units.start + unit) % shape.groups
            weights = registers((len(self.places), width), self.dtype)
            for k, (r, s) in enumerate(self.places):
                if shape.packed is None:
                    weight = self.kernel.w[channel, 0, r, s]
                else:
                    weight = self.kernel.w[channel // PANEL, k, channel % PANEL]
                value = broadcast(weight, width)
                T.buffer_store(weights, value, [k, lanes(0, width)])
            self._tiles(partial(self._tile, image, channel, weights))

    def _tiles(self, emit: Callable[[Extent, Extent, bool], None]) -> None:
        """Call `emit(row, column, edge)` for each tile of an image.

        At an edge a tile reads beyond the image, or writes beyond y.
        """
        shape, rows, columns = self.shape, self.tiling.rows, self.tiling.columns * self.width
        with T.serial(ceildiv(shape.oh, rows)) as i, T.serial(ceildiv(shape.ow, columns)) as j:
            row, column = i * rows, j * columns
            branch(
                tirx.all(*self.inside(row, column, columns)),
                partial(emit, row, column, False),
                partial(emit, row, column, True),
            )

    def _tile(
        self, image: Extent, channel: Extent, weights: Any, row: Extent, column: Extent, edge: bool
    ) -> None:
        shape, width, tiling = self.shape, self.width, self.tiling
        down, across = shape.down, shape.across
        sums = registers((tiling.rows, tiling.columns, width), self.dtype)
        for i in range(tiling.rows):
            for v in range(tiling.columns):
                T.buffer_store(sums, zeros(self.dtype, width), [i, v, lanes(0, width)])
        taps: dict[int, list[tuple[int, int]]] = {}  # of a row of x: (row of the tile, row of the kernel)
        for i in range(tiling.rows):
            for r in range(down.size):
                taps.setdefault(i * down.stride + r * down.dilation, []).append((i, r))
        for need, uses in sorted(taps.items()):
            source = row * down.stride + need - down.before
            for v in range(tiling.columns):
                for s in range(across.size):
                    first = (column + v * width) * across.stride + s * across.dilation - across.before
                    x = registers((width,), self.dtype)
                    T.buffer_store(x, self._read([image, channel], source, first, edge), [lanes(0, width)])
                    for i, r in uses:
                        at = [i, v, lanes(0, width)]
                        weight = weights[r * across.size + s, lanes(0, width)]
                        T.buffer_store(sums, sums[tuple(at)] + x[lanes(0, width)] * weight, at)
        self._store(sums, image, channel, row, column, edge)

    def _read(self, at: list[Extent], row: Extent, first: Extent, edge: bool) -> tirx.Expr:
        """Read every `stride`-th of the elements from `first` on; zeros outside of the image."""
        shape, width = self.shape, self.width

        def vector(start: Extent) -> tirx.Expr:
            index = (*at, row, lanes(start, width))
            if not edge:
                return self.kernel.x[index]
            column = lanes(start, width)
            inside = tirx.And(
                tirx.GE(column, broadcast(tirx.const(0, "int32"), width)),
                tirx.LT(column, broadcast(as_expr(shape.w), width)),
            )
            read = T.masked_load(f"{self.dtype}x{width}", self.kernel.x, *index, inside)
            nothing = zeros(self.dtype, width)  # lanes that are not loaded hold anything
            exists = tirx.all(row >= 0, row < shape.h)
            return tirx.if_then_else(exists, tirx.Select(inside, read, nothing), nothing)

        if shape.across.stride == 1:
            return vector(first)
        even = [tirx.const(2 * lane, "int32") for lane in range(width)]
        return tirx.Shuffle([vector(first), vector(first + width)], even)

    def _store(
        self, sums: Any, image: Extent, channel: Extent, row: Extent, column: Extent, edge: bool
    ) -> None:
        shape, kernel, width = self.shape, self.kernel, self.width

        def put(i: int, v: int) -> None:
            start = column + v * width
            at, limit = [image, channel, row + i], shape.ow if edge else None
            done = shape.epilogue.apply(
                sums[i, v, lanes(0, width)],
                width,
                lambda: broadcast(kernel.bias[channel], width),
                lambda: load(kernel.residual, at, start, width, limit),
            )
            store(kernel.y, done, at, start, width, limit)

        for i in range(self.tiling.rows):
            for v in range(self.tiling.columns):
                if not edge:
                    put(i, v)
                    continue
                with T.If(tirx.all(row + i < shape.oh, column + v * width < shape.ow)), T.Then():
                    put(i, v)
