"""One tile of attention: some queries of a head against the keys that they see.

Vectors run along the queries. So neither k nor v is packed or transposed: both products
broadcast single elements of them, and maximum, sum and rescaling need no horizontal step.
What is transposed is small: the tile's queries before, its results after, and its part of a
mask that differs by query. Where k and v are bfloat16, those of a block are widened first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.attention_mask import Mask, hide_later
from tvmops.schedules.cpu.attention_problem import F32, LOWEST, Problem
from tvmops.schedules.cpu.attention_queries import Queries, Vectors
from tvmops.schedules.cpu.emit import (
    Extent,
    broadcast,
    ceildiv,
    computed,
    divides,
    minimum,
    registers,
    store,
)
from tvmops.schedules.cpu.floats import load_floats, store_floats
from tvmops.schedules.cpu.vector_math import exp_nonpositive

WEIGHTS_UNROLL = 4


@dataclass(frozen=True)
class TileShape:
    """How a tile is cut. Registers hold `keys` x `vectors` scores, then `dims` x `vectors` results."""

    width: int  # lanes of a vector
    vectors: int  # of queries
    keys: int
    block: int  # keys between two looks at the maximum; a multiple of `keys`
    dims: int  # elements of head_dim
    unroll: int

    @property
    def queries(self) -> int:
        return self.width * self.vectors


class Tile:
    """Queries from `first` on of one head; those beyond the last repeat it and are not stored."""

    def __init__(
        self, problem: Problem, shape: TileShape, batch: Extent, head: Extent, first: Extent
    ) -> None:
        self.problem, self.shape = problem, shape
        self.of_kv = (batch, computed(head // problem.group))
        self.lanes = Queries(problem, shape.width, shape.vectors, batch, head, computed(first))

    def emit(self) -> None:
        problem, shape = self.problem, self.shape
        self.weights = self.lanes.memory(shape.block)
        self.mixed = self.lanes.memory(problem.head_dim)
        self.mask = Mask(self.lanes, shape.block)
        self._allocate()
        self.most = self.lanes.registers(1)
        self.total = self.lanes.registers(1)
        for v in range(shape.vectors):
            self.most[0, v] = self.lanes.all(LOWEST)
            self.total[0, v] = self.lanes.all(0.0)
        with T.serial(problem.head_dim) as d:
            for v in range(shape.vectors):
                self.mixed[d, v] = self.lanes.all(0.0)
        self._load_queries()
        seen = computed(self.lanes.seen())
        with T.serial(ceildiv(seen, shape.block)) as block:
            start = computed(block * shape.block)
            self._block(start, computed(minimum(shape.block, seen - start)))
        self._store_result()

    def _allocate(self) -> None:
        """Allocate what holds queries, and k and v of a block, in the form that is computed with."""
        problem, shape = self.problem, self.shape
        self.steps = problem.head_dim  # of a score's sum
        self.queries = self.lanes.memory(self.steps)
        self.wide: dict[str, Any] = {}
        if not problem.is_wide:
            pitch = ceildiv(problem.head_dim, shape.width) * shape.width
            self.wide = {name: T.alloc_buffer((shape.block, pitch), F32) for name in "kv"}

    # --- between memory, where vectors run along head_dim, and vectors along queries

    def _load_queries(self) -> None:
        width = self.shape.width
        for v in range(self.shape.vectors):
            at = self.lanes.rows(v)
            with T.serial(ceildiv(self.steps, width)) as part:
                columns = self.lanes.transposed([self._query(row, part) for row in at])
                for i in range(width):

                    def put(row: Extent, i: int = i, columns: Vectors = columns, v: int = v) -> None:
                        self.queries[row, v] = columns[i, 0]

                    self.lanes.below(part * width + i, self.steps, put)

    def _query(self, row: list[Extent], part: Extent) -> tirx.Expr:
        """Return the `part`-th vector of one query, scaled."""
        problem, width = self.problem, self.shape.width
        limit = None if divides(width, problem.head_dim) else problem.head_dim
        scale = broadcast(problem.scale, width)
        return load_floats(problem.q, problem.at(*row), part * width, width, limit) * scale

    def _store_result(self) -> None:
        """Divide by the sum of the weights, transpose, store. A sum of 0 makes the result 0."""
        problem, width = self.problem, self.shape.width
        limit = None if divides(width, problem.head_dim) else problem.head_dim
        inverse = self.lanes.registers(1)
        zero, one = self.lanes.all(0.0), self.lanes.all(1.0)
        for v in range(self.shape.vectors):
            total = self.total[0, v]
            inverse[0, v] = tirx.Select(total == zero, zero, one / total)
            with T.serial(ceildiv(problem.head_dim, width)) as part:
                dims = [part * width + i for i in range(width)]
                dims = [d if limit is None else minimum(d, limit - 1) for d in dims]
                rows = self.lanes.transposed([self.mixed[d, v] * inverse[0, v] for d in dims])
                for i in range(width):

                    def put(query: Extent, i: int = i, rows: Vectors = rows, part: Extent = part) -> None:
                        at = [self.lanes.batch, self.lanes.head, query]
                        store_floats(problem.out, rows[i, 0], at, part * width, width, limit)

                    self.lanes.below(self.lanes.first + v * width + i, problem.q_len, put)

    # --- one block of keys

    def _prepare(self, start: Extent, count: Extent) -> None:
        """Make float32 of the elements of k and v that belong to a block."""
        head_dim, width = self.problem.head_dim, self.shape.width
        for name, wide in self.wide.items():
            with T.serial(count) as row:
                for at in range(0, head_dim, width):
                    limit = head_dim if at + width > head_dim else None
                    value = load_floats(
                        self._given(name), self.problem.at(*self.of_kv, start + row), at, width, limit
                    )
                    store(wide, value, [row], at, width, limit)

    def _element(self, name: str, start: Extent, row: Extent, d: Extent) -> tirx.Expr:
        """Return an element of k or v, `row` rows into the block that begins at `start`."""
        return (
            self.wide[name][row, d]
            if self.wide
            else self._given(name)[(*self.problem.at(*self.of_kv, start + row), d)]
        )

    def _given(self, name: str) -> Any:
        return self.problem.k if name == "k" else self.problem.v

    def _block(self, start: Extent, count: Extent) -> None:
        shape = self.shape
        self.mask.load(start, count)
        self._prepare(start, count)
        highest = self.lanes.registers(1)
        for v in range(shape.vectors):
            highest[0, v] = self.most[0, v]
        with T.serial(count // shape.keys) as tile:
            self._scores(start, [tile * shape.keys + i for i in range(shape.keys)], highest)
        if not divides(shape.keys, count):
            with T.If(count % shape.keys != 0), T.Then():  # what lies beyond the last key repeats it
                first = count // shape.keys * shape.keys
                at = [computed(minimum(first + i, count - 1)) for i in range(shape.keys)]
                self._scores(start, at, highest)
        faded = self.lanes.registers(1)
        for v in range(shape.vectors):
            faded[0, v] = exp_nonpositive(self.most[0, v] - highest[0, v])
            self.most[0, v] = highest[0, v]
            self.total[0, v] = self.total[0, v] * faded[0, v]
        self._weigh(count)
        head_dim, dims = self.problem.head_dim, min(shape.dims, self.problem.head_dim)
        with T.serial(head_dim // dims) as part:
            self._mix(start, count, faded, part * dims, dims)
        if head_dim % dims:
            self._mix(start, count, faded, head_dim // dims * dims, head_dim % dims)

    def _scores(self, start: Extent, at: list[Extent], highest: Vectors) -> None:
        """Compute the scores of the keys that lie `at` these places into the block, and raise `highest`."""
        shape = self.shape
        every = [(i, v) for i in range(shape.keys) for v in range(shape.vectors)]
        sums = self.lanes.registers(shape.keys)
        for i, v in every:
            sums[i, v] = self.lanes.all(0.0)

        def step(d: Extent) -> None:
            queries = [self.queries[d, v] for v in range(shape.vectors)]
            for i, v in every:
                sums[i, v] = self._score(sums[i, v], start, at[i], d, queries[v])

        unrolled(self.steps, shape.unroll, step)
        self._restrict(sums, at, [start + i for i in at])
        for i, v in every:
            score = sums[i, v]
            self.weights[at[i], v] = score
            highest[0, v] = tirx.max(score, highest[0, v])

    def _score(self, total: tirx.Expr, start: Extent, at: Extent, d: Extent, query: tirx.Expr) -> tirx.Expr:
        """Return `total` and what row `d` of the queries adds to the scores of one key."""
        return total + broadcast(self._element("k", start, at, d), self.shape.width) * query

    def _restrict(self, sums: Vectors, at: list[Extent], keys: list[Extent]) -> None:
        """Apply the masks to the scores of `keys`."""
        self.mask.apply(sums, at, keys)
        hide_later(self.lanes, sums, keys)

    def _weigh(self, count: Extent) -> None:
        """Turn the scores of a block of keys into weights, and add them up."""

        def weigh(row: Extent) -> None:
            for v in range(self.shape.vectors):
                self.weights[row, v] = self._weight(row, v)

        unrolled(count, WEIGHTS_UNROLL, weigh)

    def _weight(self, row: Extent, v: int) -> tirx.Expr:
        """Return the weights of the key at `row`, which are added to the total."""
        weight = Vectors(registers((1, self.shape.width), F32), self.shape.width)
        weight[0, 0] = exp_nonpositive(self.weights[row, v] - self.most[0, v])
        self.total[0, v] = self.total[0, v] + weight[0, 0]
        return weight[0, 0]

    def _mix(self, start: Extent, count: Extent, faded: Vectors, first: Extent, dims: int) -> None:
        """Add a block's values by their weights to what came before, faded; `dims` of head_dim."""
        every = [(i, v) for i in range(dims) for v in range(self.shape.vectors)]
        sums = self.lanes.registers(dims)
        for i, v in every:
            sums[i, v] = self.mixed[first + i, v] * faded[0, v]
        self._over_keys(start, count, sums, first, dims)
        for i, v in every:
            self.mixed[first + i, v] = sums[i, v]

    def _over_keys(self, start: Extent, count: Extent, sums: Vectors, first: Extent, dims: int) -> None:
        shape = self.shape

        def step(row: Extent) -> None:
            weights = [self.weights[row, v] for v in range(shape.vectors)]
            for i in range(dims):
                element = broadcast(self._element("v", start, row, first + i), shape.width)
                for v, weight in enumerate(weights):
                    sums[i, v] = sums[i, v] + element * weight

        unrolled(count, shape.unroll, step)


def unrolled(count: Extent, unroll: int, step: Callable[[Extent], None]) -> None:
    """Emit `step` for each index below `count`, `unroll` of them side by side."""
    with T.serial(count // unroll) as group:
        for u in range(unroll):
            step(group * unroll + u)
    if not divides(unroll, count):
        with T.serial(count % unroll) as rest:
            step(count // unroll * unroll + rest)
