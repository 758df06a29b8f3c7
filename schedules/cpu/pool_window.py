"""Pooling with a kernel that moves: down the columns first, then along the rows.

    task            rows of the output, of all images (and, for NCHW, of all channels)
      line          the rows of x under the kernel made one, padding around it
        output      columns of the line under the kernel made one

Both the largest element and the sum of a rectangle are those of its columns' results. The first
step runs through memory without a gap in either layout; the line stays in the nearest cache.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.ops.pool2d import cells
from tvmops.schedules.cpu.conv2d import steps
from tvmops.schedules.cpu.emit import (
    Extent,
    Span,
    branch,
    broadcast,
    lanes,
    load,
    registers,
    store,
)
from tvmops.schedules.cpu.pool_frame import DTYPE, PoolNest
from tvmops.schedules.cpu.row_sweeps import Sweep, Vector, named
from tvmops.signatures.windows import windows
from tvmops.workloads import Workload

_MOST_PLACES = 16  # of the kernel along an axis, to be unrolled


class WindowNest(PoolNest):
    def __init__(self, workload: Workload, width: int, slots: int, tasks: int) -> None:
        super().__init__(workload, width, slots, tasks)
        self.down, self.across = windows(workload)
        self.planes, self.inner = (self.n, self.c) if self.channels_last else (self.n * self.c, 1)
        counts_padding = bool(workload["count_include_pad"])
        self.counts_padding = counts_padding
        padded = any(
            each.overhangs or (not counts_padding and (each.before or each.after))
            for each in (self.down, self.across)
        )
        self.counts = not self.is_max and padded  # windows differ in how many elements they have

    @cached_property
    def size(self) -> tuple[Extent, Extent]:
        return steps(self.down, self.h), steps(self.across, self.w)

    @property
    def units(self) -> Extent:
        return self.planes * self.size[0]

    def task(self, units: Span) -> None:
        across, inner = self.across, self.inner
        oh, ow = self.size
        x = self.viewed(self.x, self.planes, self.h, self.w * inner)
        y = self.viewed(self.y, self.planes, oh, ow * inner)
        # what the last vector of a row reads beyond the columns is not stored
        columns = self.w + (across.before + across.after + across.stride - 1)
        length = columns * inner + (self.width + 1) * across.stride
        line = T.alloc_buffer((length,), DTYPE)
        self._clear(line, Span(0, length))
        shares = self._shares() if self.counts else None
        with T.serial(units.count) as index:
            plane, row = (units.start + index) // oh, (units.start + index) % oh
            first = row * self.down.stride - self.down.before
            self._down(x, plane, first, line)
            scale = None
            if not self.is_max:
                taken = cells(self.down, self.h, row, self.counts_padding) if self.counts else self.down.size
                scale = self._reciprocal(taken)
            self._across(line, y, [plane, row], scale, shares)

    def _reciprocal(self, count: Extent) -> tirx.Expr:
        if isinstance(count, int):
            return tirx.const(1 / count if self.counts else 1 / (count * self.across.size), DTYPE)
        return named(tirx.const(1, DTYPE) / tirx.Cast(DTYPE, count))

    def _shares(self) -> Any:
        """Return, for each column of the output, the reciprocal of how many columns of x it counts."""
        ow = self.size[1]
        made = T.alloc_buffer((ow + self.width,), DTYPE)
        with T.serial(ow) as j:
            count = cells(self.across, self.w, j, self.counts_padding)
            T.buffer_store(made, tirx.const(1, DTYPE) / tirx.Cast(DTYPE, count), [j])
        return made

    def _clear(self, line: Any, part: Span) -> None:
        with T.serial(part.count) as i:
            T.buffer_store(line, tirx.const(self.identity, DTYPE), [part.start + i])

    def _down(self, x: Any, plane: Extent, first: Extent, line: Any) -> None:
        """Combine the rows of x under the kernel, from `first` on, into the line."""
        down, lead = self.down, self.across.before * self.inner
        row_of_x = self.w * self.inner
        sweep = Sweep(row_of_x, self.width, self.slots)

        def put(value: tirx.Expr, vector: Vector) -> None:
            limit = None if vector.limit is None else vector.limit + lead
            store(line, value, [], lead + vector.start, self.width, limit)

        def read(r: Extent, vector: Vector) -> tirx.Expr:
            return load(x, [plane, first + r * down.dilation], vector.start, self.width, vector.limit)

        def whole(vector: Vector) -> None:
            put(self._combined([read(r, vector) for r in range(down.size)]), vector)

        def some() -> None:
            self._clear(line, Span(lead, row_of_x))
            with T.serial(down.size) as r:
                row = first + r * down.dilation
                with T.If(tirx.all(row >= 0, row < self.h)), T.Then():
                    sweep.each(lambda vector: put(self.combine(near(vector), read(r, vector)), vector))

        def near(vector: Vector) -> tirx.Expr:
            limit = None if vector.limit is None else vector.limit + lead
            return load(line, [], lead + vector.start, self.width, limit)

        if down.size > _MOST_PLACES:
            some()
        elif down.before == down.after == 0 and not down.overhangs:
            sweep.each(whole)
        else:
            inside = tirx.all(first >= 0, first + down.reach <= self.h)
            branch(inside, lambda: sweep.each(whole), some)

    def _across(
        self, line: Any, y: Any, at: list[Extent], scale: tirx.Expr | None, shares: Any | None
    ) -> None:
        """Combine the columns of the line under the kernel into a row of the output."""
        across, inner, width, ow = self.across, self.inner, self.width, self.size[1]

        def finish(value: tirx.Expr, share: tirx.Expr | None) -> tirx.Expr:
            if scale is None:
                return value
            value = value * broadcast(scale, width)
            return value if share is None else value * share

        if self.channels_last:
            with T.serial(ow) as j:
                share = None if shares is None else broadcast(shares[j], width)

                def channels(vector: Vector) -> None:
                    def read(s: Extent) -> tirx.Expr:
                        column = j * across.stride + s * across.dilation
                        return line[lanes(column * inner + vector.start, width)]

                    limit = None if vector.limit is None else j * inner + vector.limit
                    value = finish(self._over_places(read), share)
                    store(y, value, at, j * inner + vector.start, width, limit)

                Sweep(inner, width, self.slots).each(channels)
            return

        def pixels(vector: Vector) -> None:
            def read(s: Extent) -> tirx.Expr:
                return self._strided(line, vector.start * across.stride + s * across.dilation)

            share = None if shares is None else shares[lanes(vector.start, width)]
            store(y, finish(self._over_places(read), share), at, vector.start, width, vector.limit)

        Sweep(ow, width, self.slots).each(pixels)

    def _strided(self, line: Any, start: Extent) -> tirx.Expr:
        """Return every stride-th element of the line from `start` on."""
        stride, width = self.across.stride, self.width
        if stride != 2:
            return line[tirx.Ramp(start, stride, width)]
        pair = [line[lanes(start + half * width, width)] for half in (0, 1)]
        return tirx.Shuffle(pair, [tirx.const(2 * lane, "int32") for lane in range(width)])

    def _over_places(self, read: Any) -> tirx.Expr:
        """Combine what `read` gives for each place of the kernel along a row."""
        if self.across.size <= _MOST_PLACES:
            return self._combined([read(s) for s in range(self.across.size)])
        total = registers((self.width,), DTYPE)
        whole = lanes(0, self.width)
        T.buffer_store(total, read(0), [whole])
        with T.serial(self.across.size - 1) as s:
            T.buffer_store(total, self.combine(total[whole], read(s + 1)), [whole])
        return total[whole]

    def _combined(self, values: list[tirx.Expr]) -> tirx.Expr:
        total = values[0]
        for value in values[1:]:
            total = self.combine(total, value)
        return total
