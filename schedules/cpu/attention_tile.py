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

from tvmops.schedules.cpu.attention_problem import F32, LOWEST, UNSEEN, Problem
from tvmops.schedules.cpu.emit import (
    Extent,
    branch,
    broadcast,
    ceildiv,
    computed,
    divides,
    lanes,
    load,
    minimum,
    registers,
    store,
)
from tvmops.schedules.cpu.floats import load_floats, store_floats
from tvmops.schedules.cpu.shuffle import transpose
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
        self.batch, self.head = batch, head
        self.of_q, self.of_kv = [batch, head], (batch, computed(head // problem.group))
        self.first = computed(first)

    def emit(self) -> None:
        problem, shape = self.problem, self.shape
        self.weights = T.alloc_buffer((shape.block, shape.queries), F32)
        self.mixed = T.alloc_buffer((problem.head_dim, shape.queries), F32)
        self.masks = None
        if problem.mask is not None and "q" in problem.mask_dims:
            rows = ceildiv(shape.block, shape.width)
            self.masks = T.alloc_buffer((rows * shape.width, shape.queries), F32)
        self._allocate()
        self.most = registers((1, shape.queries), F32)
        self.total = registers((1, shape.queries), F32)
        for v in range(shape.vectors):
            self._put(self.most, 0, v, self._all(LOWEST))
            self._put(self.total, 0, v, self._all(0.0))
        with T.serial(problem.head_dim) as d:
            for v in range(shape.vectors):
                self._put(self.mixed, d, v, self._all(0.0))
        self._load_queries()
        seen = computed(self._seen())
        with T.serial(ceildiv(seen, shape.block)) as block:
            start = computed(block * shape.block)
            self._block(start, computed(minimum(shape.block, seen - start)))
        self._store_result()

    def _allocate(self) -> None:
        """Allocate what holds queries, and k and v of a block, in the form that is computed with."""
        problem, shape = self.problem, self.shape
        self.queries = T.alloc_buffer((problem.head_dim, shape.queries), F32)
        self.wide: dict[str, Any] = {}
        if not problem.is_wide:
            pitch = ceildiv(problem.head_dim, shape.width) * shape.width
            self.wide = {name: T.alloc_buffer((shape.block, pitch), F32) for name in "kv"}

    def _seen(self) -> Extent:
        """Count the keys up to the last that some query of this tile sees."""
        problem = self.problem
        if problem.last_key is None:
            return problem.kv_len
        last_query = minimum(self.first + self.shape.queries, problem.period or problem.q_len) - 1
        return tirx.max(minimum(problem.kv_len, last_query + problem.last_key + 1), 0)

    # --- between memory, where vectors run along head_dim or keys, and vectors along queries

    def _load_queries(self) -> None:
        width, rows = self.shape.width, self.queries.shape[0]
        for v in range(self.shape.vectors):
            at = self._rows(v)
            with T.serial(ceildiv(rows, width)) as part:
                columns = self._transposed([self._query(row, part) for row in at])
                for i in range(width):
                    self._below(part * width + i, rows, self._storing(self.queries, columns, i, v))

    def _query(self, row: list[Extent], part: Extent) -> tirx.Expr:
        """Return the `part`-th vector of one query, scaled."""
        problem, width = self.problem, self.shape.width
        limit = None if divides(width, problem.head_dim) else problem.head_dim
        scale = broadcast(problem.scale, width)
        return load_floats(problem.q, problem.at(*row), part * width, width, limit) * scale

    def _load_masks(self, start: Extent, count: Extent) -> None:
        """Fill `masks` for a block of keys; what lies beyond the last key is never used."""
        mask, width = self.problem.mask, self.shape.width
        limit = self.problem.kv_len

        def fill(part: Extent, limit: Extent | None) -> None:
            for v in range(self.shape.vectors):
                at = [self.problem.mask_at(*row) for row in self._rows(v)]
                rows = [load(mask, row, start + part * width, width, limit) for row in at]
                columns = self._transposed([tirx.Cast(f"{F32}x{width}", row) for row in rows])
                for i in range(width):
                    self._put(self.masks, part * width + i, v, columns[i, lanes(0, width)])

        with T.serial(ceildiv(count, width)) as part:
            if divides(width, limit) and divides(width, self.shape.block):
                fill(part, None)
            else:
                whole = start + (part + 1) * width <= limit
                branch(whole, lambda: fill(part, None), lambda: fill(part, limit))

    def _store_result(self) -> None:
        """Divide by the sum of the weights, transpose, store. A sum of 0 makes the result 0."""
        problem, width = self.problem, self.shape.width
        limit = None if divides(width, problem.head_dim) else problem.head_dim
        inverse = registers((1, self.shape.queries), F32)
        for v in range(self.shape.vectors):
            total = self._get(self.total, 0, v)
            share = tirx.Select(total == self._all(0.0), self._all(0.0), self._all(1.0) / total)
            self._put(inverse, 0, v, share)
            with T.serial(ceildiv(problem.head_dim, width)) as part:
                dims = [part * width + i for i in range(width)]
                dims = [d if limit is None else minimum(d, limit - 1) for d in dims]
                rows = self._transposed(
                    [self._get(self.mixed, d, v) * self._get(inverse, 0, v) for d in dims]
                )
                for i in range(width):
                    query = self.first + v * width + i

                    def put(query: Extent, i: int = i, rows: Any = rows, part: Extent = part) -> None:
                        at = [*self.of_q, query]
                        store_floats(problem.out, rows[i, lanes(0, width)], at, part * width, width, limit)

                    self._below(query, problem.q_len, put)

    def _rows(self, v: int) -> list[list[Extent]]:
        """Return batch, head and query of the lanes of vector `v`."""
        first = self.first + v * self.shape.width
        last = self.problem.q_len - 1
        return [[*self.of_q, computed(minimum(first + i, last))] for i in range(self.shape.width)]

    def _transposed(self, rows: list[tirx.Expr]) -> Any:
        width = self.shape.width
        square = registers((width, width), F32)
        for i, row in enumerate(rows):
            T.buffer_store(square, row, [i, lanes(0, width)])
        return transpose(square, width)

    def _storing(self, buffer: Any, columns: Any, i: int, v: int) -> Callable[[Extent], None]:
        return lambda row: self._put(buffer, row, v, columns[i, lanes(0, self.shape.width)])

    def _below(self, index: Extent, end: Extent, emit: Callable[[Extent], None]) -> None:
        """Call `emit(index)` where `index`, one of `width` from a multiple of it on, is below `end`."""
        if divides(self.shape.width, end):
            emit(index)
        else:
            with T.If(index < end), T.Then():
                emit(index)

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
        if self.masks is not None:
            self._load_masks(start, count)
        self._prepare(start, count)
        highest = registers((1, shape.queries), F32)
        for v in range(shape.vectors):
            self._put(highest, 0, v, self._get(self.most, 0, v))
        with T.serial(count // shape.keys) as tile:
            self._scores(start, [tile * shape.keys + i for i in range(shape.keys)], highest)
        if not divides(shape.keys, count):
            with T.If(count % shape.keys != 0), T.Then():  # what lies beyond the last key repeats it
                first = count // shape.keys * shape.keys
                at = [computed(minimum(first + i, count - 1)) for i in range(shape.keys)]
                self._scores(start, at, highest)
        faded = registers((1, shape.queries), F32)
        for v in range(shape.vectors):
            rise = self._get(self.most, 0, v) - self._get(highest, 0, v)
            self._put(faded, 0, v, exp_nonpositive(rise))
            self._put(self.most, 0, v, self._get(highest, 0, v))
            self._put(self.total, 0, v, self._get(self.total, 0, v) * self._get(faded, 0, v))
        self._weigh(count)
        head_dim, dims = self.problem.head_dim, min(shape.dims, self.problem.head_dim)
        with T.serial(head_dim // dims) as part:
            self._mix(start, count, faded, part * dims, dims)
        if head_dim % dims:
            self._mix(start, count, faded, head_dim // dims * dims, head_dim % dims)

    def _scores(self, start: Extent, at: list[Extent], highest: Any) -> None:
        """Compute the scores of the keys that lie `at` these places into the block, and raise `highest`."""
        shape = self.shape
        keys = [start + i for i in at]
        every = [(i, v) for i in range(shape.keys) for v in range(shape.vectors)]
        sums = registers((shape.keys, shape.queries), F32)
        for i, v in every:
            self._put(sums, i, v, self._all(0.0))

        def step(d: Extent) -> None:
            queries = [self._get(self.queries, d, v) for v in range(shape.vectors)]
            for i, v in every:
                self._put(sums, i, v, self._score(self._get(sums, i, v), start, at[i], d, queries[v]))

        self._unrolled(self.queries.shape[0], shape.unroll, step)
        self._restrict(sums, at, keys)
        for i, v in every:
            score = self._get(sums, i, v)
            self._put(self.weights, at[i], v, score)
            self._put(highest, 0, v, tirx.max(score, self._get(highest, 0, v)))

    def _score(self, total: tirx.Expr, start: Extent, at: Extent, d: Extent, query: tirx.Expr) -> tirx.Expr:
        """Return `total` and what row `d` of the queries adds to the scores of one key."""
        return total + broadcast(self._element("k", start, at, d), self.shape.width) * query

    def _restrict(self, sums: Any, at: list[Extent], keys: list[Extent]) -> None:
        """Apply the masks to the scores of `keys`."""
        problem, shape = self.problem, self.shape
        every = [(i, v) for i in range(shape.keys) for v in range(shape.vectors)]
        if problem.mask is not None:
            for i, v in every:
                self._put(sums, i, v, self._masked(self._get(sums, i, v), at[i], keys[i], v))
        if problem.last_key is not None:
            first = 0 if problem.period else self.first
            with T.If(keys[-1] > first + problem.last_key), T.Then():
                for i, v in every:
                    last = self._positions(v) + broadcast(problem.last_key, shape.width)
                    seen = broadcast(keys[i], shape.width) <= last
                    self._put(sums, i, v, tirx.Select(seen, self._get(sums, i, v), self._all(UNSEEN)))

    def _positions(self, v: int) -> tirx.Expr:
        """Return the positions of a vector of queries."""
        rows, period = lanes(self.first + v * self.shape.width, self.shape.width), self.problem.period
        return rows if period is None else tirx.floormod(rows, broadcast(period, self.shape.width))

    def _masked(self, score: tirx.Expr, at: Extent, key: Extent, v: int) -> tirx.Expr:
        problem = self.problem
        if self.masks is not None:
            mask = self._get(self.masks, at, v)
        else:
            element = problem.mask[(*problem.mask_at(self.batch, self.head, 0), key)]  # type: ignore[index]
            mask = broadcast(tirx.Cast(F32, element), self.shape.width)
        if problem.mask.dtype == F32:  # type: ignore[union-attr]
            return score + mask
        return tirx.Select(mask != self._all(0.0), score, self._all(UNSEEN))

    def _weigh(self, count: Extent) -> None:
        """Turn the scores of a block of keys into weights, and add them up."""

        def weigh(row: Extent) -> None:
            for v in range(self.shape.vectors):
                self._put(self.weights, row, v, self._weight(row, v))

        self._unrolled(count, WEIGHTS_UNROLL, weigh)

    def _weight(self, row: Extent, v: int) -> tirx.Expr:
        """Return the weights of the key at `row`, which are added to the total."""
        weight = registers((1, self.shape.width), F32)
        score = self._get(self.weights, row, v)
        self._put(weight, 0, 0, exp_nonpositive(score - self._get(self.most, 0, v)))
        self._put(self.total, 0, v, self._get(self.total, 0, v) + self._get(weight, 0, 0))
        return self._get(weight, 0, 0)

    def _mix(self, start: Extent, count: Extent, faded: Any, first: Extent, dims: int) -> None:
        """Add a block's values by their weights to what came before, faded; `dims` of head_dim."""
        shape = self.shape
        every = [(i, v) for i in range(dims) for v in range(shape.vectors)]
        sums = registers((dims, shape.queries), F32)
        for i, v in every:
            self._put(sums, i, v, self._get(self.mixed, first + i, v) * self._get(faded, 0, v))

        self._over_keys(start, count, sums, first, dims)
        for i, v in every:
            self._put(self.mixed, first + i, v, self._get(sums, i, v))

    def _over_keys(self, start: Extent, count: Extent, sums: Any, first: Extent, dims: int) -> None:
        shape = self.shape

        def step(row: Extent) -> None:
            weights = [self._get(self.weights, row, v) for v in range(shape.vectors)]
            for i in range(dims):
                element = broadcast(self._element("v", start, row, first + i), shape.width)
                for v, weight in enumerate(weights):
                    self._put(sums, i, v, self._get(sums, i, v) + element * weight)

        self._unrolled(count, shape.unroll, step)

    # --- small words

    def _unrolled(self, count: Extent, unroll: int, step: Callable[[Extent], None]) -> None:
        with T.serial(count // unroll) as group:
            for u in range(unroll):
                step(group * unroll + u)
        if not divides(unroll, count):
            with T.serial(count % unroll) as rest:
                step(count // unroll * unroll + rest)

    def _all(self, value: float) -> tirx.Expr:
        return broadcast(tirx.const(value, F32), self.shape.width)

    def _get(self, buffer: Any, row: Extent, v: int) -> tirx.Expr:
        return buffer[row, lanes(v * self.shape.width, self.shape.width)]

    def _put(self, buffer: Any, row: Extent, v: int, value: tirx.Expr) -> None:
        T.buffer_store(buffer, value, [row, lanes(v * self.shape.width, self.shape.width)])
