"""Words of b, as instructions read them: packed by the kernel, beforehand, or put together in passing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.dot import Value, bits_of, constant, interleaved
from tvmops.schedules.cpu.dot_sums import Accumulators
from tvmops.schedules.cpu.emit import (
    Extent,
    Span,
    broadcast,
    ceildiv,
    divides,
    lanes,
    load,
    load_or_zeros,
    minimum,
    transpose,
    zeros,
)
from tvmops.signatures.words import COLUMNS

if TYPE_CHECKING:
    from tvmops.schedules.cpu.dot_nest import DotNest


class GivenB:
    """Words of b as it is given, by column, or packed beforehand in panels of 16 columns."""

    def __init__(self, nest: DotNest) -> None:
        self.nest, self.side = nest, nest.dot.side

    @property
    def whole(self) -> Extent:
        """How many steps have all their words, from each of which they can be read as they lie."""
        nest = self.nest
        return nest.b_words // self.side if nest.is_packed else nest.k // (nest.each * self.side)

    @property
    def is_whole(self) -> bool:
        """Is it known that all have?"""
        nest = self.nest
        if nest.is_packed:
            return self.side == 1 or divides(self.side, nest.b_words)
        return divides(nest.each * self.side, nest.k)

    def vectors(self, step: Extent, column: Extent, limit: Extent | None, is_last: bool) -> list[Value]:
        """Return what one step multiplies of `width` columns; zeros beyond k, in the last step."""
        words = [step * self.side + i if self.side > 1 else step for i in range(self.side)]
        if self.nest.is_packed:
            found = [self.packed(word, column) for word in (words[:1] if is_last else words)]
            found += [zeros("int32", self.nest.width)] * (self.side - len(found))
        else:
            found = [self._plain(word, column, limit, is_last) for word in words]
        return interleaved([T.bind(word) for word in found]) if self.side > 1 else found

    def packed(self, word: Extent, column: Extent) -> Value:
        """Return words of a b that was packed beforehand; behind the last are the columns' sums."""
        nest = self.nest
        panel = minimum(column // COLUMNS, ceildiv(nest.n, COLUMNS) - 1)  # the last tile may be wider than b
        count = nest.width * nest.each
        values = nest.b[panel, word, lanes(column % COLUMNS * nest.each, count)]
        return T.reinterpret(f"int32x{nest.width}", values)

    def _plain(self, kk: Extent, column: Extent, limit: Extent | None, is_last: bool) -> Value:
        """Return the words of b[each * kk and after, column and after], zeros beyond k."""
        nest = self.nest
        word: Value | None = None
        for j in range(nest.each):
            row = kk * nest.each + j
            is_known = isinstance(row, int) and isinstance(nest.k, int)
            inside = not is_last or (is_known and bool(row < nest.k))
            if not inside and is_known:
                continue
            at = nest.at("b", row if inside else minimum(row, nest.k - 1))
            bits = bits_of(load(nest.b, at, column, nest.width, limit), nest.width)
            if not inside:
                bits = bits & broadcast(tirx.Select(row < nest.k, tirx.const(-1), tirx.const(0)), nest.width)
            bits = bits << constant(32 // nest.each * j, bits) if j else bits
            word = bits if word is None else word | bits
        return zeros("int32", nest.width) if word is None else word


class PackedB:
    """The words of some panels, as [panel][step][side words of nr], and behind them the columns' sums."""

    def __init__(self, nest: DotNest, panels: Span) -> None:
        self.nest, self.panels, self.side = nest, panels, nest.dot.side
        blocking = nest.blocking
        most: Extent = ceildiv(ceildiv(nest.n, nest.nr), blocking.split_n)
        most = minimum(blocking.nc, most) if blocking.nc else most
        deepest: Extent = nest.steps + 1
        if nest.operands.trans_b:
            deepest = ceildiv(nest.b_words, nest.width) * (nest.width // self.side) + 1
        self.buffer = T.alloc_buffer((most, deepest, nest.nr * self.side), "int32")
        if nest.operands.trans_b:
            self._turn()
        else:
            self._copy()
        if nest.with_sums and not nest.is_packed:
            with T.serial(panels.count) as panel:
                self._sum_columns(panel)

    def vectors(self, panel: Extent, step: Extent, v: Extent) -> list[Value]:
        """Return what one step multiplies of `width` columns, the `v`-th of a panel."""
        return [self.buffer[panel, step, self._lanes(v, i)] for i in range(self.side)]

    def sums(self, panel: Extent, v: int) -> Value:
        width = self.nest.width
        return self.buffer[panel, self.nest.steps, lanes(v * width, width)]

    def _lanes(self, v: Extent, i: int) -> tirx.Expr:
        width = self.nest.width
        return lanes((v * self.side + i) * width if self.side > 1 else v * width, width)

    def _store(self, vectors: list[Value], panel: Extent, step: Extent, v: Extent) -> None:
        for i, vector in enumerate(vectors):
            T.buffer_store(self.buffer, vector, [panel, step, self._lanes(v, i)])

    def _copy(self) -> None:
        nest, given = self.nest, self.nest.given_b

        def copy(step: Extent, panel: Extent, is_last: bool) -> None:
            column = (self.panels.start + panel) * nest.nr

            def vectors(limit: Extent | None) -> None:
                for v in range(nest.blocking.nv):
                    found = given.vectors(step, column + v * nest.width, limit, is_last)
                    self._store(found, panel, step, v)

            if nest.is_packed:
                vectors(None)
            else:
                nest.at_columns(column, vectors)

        with T.serial(given.whole) as step, T.serial(self.panels.count) as panel:
            copy(step, panel, is_last=False)
        if not given.is_whole:
            with T.serial(nest.steps - given.whole), T.serial(self.panels.count) as panel:
                copy(nest.steps - 1, panel, is_last=True)

    def _turn(self) -> None:
        """Transpose squares of words of a b that is given as (n, k)."""
        nest = self.nest
        width, count = nest.width, nest.width * nest.each
        with T.serial(self.panels.count) as panel, T.serial(nest.blocking.nv) as v:
            column = (self.panels.start + panel) * nest.nr + v * width
            columns = [minimum(column + i, nest.n - 1) for i in range(width)]

            def turn(kv: Extent, is_last: bool) -> None:
                start = kv * width * nest.each
                rows = []
                for each in columns:
                    at = nest.at("b", each)
                    values = (
                        load_or_zeros(nest.b, at, start, count, nest.k)
                        if is_last
                        else load(nest.b, at, start, count, None)
                    )
                    rows.append(T.reinterpret(f"int32x{width}", values))
                words = transpose(rows, "int32")
                for i in range(0, width, self.side):
                    step = kv * (width // self.side) + i // self.side
                    self._store(interleaved(words[i : i + self.side]), panel, step, v)

            whole = nest.k // count
            with T.serial(whole) as kv:
                turn(kv, is_last=False)
            if not divides(count, nest.k):
                with T.If(whole * count < nest.k), T.Then():
                    turn(whole, is_last=True)

    def _sum_columns(self, panel: Extent) -> None:
        nest = self.nest
        sums = Accumulators(nest.dot, self.side, nest.blocking.nv, nest.width)
        with T.serial(nest.steps) as step:
            for v in range(nest.blocking.nv):
                sums.add_columns(0, v, [T.bind(vector) for vector in self.vectors(panel, step, v)])
        for v in range(nest.blocking.nv):
            T.buffer_store(
                self.buffer, sums.row(0, v), [panel, nest.steps, lanes(v * nest.width, nest.width)]
            )
