"""Words of a tile's rows of a, as instructions read them; see `tvmops.schedules.cpu.gemm_dot`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.dot import Value, bits_of, constant, lane_of, lanes_of
from tvmops.schedules.cpu.dot_sums import ONES
from tvmops.schedules.cpu.emit import (
    Extent,
    Span,
    broadcast,
    ceildiv,
    divides,
    lanes,
    minimum,
    registers,
    transpose,
    zeros,
)

if TYPE_CHECKING:
    from tvmops.schedules.cpu.dot_nest import DotNest
    from tvmops.schedules.cpu.dot_stretch import Stretch


class PackedA:
    """The words, split in parts, as [part][group of rows][side words of each of its rows, and so on]."""

    def __init__(self, nest: DotNest, first_row: Extent, stretch: Stretch) -> None:
        self.nest, self.first_row = nest, first_row
        kc = nest.blocking.kc
        self.words = stretch.steps if kc else Span(0, nest.words)
        self.rows, self.side = nest.dot.rows, nest.dot.side
        self.groups = -(-nest.blocking.mr // self.rows)
        # Groups lie a cache line apart from a multiple of their length: multiples of 4 KiB would
        # fall into the same few cache lines.
        pitch = ceildiv((kc or nest.words) * self.rows, 16) * 16 + 16
        self.buffer = T.alloc_buffer((nest.dot.parts, self.groups, pitch), "int32")
        if nest.operands.trans_a:  # neighbours in memory are rows
            with T.serial(self.words.count) as at, T.serial(nest.blocking.mr) as i:
                word = self._last_word(nest.row(first_row + i), self.words.start + at)
                self._store(i, at, word)
        else:
            self._pack()

    def _pack(self) -> None:
        nest = self.nest
        each, width = nest.each, nest.width
        start = self.words.start
        whole = nest.k // (each * width)
        if nest.blocking.kc:
            whole = minimum(nest.k // each - start, self.words.count) // width
        with T.serial(self.groups) as group:
            rows = [self._row(group, i) for i in range(self.rows)]
            with T.serial(whole) as kv:
                place = lanes((start + kv * width) * each, width * each)
                vectors = [
                    T.reinterpret(f"int32x{width}", nest.a[tuple(nest.at("a", row, place))]) for row in rows
                ]
                self._store_square(group, kv * width, vectors)
            if not divides(each * width, nest.k):
                with T.serial(self.words.count - whole * width) as rest:
                    for i, row in enumerate(rows):
                        at = whole * width + rest
                        self._store(group * self.rows + i, at, self._last_word(row, start + at))

    def _row(self, group: Extent, i: int) -> Extent:
        """Return a row of a group, the last one of the tile or of a in place of those beyond."""
        nest = self.nest
        row = group * self.rows + i
        if not divides(self.rows, nest.blocking.mr):
            row = minimum(row, nest.blocking.mr - 1)
        return nest.row(self.first_row + row)

    def _store_square(self, group: Extent, at: Extent, vectors: list[Value]) -> None:
        """Store a vector of words of each row of a group."""
        width = self.nest.width
        if self.rows == 1:
            self._store(group, at, vectors[0])
            return
        kind = f"int{32 * self.side}"  # the words of one row that stay together
        together = [T.reinterpret(f"{kind}x{self.rows}", vector) for vector in vectors]
        for i, vector in enumerate(transpose(together, kind)):
            self._store_parts(group, at * self.rows + i * width, T.reinterpret(f"int32x{width}", vector))

    def _store(self, i: Extent, at: Extent, word: Value) -> None:
        """Store words of a row from `at` on: one word, or several of a row that has a group of its own."""
        if self.rows == 1:
            self._store_parts(i, at, word)
            return
        square = at // self.side * (self.side * self.rows)
        self._store_parts(i // self.rows, square + i % self.rows * self.side + at % self.side, word)

    def _store_parts(self, group: Extent, at: Extent, word: Value) -> None:
        nest = self.nest
        word = T.bind(word ^ constant(nest.a_offset, word) if nest.a_offset else word)
        for part in range(nest.dot.parts):
            value = nest.dot.left(word, part)
            T.buffer_store(self.buffer, value, [part, group, lanes(at, lanes_of(word))])

    def _last_word(self, row: Extent, at: Extent) -> Value:
        """Return a word of a, zeros for its values beyond k."""
        nest = self.nest
        word: Value = tirx.const(0, "int32")
        is_whole = divides(nest.each * self.side, nest.k)
        for j in range(nest.each):
            kk = at * nest.each + j
            inside = minimum(kk, nest.k - 1)
            index = (inside, row) if nest.operands.trans_a else (row, inside)
            value = bits_of(nest.a[tuple(nest.at("a", *index))], 1)
            if not is_whole:
                value = tirx.if_then_else(kk < nest.k, value, tirx.const(0, "int32"))
            word = word | (value << (32 // nest.each * j))
        return word

    def lefts(self, part: int, step: Extent) -> list[Value]:
        """Return what one step multiplies of each `side` rows, in all lanes."""
        nest = self.nest
        if self.rows == 1:
            return [broadcast(self.buffer[part, i, step], nest.width) for i in range(nest.blocking.mr)]
        at = lanes(step * nest.width, nest.width)
        vectors = [T.bind(self.buffer[part, group, at]) for group in range(self.groups)]
        if self.rows == self.side:
            return vectors
        return [lane_of(vectors[i // self.rows], i % self.rows) for i in range(nest.blocking.mr)]

    def sums(self) -> Any:
        """Return the sums of the values of each row, as they are multiplied."""
        sums = T.alloc_buffer((self.groups * self.rows,), "int32")
        with T.serial(self.groups) as group:
            if self.rows == 1:
                self._sum_row(sums, group)
            else:
                self._sum_group(sums, group)
        return sums

    def _added(self, total: Value, word: Callable[[int], Value]) -> Value:
        dot, ones = self.nest.dot, constant(ONES, total)
        for part in range(dot.parts):
            total = dot.add(total, word(part), dot.right(ones, part))
        return total

    def _sum_row(self, sums: Any, i: Extent) -> None:
        nest, width, every = self.nest, self.nest.width, lanes(0, self.nest.width)
        whole = nest.words // width
        total = registers((2, width), nest.dot.dtype)  # of whole vectors, and of the rest in each lane
        for which in range(2):
            T.buffer_store(total, zeros(nest.dot.dtype, width), [which, every])
        with T.serial(whole) as kv:
            at = lanes(kv * width, width)
            T.buffer_store(
                total, self._added(total[0, every], lambda part: self.buffer[part, i, at]), [0, every]
            )
        with T.serial(nest.words - whole * width) as rest:
            word = whole * width + rest
            value = self._added(total[1, every], lambda part: broadcast(self.buffer[part, i, word], width))
            T.buffer_store(total, value, [1, every])
        value = total[1, 0]
        for lane in range(width):
            value = value + total[0, lane]
        T.buffer_store(sums, value, [i])

    def _sum_group(self, sums: Any, group: Extent) -> None:
        nest, width, every = self.nest, self.nest.width, lanes(0, self.nest.width)
        total = registers((width,), nest.dot.dtype)
        T.buffer_store(total, zeros(nest.dot.dtype, width), [every])
        with T.serial(nest.steps) as step:
            at = lanes(step * width, width)
            T.buffer_store(
                total, self._added(total[every], lambda part: self.buffer[part, group, at]), [every]
            )
        for i in range(self.rows):
            T.buffer_store(sums, total[i * self.side], [group * self.rows + i])
