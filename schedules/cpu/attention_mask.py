"""What a tile of attention hides from its queries: by the caller's mask, or as they come later."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.attention_problem import F32, UNSEEN
from tvmops.schedules.cpu.attention_queries import Queries, Vectors
from tvmops.schedules.cpu.emit import Extent, branch, broadcast, ceildiv, divides, load


class Mask:
    """The caller's mask; its part for a block of `block` keys is transposed where it differs by query."""

    def __init__(self, queries: Queries, block: int) -> None:
        self.problem, self.queries, self.block = queries.problem, queries, block
        self.turned: Vectors | None = None
        if self.problem.mask is not None and "q" in self.problem.mask_dims:
            self.turned = queries.memory(ceildiv(block, queries.width) * queries.width)

    def load(self, start: Extent, count: Extent) -> None:
        """Read what concerns a block of keys; what lies beyond the last key is never used."""
        if self.turned is None:
            return
        width, end = self.queries.width, self.problem.kv_len
        with T.serial(ceildiv(count, width)) as part:
            if divides(width, end) and divides(width, self.block):
                self._turn(start, part, None)
            else:
                whole = start + (part + 1) * width <= end
                branch(whole, lambda: self._turn(start, part, None), lambda: self._turn(start, part, end))

    def _turn(self, start: Extent, part: Extent, limit: Extent | None) -> None:
        """Transpose the mask of the `part`-th vector of keys."""
        mask, width = self.problem.mask, self.queries.width
        assert self.turned is not None
        for v in range(self.queries.vectors):
            at = [self.problem.mask_at(*row) for row in self.queries.rows(v)]
            rows = [load(mask, row, start + part * width, width, limit) for row in at]
            columns = self.queries.transposed([tirx.Cast(f"{F32}x{width}", row) for row in rows])
            for i in range(width):
                self.turned[part * width + i, v] = columns[i, 0]

    def apply(self, scores: Vectors, at: list[Extent], keys: list[Extent]) -> None:
        """Mask the scores of `keys`, which lie `at` these places into the block."""
        if self.problem.mask is None:
            return
        for i, key in enumerate(keys):
            for v in range(self.queries.vectors):
                scores[i, v] = self._masked(scores[i, v], at[i], key, v)

    def _masked(self, score: tirx.Expr, at: Extent, key: Extent, v: int) -> tirx.Expr:
        problem, queries = self.problem, self.queries
        if self.turned is not None:
            mask = self.turned[at, v]
        else:
            element = problem.mask[(*problem.mask_at(queries.batch, queries.head, 0), key)]  # type: ignore[index]
            mask = broadcast(tirx.Cast(F32, element), queries.width)
        if problem.mask.dtype == F32:  # type: ignore[union-attr]
            return score + mask
        return tirx.Select(mask != queries.all(0.0), score, queries.all(UNSEEN))


def hide_later(queries: Queries, scores: Vectors, keys: list[Extent]) -> None:
    """Hide keys from the queries that come before them, where the mask is causal."""
    problem, width = queries.problem, queries.width
    if problem.last_key is None:
        return
    first = 0 if problem.period else queries.first
    with T.If(keys[-1] > first + problem.last_key), T.Then():
        for i, key in enumerate(keys):
            for v in range(queries.vectors):
                last = queries.positions(v) + broadcast(problem.last_key, width)
                seen = broadcast(key, width) <= last
                scores[i, v] = tirx.Select(seen, scores[i, v], queries.all(UNSEEN))
