"""Pooling of whole images: one value a channel.

Where channels lie side by side, a step takes vectors of them and runs through the pixels. Else
a channel's pixels are one row, of which each lane takes its share.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, Span, broadcast, ceildiv, lanes, load, registers, store
from tvmops.schedules.cpu.pool_frame import DTYPE, PoolNest
from tvmops.schedules.cpu.row_sweeps import Sweep, Vector, named


class GlobalNest(PoolNest):
    @property
    def size(self) -> tuple[Extent, Extent]:
        return 1, 1

    @property
    def pixels(self) -> Extent:
        return self.h * self.w

    @property
    def step(self) -> int:
        """Channels that a step takes where they lie side by side."""
        return self.slots * self.width

    @property
    def units(self) -> Extent:
        return self.n * ceildiv(self.c, self.step) if self.channels_last else self.n * self.c

    def task(self, units: Span) -> None:
        pixels = self.pixels
        share = tirx.const(1 / pixels, DTYPE) if isinstance(pixels, int) else self._reciprocal(pixels)
        with T.serial(units.count) as index:
            unit = units.start + index
            if self.channels_last:
                chunks = ceildiv(self.c, self.step)
                self._channels(unit // chunks, unit % chunks * self.step, share)
            else:
                self._row(unit, share)

    def _reciprocal(self, count: Extent) -> tirx.Expr:
        return named(tirx.const(1, DTYPE) / tirx.Cast(DTYPE, count))

    def _row(self, row: Extent, share: tirx.Expr) -> None:
        x = self.viewed(self.x, self.n * self.c, self.pixels)
        y = self.viewed(self.y, self.n * self.c)

        def value(vector: Vector) -> tirx.Expr:
            loaded = load(x, [row], vector.start, self.width, vector.limit)
            if vector.limit is None:
                return loaded
            mask = T.get_active_lane_mask(f"boolx{self.width}", vector.start, vector.limit)
            return tirx.Select(mask, loaded, broadcast(tirx.const(self.identity, DTYPE), self.width))

        total = Sweep(self.pixels, self.width, self.slots).reduced(self.identity, value, self.combine)
        T.buffer_store(y, total if self.is_max else total * share, [row])

    def _channels(self, image: Extent, first: Extent, share: tirx.Expr) -> None:
        """Pool vectors of channels from `first` on: whole ones, or the last of the pixel."""
        width = self.width
        x = self.viewed(self.x, self.n, self.pixels, self.c)
        y = self.viewed(self.y, self.n, self.c)
        totals = registers((self.slots, width), DTYPE)
        vectors = [(slot, [slot, lanes(0, width)], first + slot * width) for slot in range(self.slots)]
        limit = None if isinstance(self.c, int) and self.c % self.step == 0 else self.c
        for _, at, _ in vectors:
            T.buffer_store(totals, broadcast(tirx.const(self.identity, DTYPE), width), at)
        with T.serial(self.pixels) as pixel:
            for slot, at, start in vectors:
                value = load(x, [image, pixel], start, width, limit)
                T.buffer_store(totals, self.combine(totals[slot, lanes(0, width)], value), at)
        for slot, _, start in vectors:
            total = totals[slot, lanes(0, width)]
            value = total if self.is_max else total * broadcast(share, width)
            store(y, value, [image], start, width, limit)
