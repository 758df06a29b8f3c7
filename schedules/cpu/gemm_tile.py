"""One register tile of a GEMM."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import (
    Extent,
    Span,
    branch,
    broadcast,
    divides,
    lanes,
    load,
    minimum,
    registers,
    store,
    zeros,
)
from tvmops.schedules.cpu.epilogue import activate
from tvmops.schedules.cpu.gemm_frame import Frame


@dataclass(frozen=True)
class Place:
    """Where a tile stands in the loops around it."""

    matrix: Extent
    tiles: Span  # of the row block
    tile: Extent
    panels: Span  # of the column block
    panel: Extent
    depth: Span
    part: Extent  # of a split k
    is_first: tirx.Expr | None  # block of k; None where there is but one
    is_last: tirx.Expr | None


@dataclass(frozen=True)
class Ahead:
    """Which block of b is packed next."""

    k: Extent  # its first row
    panels: Extent  # how far its panels lie from those of this block


class Tile:
    """`rows` x nr elements of c, summed over one block of k in registers.

    There are at most mr rows, and c has fewer unless the tile `is_whole`.
    """

    def __init__(
        self,
        frame: Frame,
        place: Place,
        rows: int,
        is_whole: bool,
        packed_a: Any | None,
        packed_b: Any | None,
        ahead: Ahead | None,
    ) -> None:
        self.frame, self.place = frame, place
        self.is_whole = is_whole
        self.packed_a, self.packed_b = packed_a, packed_b
        self.ahead = ahead
        self.width = frame.product.width
        mr = frame.blocking.mr
        self.packed_row = place.tile * mr
        self.first_row = (place.tiles.start + place.tile) * mr
        last = frame.product.m - 1
        self.rows = [self.first_row + i for i in range(rows)]
        if not is_whole:
            self.rows = [minimum(row, last) for row in self.rows]
        self.column = (place.panels.start + place.panel) * frame.nr

    def emit(self) -> None:
        if self.packed_b is None and not self.frame.product.panel:
            self.frame.at_columns(self.column, lambda limit: self._finish(self._sum(limit), limit))
        else:  # a packed panel is full; the edge shows only when c is stored
            accumulators = self._sum(None)
            self.frame.at_columns(self.column, lambda limit: self._finish(accumulators, limit))

    def _sum(self, limit: Extent | None) -> Any:
        frame, blocking, depth = self.frame, self.frame.blocking, self.place.depth
        accumulators = registers((len(self.rows), frame.nr), frame.product.dtype)
        for i in range(len(self.rows)):
            for v in range(blocking.nv):
                T.buffer_store(accumulators, zeros(frame.product.dtype, self.width), [i, self._lanes(v)])
        unrolled = depth.count // blocking.ku
        along_k = self.width if self._reads_a_along_k else 1
        with T.serial(unrolled) as ku:
            if self.ahead is not None:
                self._prefetch(ku, self.ahead)
            for u in range(0, blocking.ku, along_k):
                self._steps(accumulators, ku * blocking.ku + u, along_k, limit)
        if not divides(blocking.ku, depth.count):
            with T.serial(depth.count % blocking.ku) as kk:
                self._steps(accumulators, unrolled * blocking.ku + kk, 1, limit)
        return accumulators

    @property
    def _reads_a_along_k(self) -> bool:
        """True where a vector of each row of a saves loads: the lanes are multiplied as they lie there.

        LLVM loads neighbouring vectors in pairs, so that ku of two vectors holds two of each row.
        """
        product, blocking = self.frame.product, self.frame.blocking
        vectors = blocking.mr * min(blocking.ku // self.width, 2)
        return (
            product.multiplies_by_lane
            and not product.trans_a
            and divides(self.width, blocking.ku)
            and blocking.mr * blocking.nv + blocking.nv + vectors <= product.registers
        )

    def _steps(self, accumulators: Any, kk: Extent, count: int, limit: Extent | None) -> None:
        """Add the outer products of `count` columns of a and rows of b."""
        columns = self._load_columns(kk, count) if count > 1 else None
        for u in range(count):
            row_of_b = [self._load_b(kk + u, v, limit) for v in range(self.frame.blocking.nv)]
            for i in range(len(self.rows)):
                a = broadcast(columns[i, u] if columns is not None else self._load_a(i, kk, 1), self.width)
                for v, b in enumerate(row_of_b):
                    total = accumulators[i, self._lanes(v)] + a * b
                    T.buffer_store(accumulators, total, [i, self._lanes(v)])

    def _load_columns(self, kk: Extent, count: int) -> Any:
        columns = registers((len(self.rows), count), self.frame.product.dtype)
        for i in range(len(self.rows)):
            T.buffer_store(columns, self._load_a(i, kk, count), [i, lanes(0, count)])
        return columns

    def _load_a(self, i: int, kk: Extent, count: int) -> tirx.Expr:
        """Return `count` elements of row `i` from column `kk` on."""
        if self.packed_a is None:
            return self.frame.operands.load_a(
                self.place.matrix, self.rows[i], self.place.depth.start + kk, count
            )
        row = self.packed_row + i
        return self.packed_a[kk, row] if self.frame.product.trans_a else self.packed_a[row, lanes(kk, count)]

    def _load_b(self, kk: Extent, v: int, limit: Extent | None) -> tirx.Expr:
        if self.packed_b is not None:
            return self.packed_b[self.place.panel, kk, self._lanes(v)]
        at = self.column + v * self.width
        return self.frame.operands.load_b(self.place.matrix, self.place.depth.start + kk, at, limit)

    def _prefetch(self, step: Extent, ahead: Ahead) -> None:
        """Ask for this tile's share of the panel of b that is packed next in place of this one.

        The tiles of a row block take turns: each asks for the lines of one vector, in every
        ku-th row. With few tiles each asks for several.
        """
        blocking = self.frame.blocking
        lines = blocking.nv * blocking.ku  # of a step
        count = self.place.tiles.count
        each = -(-lines // count) if isinstance(count, int) else 1
        column = self.column + ahead.panels * self.frame.nr
        for j in range(each):
            line = self.place.tile * each + j
            v, u = line % blocking.nv, line // blocking.nv % blocking.ku
            kk = step * blocking.ku + u
            if self.frame.product.trans_b:  # lines lie along k
                across, along = kk % self.width, kk // self.width * self.width
            else:
                across, along = 0, kk
            self.frame.operands.prefetch_b(
                self.place.matrix, ahead.k + along, column + v * self.width + across
            )

    def _finish(self, accumulators: Any, limit: Extent | None) -> None:
        for i in range(len(self.rows)):
            if self.is_whole:
                self._store_row(accumulators, i, limit)
            else:
                with T.If(self.first_row + i < self.frame.product.m), T.Then():
                    self._store_row(accumulators, i, limit)
        self._activate(limit)

    def _store_row(self, accumulators: Any, i: int, limit: Extent | None) -> None:
        """Store a row of sums, added to those of earlier blocks of k and finished by the last."""
        frame, row = self.frame, self.rows[i]
        split = frame.blocking.split_k > 1
        buffer = frame.partial if split else frame.operands.c
        at = [self.place.part, row] if split else frame.operands.at("", self.place.matrix, row)
        epilogue = frame.product.epilogue

        def write(finish: bool) -> None:
            for v in range(frame.blocking.nv):
                column = self.column + v * self.width
                total = accumulators[i, self._lanes(v)]
                if self.place.is_first is not None:
                    earlier = load(buffer, at, column, self.width, limit)
                    nothing = zeros(frame.product.dtype, self.width)
                    total += tirx.if_then_else(self.place.is_first, nothing, earlier)
                if finish:
                    total = finished(frame, total, self.place.matrix, row, column, limit)
                store(buffer, total, at, column, self.width, limit)

        if split or epilogue.is_nothing:
            write(finish=False)
        elif self.place.is_last is None:
            write(finish=True)
        else:
            branch(self.place.is_last, lambda: write(finish=True), lambda: write(finish=False))

    def _activate(self, limit: Extent | None) -> None:
        """Apply a long activation to the finished tile, in a loop that is not unrolled."""
        frame, c = self.frame, self.frame.operands.c
        epilogue = frame.product.epilogue
        if frame.blocking.split_k > 1 or not epilogue.is_long:
            return

        def every_row() -> None:
            rows = len(self.rows)
            count = rows if self.is_whole else minimum(rows, frame.product.m - self.first_row)
            with T.serial(count) as i, T.serial(frame.blocking.nv) as v:
                at = frame.operands.at("", self.place.matrix, self.first_row + i)
                column = self.column + v * self.width
                value = activate(epilogue.activation, load(c, at, column, self.width, limit), self.width)
                store(c, value, at, column, self.width, limit)

        if self.place.is_last is None:
            every_row()
        else:
            with T.If(self.place.is_last), T.Then():
                every_row()

    def _lanes(self, v: int) -> tirx.Expr:
        return lanes(v * self.width, self.width)


def finished(
    frame: Frame, total: tirx.Expr, matrix: Extent, row: Extent, column: Extent, limit: Extent | None
) -> tirx.Expr:
    """Return a vector of sums with bias and residual added, and activated where that is short."""
    epilogue = frame.product.epilogue
    short = replace(epilogue, activation="none") if epilogue.is_long else epilogue
    return short.apply(
        total,
        frame.product.width,
        bias=lambda: frame.operands.load_bias(column, limit),
        residual=lambda: frame.operands.load_residual(matrix, row, column, limit),
    )
