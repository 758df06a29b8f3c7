"""A task of decoding: all queries that share one head of k and v, against a stretch of its keys.

Vectors run along head_dim, so that k and v are read in order, once: `width` products of a
query with a key are summed lane by lane, then all at once across lanes. The queries that share
a head (those of its group of heads, `q_len` each) take each tile of keys while a cache holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import DataType, tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.attention_problem import F32, LOWEST, UNSEEN, Problem
from tvmops.schedules.cpu.emit import (
    Extent,
    Span,
    branch,
    broadcast,
    ceildiv,
    computed,
    divides,
    lanes,
    load,
    minimum,
    registers,
)
from tvmops.schedules.cpu.floats import load_floats, store_floats
from tvmops.schedules.cpu.shuffle import in_all_lanes, sums_of
from tvmops.schedules.cpu.vector_math import exp_nonpositive


@dataclass(frozen=True)
class CacheShape:
    """How a task is cut."""

    width: int  # lanes of a vector; so many keys are a tile
    tiles: int  # in a block, between two looks at the maximum
    vectors: int  # of head_dim whose sums are in registers while values are added
    prefetch: int  # bytes of k and v that are asked for ahead

    @property
    def block(self) -> int:
        return self.width * self.tiles


@dataclass(frozen=True)
class Partial:
    """Where tasks leave what they found for a stretch of keys: [part, batch, head, query, ...]."""

    mixed: Any
    most: Any
    total: Any


class CacheTask:
    """Head `kv_head` of `batch` against the keys of `span`."""

    def __init__(
        self, problem: Problem, shape: CacheShape, batch: Extent, kv_head: Extent, span: Span
    ) -> None:
        self.problem, self.shape, self.span = problem, shape, span
        self.batch, self.kv_head = batch, kv_head
        self.of_kv = (batch, kv_head)
        self.rows = computed(problem.group * problem.q_len)
        self.parts = ceildiv(problem.head_dim, shape.width)
        self.limit = None if divides(shape.width, problem.head_dim) else problem.head_dim

    def emit(self, partial: Partial | None, part: Extent) -> None:
        shape, pitch = self.shape, self.parts * self.shape.width
        self.queries = T.alloc_buffer((self.rows, pitch), F32)
        self.mixed = T.alloc_buffer((self.rows, pitch), F32)
        self.weights = T.alloc_buffer((self.rows, shape.block), F32)
        self.most = T.alloc_buffer((self.rows, shape.width), F32)
        self.total = T.alloc_buffer((self.rows, shape.width), F32)
        with T.serial(self.rows) as row:
            self._start(row)
        count = computed(self.span.count)
        with T.serial(ceildiv(count, shape.block)) as block:
            start = computed(self.span.start + block * shape.block)
            self._block(start, computed(minimum(shape.block, count - block * shape.block)))
        with T.serial(self.rows) as row:
            self._finish(row, partial, part)

    def query_of(self, row: Extent) -> list[Extent]:
        """Return batch, head and query of a row: those of a head follow each other."""
        problem = self.problem
        head = computed(self.kv_head * problem.group + row // problem.q_len)
        return [self.batch, head, computed(row % problem.q_len)]

    def _start(self, row: Extent) -> None:
        problem, width = self.problem, self.shape.width
        at = self.query_of(row)
        for p in range(self.parts):
            value = self._load(problem.q, problem.at(*at), p) * broadcast(problem.scale, width)
            self._put(self.queries, row, p * width, value)
            self._put(self.mixed, row, p * width, self._all(0.0))
        self._put(self.most, row, 0, self._all(LOWEST))
        self._put(self.total, row, 0, self._all(0.0))

    def _block(self, start: Extent, count: Extent) -> None:
        width = self.shape.width
        whole = computed(count // width)
        with T.serial(whole) as tile, T.serial(self.rows) as row:
            keys = [start + tile * width + i for i in range(width)]
            self._scores(row, tile * width, keys, start, None)
        if not divides(width, count):
            with T.If(count % width != 0), T.Then():
                first = computed(start + whole * width)
                keys = [computed(minimum(first + i, start + count - 1)) for i in range(width)]
                with T.serial(self.rows) as row:
                    self._scores(row, whole * width, keys, start, count)
        with T.serial(self.rows) as row:
            self._weigh(row, computed(ceildiv(count, width)))
            for first in range(0, self.parts, self.shape.vectors):
                self._mix(row, start, count, range(first, min(first + self.shape.vectors, self.parts)))

    def _scores(self, row: Extent, at: Extent, keys: list[Extent], start: Extent, end: Extent | None) -> None:
        """Compute the scores of a row and `width` keys, the first of which is `at` in the block."""
        problem, width = self.problem, self.shape.width
        sums = registers((width, width), F32)
        query = [self._get(self.queries, row, p * width) for p in range(self.parts)]
        for i, key in enumerate(keys):
            self._ask(problem.k, key)
            total = self._load(problem.k, problem.at(*self.of_kv, key), 0) * query[0]
            self._put(sums, i, 0, total)
            for p in range(1, self.parts):
                product = self._load(problem.k, problem.at(*self.of_kv, key), p) * query[p]
                self._put(sums, i, 0, self._get(sums, i, 0) + product)
        score = sums_of(sums, width)
        if problem.mask is not None:
            self._mask(score, row, start + at, end is not None)
        if problem.last_key is not None:
            last = broadcast(self.query_of(row)[2] + problem.last_key, width)
            seen = lanes(start + at, width) <= last
            self._put(score, 0, 0, tirx.Select(seen, self._get(score, 0, 0), self._all(UNSEEN)))
        if end is not None:
            real = lanes(at, width) < broadcast(end, width)
            self._put(score, 0, 0, tirx.Select(real, self._get(score, 0, 0), self._all(UNSEEN)))
        self._put(self.weights, row, at, self._get(score, 0, 0))

    def _mask(self, score: Any, row: Extent, key: Extent, ragged: bool) -> None:
        problem, width = self.problem, self.shape.width
        at = problem.mask_at(*self.query_of(row))

        def apply(limit: Extent | None) -> None:
            value = tirx.Cast(f"{F32}x{width}", load(problem.mask, at, key, width, limit))
            now = self._get(score, 0, 0)
            added = problem.mask.dtype == F32  # type: ignore[union-attr]
            seen = value != self._all(0.0)
            self._put(score, 0, 0, now + value if added else tirx.Select(seen, now, self._all(UNSEEN)))

        if ragged:
            branch(key + width <= problem.kv_len, lambda: apply(None), lambda: apply(problem.kv_len))
        else:
            apply(None)

    def _weigh(self, row: Extent, tiles: Extent) -> None:
        """Raise the row's maximum, fade what it has, turn its scores into weights."""
        width = self.shape.width
        highest = registers((1, width), F32)
        self._put(highest, 0, 0, self._get(self.weights, row, 0))
        with T.serial(tiles) as tile:
            score = self._get(self.weights, row, tile * width)
            self._put(highest, 0, 0, tirx.max(score, self._get(highest, 0, 0)))
        highest = in_all_lanes(highest, width, tirx.max)
        self._put(highest, 0, 0, tirx.max(self._get(highest, 0, 0), self._get(self.most, row, 0)))
        faded = registers((1, width), F32)
        rise = self._get(self.most, row, 0) - self._get(highest, 0, 0)
        self._put(faded, 0, 0, exp_nonpositive(rise))
        self._put(self.most, row, 0, self._get(highest, 0, 0))
        total = registers((1, width), F32)
        self._put(total, 0, 0, self._get(self.total, row, 0) * self._get(faded, 0, 0))
        for p in range(self.parts):
            before = self._get(self.mixed, row, p * width)
            self._put(self.mixed, row, p * width, before * self._get(faded, 0, 0))
        with T.serial(tiles) as tile:
            weight = registers((1, width), F32)
            score = self._get(self.weights, row, tile * width)
            self._put(weight, 0, 0, exp_nonpositive(score - self._get(highest, 0, 0)))
            self._put(self.weights, row, tile * width, self._get(weight, 0, 0))
            self._put(total, 0, 0, self._get(total, 0, 0) + self._get(weight, 0, 0))
        self._put(self.total, row, 0, self._get(total, 0, 0))

    def _mix(self, row: Extent, start: Extent, count: Extent, parts: range) -> None:
        """Add the block's values by a row's weights."""
        problem, width = self.problem, self.shape.width
        sums = registers((len(parts), width), F32)
        for i, p in enumerate(parts):
            self._put(sums, i, 0, self._get(self.mixed, row, p * width))
        with T.serial(count) as j:
            self._ask(problem.v, start + j)
            weight = broadcast(self.weights[row, j], width)
            for i, p in enumerate(parts):
                value = self._load(problem.v, problem.at(*self.of_kv, start + j), p)
                self._put(sums, i, 0, self._get(sums, i, 0) + value * weight)
        for i, p in enumerate(parts):
            self._put(self.mixed, row, p * width, self._get(sums, i, 0))

    def _finish(self, row: Extent, partial: Partial | None, part: Extent) -> None:
        """Store the result of a row, or what is to be merged with that of other stretches."""
        problem, width = self.problem, self.shape.width
        total = registers((1, width), F32)
        self._put(total, 0, 0, self._get(self.total, row, 0))
        total = in_all_lanes(total, width, lambda a, b: a + b)
        at = self.query_of(row)
        if partial is None:
            none = self._get(total, 0, 0) == self._all(0.0)
            share = tirx.Select(none, self._all(0.0), self._all(1.0) / self._get(total, 0, 0))
            for p in range(self.parts):
                value = self._get(self.mixed, row, p * width) * share
                store_floats(problem.out, value, at, p * width, width, self._edge(p))
            return
        for p in range(self.parts):
            T.buffer_store(
                partial.mixed, self._get(self.mixed, row, p * width), [part, *at, lanes(p * width, width)]
            )
        T.buffer_store(partial.most, self.most[row, 0], [part, *at])
        T.buffer_store(partial.total, total[0, 0], [part, *at])

    # --- small words

    def _ask(self, buffer: Any, key: Extent) -> None:
        """Ask for what lies some way behind a key's elements; beyond an array that does nothing."""
        line, size = 64, DataType(buffer.dtype).itemsize
        if self.shape.prefetch:
            for first in range(0, size * self.problem.head_dim, line):
                ahead = (self.shape.prefetch + first) // size
                address = tirx.address_of(buffer[(*self.problem.at(*self.of_kv, key), ahead)])
                T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", address, 0, 3, 1))

    def _edge(self, p: int) -> int | None:
        return self.limit if p == self.parts - 1 else None

    def _load(self, buffer: Any, at: list[Extent], p: int) -> tirx.Expr:
        """Load a vector of head_dim; lanes beyond it are 0."""
        width = self.shape.width
        value = load_floats(buffer, at, p * width, width, self._edge(p))
        if self._edge(p) is None:
            return value
        inside = lanes(tirx.const(p * width, "int32"), width) < broadcast(
            tirx.const(self.limit, "int32"), width
        )
        return tirx.Select(inside, value, self._all(0.0))

    def _all(self, value: float) -> tirx.Expr:
        return broadcast(tirx.const(value, F32), self.shape.width)

    def _get(self, buffer: Any, row: Extent, at: Extent) -> tirx.Expr:
        return buffer[row, lanes(at, self.shape.width)]

    def _put(self, buffer: Any, row: Extent, at: Extent, value: tirx.Expr) -> None:
        T.buffer_store(buffer, value, [row, lanes(at, self.shape.width)])


