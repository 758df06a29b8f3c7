"""The loops of `tvmops.schedules.cpu.conv2d_depthwise`, which says what each knob means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import IRModule, tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvKernel, ConvShape
from tvmops.schedules.cpu.emit import (
    Extent,
    Span,
    branch,
    broadcast,
    ceildiv,
    divides,
    lanes,
    load,
    minimum,
    registers,
    share,
    store,
    transpose,
    zeros,
)
from tvmops.signatures.layouts import PANEL
from tvmops.signatures.windows import Window
from tvmops.space import Config


@dataclass(frozen=True)
class Tiling:
    """The knobs, as numbers."""

    rows: int
    columns: int
    tasks: int

    @classmethod
    def of(cls, config: Config) -> Tiling:
        return cls(**config.as_dict())  # type: ignore[arg-type]


class DepthwiseNest(ABC):
    """y[c, i, j] = sum over (r, s) of x[c, i sh + r dh, j sw + s dw] * w[c, r, s]."""

    def __init__(self, shape: ConvShape, dtype: str, width: int, tiling: Tiling) -> None:
        self.kernel = ConvKernel(shape, dtype, width)
        self.shape, self.dtype, self.width, self.tiling = shape, dtype, width, tiling
        self.places = [(r, s) for r in range(shape.down.size) for s in range(shape.across.size)]

    def module(self) -> IRModule:
        return self.kernel.module(self._tasks)

    def _tasks(self) -> None:
        whole = Span(0, self.units)
        if self.tiling.tasks == 1:
            self.emit(whole)
            return
        with T.parallel(self.tiling.tasks) as task:
            self.emit(share(whole, task, self.tiling.tasks))

    @property
    @abstractmethod
    def units(self) -> Extent:
        """Count what is shared out among tasks."""

    @abstractmethod
    def emit(self, units: Span) -> None:
        """Compute some units."""

    def tiles(self, emit: Callable[[Extent, Extent, bool], None], column_step: int) -> None:
        """Call `emit(row, column, edge)` for each tile of an image.

        At an edge a tile reads beyond the image, or writes beyond y.
        """
        shape, rows = self.shape, self.tiling.rows
        with T.serial(ceildiv(shape.oh, rows)) as i, T.serial(ceildiv(shape.ow, column_step)) as j:
            row, column = i * rows, j * column_step
            inside = tirx.all(
                *_inside(shape.down, row, rows, shape.h, shape.oh),
                *_inside(shape.across, column, column_step, shape.w, shape.ow),
            )
            branch(inside, partial(emit, row, column, False), partial(emit, row, column, True))

    def rows_needed(self) -> int:
        """Count the rows of x under a tile."""
        return (self.tiling.rows - 1) * self.shape.down.stride + self.shape.down.reach


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
            tile = partial(self._tile, image, channel, weights)
            self.tiles(tile, self.tiling.columns * width)

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
                tirx.LT(column, broadcast(_expr(shape.w), width)),
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


class ChannelsNest(DepthwiseNest):
    """NHWC: a vector holds neighbouring channels; a unit is a band of rows of an image."""

    @property
    def bands(self) -> Extent:
        return ceildiv(self.shape.oh, self.tiling.rows)

    @property
    def vectors(self) -> int:
        return -(-self.shape.groups // self.width)

    @property
    def units(self) -> Extent:
        return self.shape.n * self.bands

    def emit(self, units: Span) -> None:
        shape, width, step = self.shape, self.width, self.tiling.columns
        weight = self._weights()
        with T.serial(units.count) as unit, T.serial(self.vectors) as v:
            image, band = (units.start + unit) // self.bands, (units.start + unit) % self.bands
            weights = registers((len(self.places), width), self.dtype)
            for k in range(len(self.places)):
                T.buffer_store(weights, weight(v, k), [k, lanes(0, width)])
            row = band * self.tiling.rows
            with T.serial(ceildiv(shape.ow, step)) as j:
                inside = tirx.all(
                    *_inside(shape.down, row, self.tiling.rows, shape.h, shape.oh),
                    *_inside(shape.across, j * step, step, shape.w, shape.ow),
                    (v + 1) * width <= shape.groups,
                )
                tile = partial(self._tile, image, v * width, weights, row, j * step)
                branch(inside, partial(tile, False), partial(tile, True))

    def _weights(self) -> Callable[[Extent, int], tirx.Expr]:
        """Return what reads weights: (vector of channels, place) to a vector."""
        w, width = self.kernel.w, self.width
        if self.shape.packed is None:
            turned = self._turn_weights()
            return lambda v, k: turned[v, k, lanes(0, width)]
        return lambda v, k: w[v * width // PANEL, k, lanes(v * width % PANEL, width)]

    def _turn_weights(self) -> Any:
        """Copy the weights to [vector][place][channel]; they lie as [channel][place]."""
        width, places, channels = self.width, len(self.places), self.shape.groups
        most = -(-places // width) * width
        turned = T.alloc_buffer((self.vectors, most, width), self.dtype)
        with T.serial(self.vectors) as v:
            rows = [minimum(v * width + i, channels - 1) for i in range(width)]
            for first in range(0, places, width):
                limit = None if first + width <= places else places
                loaded = [load(self.kernel.w, [row, 0, 0], first, width, limit) for row in rows]
                for k, value in enumerate(transpose(loaded, self.dtype)):
                    T.buffer_store(turned, value, [v, first + k, lanes(0, width)])
        return turned

    def _tile(
        self, image: Extent, channel: Extent, weights: Any, row: Extent, column: Extent, edge: bool
    ) -> None:
        shape, width, tiling = self.shape, self.width, self.tiling
        down, across = shape.down, shape.across
        limit = shape.groups if edge and shape.groups % width else None
        sums = registers((tiling.rows, tiling.columns, width), self.dtype)
        taps: dict[tuple[int, int], list[tuple[int, int, int]]] = {}  # of a pixel of x: pixel of y, place
        for i in range(tiling.rows):
            for j in range(tiling.columns):
                T.buffer_store(sums, zeros(self.dtype, width), [i, j, lanes(0, width)])
                for k, (r, s) in enumerate(self.places):
                    need = (i * down.stride + r * down.dilation, j * across.stride + s * across.dilation)
                    taps.setdefault(need, []).append((i, j, k))
        for (r, s), uses in sorted(taps.items()):
            at = (
                image,
                row * down.stride + r - down.before,
                column * across.stride + s - across.before,
            )
            x = registers((width,), self.dtype)
            T.buffer_store(x, self._read(at, channel, edge, limit), [lanes(0, width)])
            for i, j, k in uses:
                where = (i, j, lanes(0, width))
                total = sums[where] + x[lanes(0, width)] * weights[k, lanes(0, width)]
                T.buffer_store(sums, total, list(where))
        for i in range(tiling.rows):
            for j in range(tiling.columns):
                put = partial(self._store, sums, i, j, [image, row + i, column + j], channel, limit)
                if not edge:
                    put()
                    continue
                with T.If(tirx.all(row + i < shape.oh, column + j < shape.ow)), T.Then():
                    put()

    def _read(
        self, at: tuple[Extent, Extent, Extent], channel: Extent, edge: bool, limit: Extent | None
    ) -> tirx.Expr:
        read = load(self.kernel.x, list(at), channel, self.width, limit)
        if not edge:
            return read
        _, row, column = at
        inside = tirx.all(row >= 0, row < self.shape.h, column >= 0, column < self.shape.w)
        return tirx.if_then_else(inside, read, zeros(self.dtype, self.width))

    def _store(
        self, sums: Any, i: int, j: int, at: list[Extent], channel: Extent, limit: Extent | None
    ) -> None:
        kernel, width = self.kernel, self.width
        done = self.shape.epilogue.apply(
            sums[i, j, lanes(0, width)],
            width,
            lambda: load(kernel.bias, [], channel, width, limit),
            lambda: load(kernel.residual, at, channel, width, limit),
        )
        store(kernel.y, done, at, channel, width, limit)


def _inside(window: Window, first: Extent, count: int, extent: Extent, outputs: Extent) -> list[tirx.Expr]:
    """Say when `count` outputs from `first` on exist and see nothing beyond the image."""
    start = first * window.stride - window.before
    # a stride of 2 reads whole vectors, the last element of which may not be needed
    end = start + (count * window.stride - 1) + window.reach
    conditions = [_expr(end <= extent)]
    if window.before:
        conditions.append(_expr(start >= 0))
    if not divides(count, outputs):
        conditions.append(_expr(first + count <= outputs))
    return conditions


def _expr(value: Any) -> tirx.Expr:
    return tirx.const(value, "int32") if isinstance(value, int) and not isinstance(value, bool) else value
