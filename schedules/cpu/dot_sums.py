"""Sums of products of words: rows of a tile, in registers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.dot import Dot, Value, untangled
from tvmops.schedules.cpu.emit import broadcast, lanes, registers, zeros

ONES = 0x01010101  # a word of four ones


@dataclass(frozen=True)
class Sums:
    """What a nest computes of one row of a and a vector of columns of b."""

    products: Value
    columns: Value | None  # of b, where the nest has `with_sums`
    row: Value | None  # of a, with zeros beyond k as they are multiplied, where it has `with_row_sums`


class Accumulators:
    """`rows` x `nv` vectors of `width` sums, zeros at first; of each `side` rows a vector holds squares."""

    def __init__(self, dot: Dot, rows: int, nv: int, width: int) -> None:
        self.dot, self.width = dot, width
        self._buffer = registers((rows, nv * width), dot.dtype)
        for i in range(rows):
            for v in range(nv):
                T.buffer_store(self._buffer, zeros(dot.dtype, width), [i, self._lanes(v)])

    def add(self, first: int, v: int, left: Value, rights: Sequence[Value]) -> None:
        """Add one part of the products of the rows from `first` on and the `v`-th columns."""
        for i, right in enumerate(rights):
            at = [first + i, self._lanes(v)]
            T.buffer_store(self._buffer, self.dot.add(self._buffer[tuple(at)], left, right), at)

    def set(self, i: int, v: int, sums: Value) -> None:
        T.buffer_store(self._buffer, sums, [i, self._lanes(v)])

    def add_columns(self, first: int, v: int, words: Sequence[Value]) -> None:
        """Add the columns themselves."""
        dot, ones = self.dot, tirx.const(ONES, "int32")
        for i, word in enumerate(words):
            at = [first + i, self._lanes(v)]
            total = self._buffer[tuple(at)]
            for part in range(dot.parts):
                left = broadcast(dot.left(ones, part), self.width)
                total = dot.add(total, left, dot.right(word, part))
            T.buffer_store(self._buffer, total, at)

    def row(self, i: int, v: int) -> Value:
        """Return the sums of one row."""
        first = i // self.dot.side * self.dot.side
        squares = [self._buffer[first + each, self._lanes(v)] for each in range(self.dot.side)]
        return untangled(squares)[i - first]

    def _lanes(self, v: int) -> tirx.Expr:
        return lanes(v * self.width, self.width)