def merge(problem: Problem, width: int, partial: Partial, parts: int, at: list[Extent]) -> None:
    """Join what tasks found for `parts` stretches of keys of the query at `at`, and store its result."""
    highest, total = registers((1,), F32), registers((1,), F32)
    factors = registers((parts,), F32)
    T.buffer_store(highest, partial.most[(0, *at)], [0])
    for part in range(1, parts):
        T.buffer_store(highest, tirx.max(highest[0], partial.most[(part, *at)]), [0])
    T.buffer_store(total, tirx.const(0.0, F32), [0])
    for part in range(parts):
        T.buffer_store(factors, exp_nonpositive(partial.most[(part, *at)] - highest[0]), [part])
        T.buffer_store(total, total[0] + partial.total[(part, *at)] * factors[part], [0])
    share = registers((1,), F32)
    one, zero = tirx.const(1.0, F32), tirx.const(0.0, F32)
    T.buffer_store(share, tirx.Select(total[0] == zero, zero, one / total[0]), [0])
    for first in range(0, problem.head_dim, width):
        limit = problem.head_dim if first + width > problem.head_dim else None
        sums: tirx.Expr | None = None
        for part in range(parts):
            mixed = partial.mixed[(part, *at, lanes(first, width))] * broadcast(factors[part], width)
            sums = mixed if sums is None else sums + mixed
        store_floats(problem.out, sums * broadcast(share[0], width), at, first, width, limit)
