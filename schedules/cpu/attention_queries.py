"""The queries of a tile of attention: the lanes of its vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.attention_problem import F32, Problem
from tvmops.schedules.cpu.emit import Extent, broadcast, computed, divides, lanes, minimum, registers
from tvmops.schedules.cpu.shuffle import transpose


class Vectors:
    """A buffer of rows of vectors: `self[row, v]` is the `v`-th of a row, to read and to write."""

    def __init__(self, buffer: Any, width: int) -> None:
        self.buffer, self.width = buffer, width

    def __getitem__(self, at: tuple[Extent, Extent]) -> tirx.Expr:
        row, v = at
        return self.buffer[row, lanes(v * self.width, self.width)]

    def __setitem__(self, at: tuple[Extent, Extent], value: tirx.Expr) -> None:
        row, v = at
        T.buffer_store(self.buffer, value, [row, lanes(v * self.width, self.width)])


@dataclass(frozen=True)
class Queries:
    """Some vectors of queries of one head; those beyond the last repeat it and are not stored."""

    problem: Problem
    width: int  # lanes of a vector
    vectors: int
    batch: Extent
    head: Extent
    first: Extent

    @property
    def count(self) -> int:
        return self.width * self.vectors

    def memory(self, rows: Extent, dtype: str = F32) -> Vectors:
        """Allocate a value for each row and query."""
        return Vectors(T.alloc_buffer((rows, self.count), dtype), self.width)

    def registers(self, rows: int) -> Vectors:
        """Allocate a float for each row and query in registers."""
        return Vectors(registers((rows, self.count), F32), self.width)

    def all(self, value: float) -> tirx.Expr:
        """Return a vector of `value`."""
        return broadcast(tirx.const(value, F32), self.width)

    def rows(self, v: int) -> list[list[Extent]]:
        """Return batch, head and query of the lanes of vector `v`."""
        first, last = self.first + v * self.width, self.problem.q_len - 1
        return [[self.batch, self.head, computed(minimum(first + i, last))] for i in range(self.width)]

    def positions(self, v: int) -> tirx.Expr:
        """Return the positions of a vector of queries."""
        rows, period = lanes(self.first + v * self.width, self.width), self.problem.period
        return rows if period is None else tirx.floormod(rows, broadcast(period, self.width))

    def seen(self) -> Extent:
        """Count the keys up to the last that some query sees."""
        problem = self.problem
        if problem.last_key is None:
            return problem.kv_len
        last_query = minimum(self.first + self.count, problem.period or problem.q_len) - 1
        return tirx.max(minimum(problem.kv_len, last_query + problem.last_key + 1), 0)

    def transposed(self, rows: list[tirx.Expr]) -> Vectors:
        """Return the columns of a square of vectors, one a row, in registers."""
        square = registers((self.width, self.width), F32)
        for i, row in enumerate(rows):
            T.buffer_store(square, row, [i, lanes(0, self.width)])
        return Vectors(transpose(square, self.width), self.width)

    def below(self, index: Extent, end: Extent, emit: Callable[[Extent], None]) -> None:
        """Call `emit(index)` where `index`, one of `width` from a multiple of it on, is below `end`."""
        if divides(self.width, end):
            emit(index)
        else:
            with T.If(index < end), T.Then():
                emit(index)
