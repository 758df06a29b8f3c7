"""One mr x nr tile of a product of short values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.dot import Value
from tvmops.schedules.cpu.dot_pack_a import PackedA
from tvmops.schedules.cpu.dot_pack_b import PackedB
from tvmops.schedules.cpu.dot_stretch import Carried, Place, Stretch
from tvmops.schedules.cpu.dot_sums import Accumulators, Sums
from tvmops.schedules.cpu.emit import Extent, branch, divides

if TYPE_CHECKING:
    from tvmops.schedules.cpu.dot_nest import DotNest


class Tile:
    """Sums over a stretch of k in registers; after the last each row is handed to the nest's `finish`."""

    def __init__(
        self,
        nest: DotNest,
        place: Place,
        stretch: Stretch,
        packed_a: PackedA,
        packed_b: PackedB | None,
        row_sums: Any | None,
        carried: Carried | None,
    ) -> None:
        self.nest, self.row_sums = nest, row_sums
        self.place, self.stretch, self.carried = place, stretch, carried
        self.first_row, self.column, self.panel = place.first_row, place.column, place.panel
        self.packed_a, self.packed_b = packed_a, packed_b
        # where b is read once, as it lies, its columns' sums are more rows of the tile
        self.sums_here = nest.with_sums and packed_b is None and not nest.is_packed
        self.rows = nest.blocking.mr + self.sums_here * nest.dot.side

    def emit(self) -> None:
        nest = self.nest
        if self.packed_b is None and not nest.is_packed:
            nest.at_columns(self.column, lambda limit: self._finish(self._sum(limit), limit))
        else:  # what was packed is full; the edge shows only when c is stored
            accumulators = self._sum(None)

            def finish() -> None:
                nest.at_columns(self.column, lambda limit: self._finish(accumulators, limit))

            if self.carried is None:
                finish()
            else:
                carried = self.carried
                branch(self.stretch.is_last, finish, lambda: carried.store(accumulators, self.place))

    def _sum(self, limit: Extent | None) -> Accumulators:
        nest, ku = self.nest, self.nest.blocking.ku
        accumulators = Accumulators(nest.dot, self.rows, nest.blocking.nv, nest.width)
        full = nest.given_b.whole if self.packed_b is None else nest.steps
        if self.carried is not None:
            self.carried.load(accumulators, self.place, self.stretch)
            full = self.stretch.steps.count
        with T.serial(full // ku) as block:
            if self.carried is not None and nest.blocking.ahead:
                self.carried.ask_ahead(self.place, self.stretch, block * ku, ku)
            for u in range(ku):
                self._step(accumulators, block * ku + u, limit, is_last=False)
        if not divides(ku, full):
            with T.serial(full % ku) as rest:
                self._step(accumulators, full // ku * ku + rest, limit, is_last=False)
        if self.packed_b is None and not nest.given_b.is_whole:
            with T.serial(nest.steps - full):
                self._step(accumulators, full, limit, is_last=True)
        return accumulators

    def _step(self, accumulators: Accumulators, step: Extent, limit: Extent | None, is_last: bool) -> None:
        """Add the products of `side` words of each row of a and of each column of b."""
        nest, dot = self.nest, self.nest.dot
        columns = [
            [T.bind(vector) for vector in self._vectors(step, v, limit, is_last)]
            for v in range(nest.blocking.nv)
        ]
        for part in range(dot.parts):
            rights = columns
            if dot.parts > 1:
                rights = [[T.bind(dot.right(vector, part)) for vector in each] for each in columns]
            for i, left in enumerate(self.packed_a.lefts(part, step)):
                for v, right in enumerate(rights):
                    accumulators.add(i * dot.side, v, left, right)
        if self.sums_here:
            for v, column in enumerate(columns):
                accumulators.add_columns(nest.blocking.mr, v, column)

    def _vectors(self, step: Extent, v: int, limit: Extent | None, is_last: bool) -> list[Value]:
        if self.packed_b is not None:
            return self.packed_b.vectors(self.panel, step, v)
        nest = self.nest
        step = self.stretch.steps.start + step
        return nest.given_b.vectors(step, self.column + v * nest.width, limit, is_last)

    def _column_sums(self, accumulators: Accumulators, v: int) -> Value | None:
        nest = self.nest
        if not nest.with_sums:
            return None
        if self.sums_here:
            return accumulators.row(nest.blocking.mr, v)
        if nest.is_packed:
            return nest.given_b.packed(nest.b_words, self.column + v * nest.width)
        assert self.packed_b is not None
        return self.packed_b.sums(self.panel, v)

    def _finish(self, accumulators: Accumulators, limit: Extent | None) -> None:
        nest = self.nest
        for i in range(nest.blocking.mr):
            row = self.first_row + i
            if divides(nest.blocking.mr, nest.m):
                self._finish_row(accumulators, i, row, limit)
            else:
                with T.If(row < nest.m), T.Then():
                    self._finish_row(accumulators, i, row, limit)

    def _finish_row(self, accumulators: Accumulators, i: int, row: Extent, limit: Extent | None) -> None:
        nest = self.nest
        for v in range(nest.blocking.nv):
            column = self.column + v * nest.width
            rows = None if self.row_sums is None else self.row_sums[i]
            sums = Sums(accumulators.row(i, v), self._column_sums(accumulators, v), rows)
            nest.finish(row, column, sums, limit)
