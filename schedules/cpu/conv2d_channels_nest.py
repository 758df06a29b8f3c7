"""The loops of `tvmops.schedules.cpu.conv2d_channels`, which says what each knob means."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from tvm import IRModule, tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvKernel, ConvShape
from tvmops.schedules.cpu.conv2d_channels_rows import CopiedRows, DirectRows, Row, Rows, apart, copy_channels
from tvmops.schedules.cpu.conv2d_direct import Tiling
from tvmops.schedules.cpu.emit import (
    ALL,
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
    transpose,
    zeros,
)
from tvmops.signatures.layouts import PANEL

_Weight: TypeAlias = "Callable[[Extent, Extent, int], tirx.Expr]"


class ChannelsNest:
    """y[pixel, co] = sum over k = (r, s, ci) of x[pixel shifted by (r, s), ci] * w[co, k]."""

    def __init__(self, shape: ConvShape, dtype: str, width: int, tiling: Tiling) -> None:
        self.kernel = ConvKernel(shape, dtype, width)
        self.shape, self.dtype, self.width = shape, dtype, width
        self.tiling = tiling
        self.nr = tiling.nv * width
        self.depth = shape.ci_each * (shape.down.size * shape.across.size)  # of k

    def module(self) -> IRModule:
        return self.kernel.module(self._tasks)

    @property
    def panels(self) -> Extent:
        return ceildiv(self.shape.co_each, self.nr)

    @property
    def copies(self) -> bool:
        """True if rows of x are copied: to have zeros around them, or to lie apart in the cache."""
        down, across = self.shape.down, self.shape.across
        return self.tiling.pack_x or any((down.before, down.after, across.before, across.after))

    def _tasks(self) -> None:
        """Give each task some channels and some rows (or pixels) of one group."""
        shape, tiling = self.shape, self.tiling
        count = shape.groups * tiling.split_co * tiling.split_px
        if count == 1:
            self._task(0, 0, 0)
            return
        with T.parallel(count) if tiling.parallel else T.serial(count) as task:
            pixels, rest = task % tiling.split_px, task // tiling.split_px
            self._task(rest // tiling.split_co, rest % tiling.split_co, pixels)

    def _task(self, group: Extent, channels: Extent, pixels: Extent) -> None:
        shape, tiling = self.shape, self.tiling
        panels = share(Span(0, self.panels), channels, tiling.split_co)
        task = _Task(self, group, panels, self._weights(group, panels))
        if shape.is_pointwise:
            steps = ceildiv(shape.n * shape.h * shape.w, tiling.mr)
            task.over_pixels(share(Span(0, steps), pixels, tiling.split_px))
        else:
            blocks = shape.n * ceildiv(shape.oh, self.block_rows)
            task.over_rows(share(Span(0, blocks), pixels, tiling.split_px))

    @property
    def block_rows(self) -> Extent:
        """Rows of the output that are computed from one copy of rows of x."""
        rows, oh = self.tiling.rows, self.shape.oh
        return minimum(rows, oh) if rows != ALL else oh

    def _weights(self, group: Extent, panels: Span) -> _Weight:
        """Return what reads weights: (panel of `panels`, k, vector of the panel) to a vector."""
        w, width = self.kernel.w, self.width
        if self.shape.packed is None:
            turned = self._pack_w(group, panels)
            return lambda panel, k, v: turned[panel, k, lanes(v * width, width)]
        blocks = self.shape.packed[0]
        whole = self.shape.co_each if self.shape.groups > 1 else blocks * PANEL

        def packed(panel: Extent, k: Extent, v: int) -> tirx.Expr:
            channel = group * self.shape.co_each + (panels.start + panel) * self.nr + v * width
            block = channel // PANEL
            if not divides(self.nr, whole):
                block = minimum(block, blocks - 1)  # products that are not stored
            return w[block, k, lanes(channel % PANEL, width)]

        return packed

    def _pack_w(self, group: Extent, panels: Span) -> Any:
        """Transpose the weights of `panels` to [panel][k][channel], in squares of vectors."""
        width, depth = self.width, self.depth
        most = ceildiv(self.panels, self.tiling.split_co)
        packed = T.alloc_buffer((most, ceildiv(depth, width) * width, self.nr), self.dtype)
        with T.serial(panels.count) as panel, T.serial(self.tiling.nv) as v:
            first = (panels.start + panel) * self.nr + v * width
            rows = [self.channel(group, first + i) for i in range(width)]

            def turn(k: Extent, limit: Extent | None) -> None:
                loaded = [load(self.kernel.w, [row, 0, 0], k, width, limit) for row in rows]
                for i, value in enumerate(transpose(loaded, self.dtype)):
                    T.buffer_store(packed, value, [panel, k + i, lanes(v * width, width)])

            with T.serial(depth // width) as step:
                turn(step * width, None)
            if not divides(width, depth):
                with T.If(depth % width > 0), T.Then():
                    turn(depth // width * width, depth)
        return packed

    def channel(self, group: Extent, index: Extent) -> Extent:
        """Return which output channel `index` of a group is; the last one where it lies beyond."""
        if not divides(self.nr, self.shape.co_each):
            index = minimum(index, self.shape.co_each - 1)
        return group * self.shape.co_each + index


class _Task:
    """Some panels of the channels of one group."""

    def __init__(self, nest: ChannelsNest, group: Extent, panels: Span, weight: _Weight) -> None:
        self.nest, self.group, self.panels, self.weight = nest, group, panels, weight

    def over_pixels(self, steps: Span) -> None:
        """A pointwise kernel: all pixels of all images are one row."""
        nest, shape, x = self.nest, self.nest.shape, self.nest.kernel.x
        mr, channel = nest.tiling.mr, self.group * shape.ci_each
        pixels = shape.n * shape.h * shape.w
        row = Row(0, 0, pixels, lambda r, s, j, c: x[0, 0, j, channel + c], True)
        if not nest.tiling.pack_x:
            with T.serial(self.panels.count) as panel, T.serial(steps.count) as step:
                self._tile(panel, (steps.start + step) * mr, row)
            return
        near = T.alloc_buffer((mr, apart(shape.ci_each)), nest.dtype)
        with T.serial(steps.count) as step:
            start = (steps.start + step) * mr
            for j in range(mr):
                pixel = start + j if divides(mr, pixels) else minimum(start + j, pixels - 1)
                copy_channels(nest.kernel, [0, 0, pixel], channel, near, [j, 0])
            copied = Row(0, 0, pixels, lambda r, s, j, c: near[j - start, c], True)
            with T.serial(self.panels.count) as panel:
                self._tile(panel, start, copied)

    def over_rows(self, blocks: Span) -> None:
        """Rows of the output, a block at a time."""
        nest, shape = self.nest, self.nest.shape
        each = nest.block_rows
        per_image = ceildiv(shape.oh, each)
        x: Rows = DirectRows(nest.kernel, self.group)
        if nest.copies:
            x = CopiedRows(nest.kernel, self.group, each)
        with T.serial(blocks.count) as index:
            block = blocks.start + index
            rows = chunk(Span(0, shape.oh), block % per_image, each)
            image = block // per_image
            x.begin(image, rows)
            steps = chunks(Span(0, shape.ow), nest.tiling.mr)
            with T.serial(self.panels.count) as panel, T.serial(rows.count) as i, T.serial(steps) as step:
                self._tile(panel, step * nest.tiling.mr, x.row(image, rows, i))

    def _tile(self, panel: Extent, start: Extent, row: Row) -> None:
        """Compute mr pixels from `start` of `row`, of one panel of channels."""
        mr, count = self.nest.tiling.mr, row.count
        if divides(mr, count):
            self._pixels(panel, start, row, mr, None)
        elif isinstance(count, int) and count < mr:
            self._pixels(panel, start, row, count, None)
        elif isinstance(count, int):
            branch(
                start + mr <= count,
                lambda: self._pixels(panel, start, row, mr, None),
                lambda: self._pixels(panel, start, row, count % mr, None),
            )
        else:
            self._pixels(panel, start, row, mr, count)

    def _pixels(self, panel: Extent, start: Extent, row: Row, mr: int, limit: Extent | None) -> None:
        nest = self.nest
        pixels = [start + j if limit is None else minimum(start + j, limit - 1) for j in range(mr)]
        sums = registers((mr, nest.nr), nest.dtype)
        for j in range(mr):
            for v in range(nest.tiling.nv):
                T.buffer_store(sums, zeros(nest.dtype, nest.width), [j, self._lanes(v)])

        def step(r: Extent, s: Extent, c: Extent, k: Extent) -> None:
            weights = [self.weight(panel, k, v) for v in range(nest.tiling.nv)]
            for j, pixel in enumerate(pixels):
                value = broadcast(row.x(r, s, pixel, c), nest.width)
                for v, weight in enumerate(weights):
                    T.buffer_store(sums, sums[j, self._lanes(v)] + value * weight, [j, self._lanes(v)])

        self._over_k(step, row.joined)
        for j in range(mr):
            if limit is None:
                self._store(sums, j, panel, row, start + j)
            else:
                with T.If(start + j < limit), T.Then():
                    self._store(sums, j, panel, row, start + j)

    def _over_k(self, step: Callable[[Extent, Extent, Extent, Extent], None], joined: bool) -> None:
        shape, cu = self.nest.shape, self.nest.tiling.cu
        kw, ci = shape.across.size, shape.ci_each
        places, run = (1, kw * ci) if joined else (kw, ci)
        with T.serial(shape.down.size) as r, T.serial(places) as s:
            base = r * (kw * ci) + s * ci
            with T.serial(run // cu) as outer:
                for u in range(cu):
                    step(r, s, outer * cu + u, base + outer * cu + u)
            if not divides(cu, run):
                with T.serial(run % cu) as rest:
                    step(r, s, run // cu * cu + rest, base + run // cu * cu + rest)

    def _store(self, sums: Any, j: int, panel: Extent, row: Row, column: Extent) -> None:
        nest, kernel, shape = self.nest, self.nest.kernel, self.nest.shape
        first = (self.panels.start + panel) * nest.nr
        end = (self.group + 1) * shape.co_each
        at = [row.image, row.row, column]

        def put(limit: Extent | None) -> None:
            for v in range(nest.tiling.nv):
                channel = self.group * shape.co_each + first + v * nest.width
                done = shape.epilogue.apply(
                    sums[j, self._lanes(v)],
                    nest.width,
                    partial(load, kernel.bias, [], channel, nest.width, limit),
                    partial(load, kernel.residual, at, channel, nest.width, limit),
                )
                store(kernel.y, done, at, channel, nest.width, limit)

        if divides(nest.nr, shape.co_each):
            put(None)
        else:
            branch(first + nest.nr <= shape.co_each, lambda: put(None), lambda: put(end))

    def _lanes(self, v: int) -> tirx.Expr:
        return lanes(v * self.nest.width, self.nest.width)
