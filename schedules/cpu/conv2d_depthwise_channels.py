"""`tvmops.schedules.cpu.conv2d_depthwise` in NHWC: vectors along channels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d_depthwise_nest import DepthwiseNest
from tvmops.schedules.cpu.emit import (
    Extent,
    Span,
    branch,
    ceildiv,
    lanes,
    load,
    minimum,
    registers,
    store,
    transpose,
    zeros,
)
from tvmops.signatures.layouts import PANEL


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
                inside = tirx.all(*self.inside(row, j * step, step), (v + 1) * width <= shape.groups)
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
