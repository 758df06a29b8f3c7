"""Attention with many queries a head in bfloat16, by the instruction that multiplies pairs of them.

As `tvmops.schedules.cpu.attention`, but that both products are of words of two bfloat16. For
scores these are neighbours along head_dim, which k holds as they are needed; for the result
those of two keys, of which the weights are rounded to bfloat16, and v's rows interleaved a block
at a time. The scores are scaled once they are summed, for queries would have to be rounded.

The instruction takes denormal inputs and results for zeros (Intel 64 and IA-32 Architectures
Software Developer's Manual, VDPBF16PS): with |q|, |k| <= 1 an error of head_dim * 2**-126 at most in
a score, and of kv_len * 2**-126 in a sum of weighted values.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.attention import CpuAttention, tasks
from tvmops.schedules.cpu.attention_problem import F32, Problem
from tvmops.schedules.cpu.attention_queries import Vectors
from tvmops.schedules.cpu.attention_tile import WEIGHTS_UNROLL, Tile, TileShape, unrolled
from tvmops.schedules.cpu.dot import functions_of
from tvmops.schedules.cpu.dot_x86 import Bfloat16
from tvmops.schedules.cpu.dots import bfloat16_dots
from tvmops.schedules.cpu.emit import Extent, broadcast, ceildiv, divides, lanes, load
from tvmops.signatures.dtypes import BFLOAT16
from tvmops.targets import Target
from tvmops.workloads import Workload

_DOT = Bfloat16()
_WORD = "int32"


class CpuAttentionDot(CpuAttention):
    name = "cpu.attention_dot"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        return (
            super().covers(workload, target)
            and workload["dtype"] == BFLOAT16
            and workload.dims("head_dim")[0] % 2 == 0
            and any(isinstance(dot, Bfloat16) for dot in bfloat16_dots(target))
        )

    def tasks(self, problem: Problem, shape: TileShape, parallel: bool) -> None:
        with functions_of(_DOT):
            tasks(DotTile, problem, shape, parallel)


class DotTile(Tile):
    """Queries, weights and values lie as words: [pair][query], or [pair][element]."""

    def _allocate(self) -> None:
        problem, shape = self.problem, self.shape
        self.steps = problem.head_dim // 2  # words of a query or key
        pairs = ceildiv(shape.block, 2)
        pitch = ceildiv(problem.head_dim, shape.width) * shape.width
        self.queries = self.lanes.memory(self.steps)  # the bits, that is
        self.pairs = self.lanes.memory(pairs, _WORD)
        self.values = T.alloc_buffer((pairs, pitch), _WORD)

    def _query(self, row: list[Extent], part: Extent) -> tirx.Expr:
        problem, width = self.problem, self.shape.width
        limit = None if divides(width, self.steps) else problem.head_dim
        values = load(problem.q, problem.at(*row), part * 2 * width, 2 * width, limit)
        return T.reinterpret(f"{F32}x{width}", values)

    def _prepare(self, start: Extent, count: Extent) -> None:
        """Interleave the values of the keys 2 i and 2 i + 1 of a block."""
        with T.serial(count // 2) as pair:
            self._interleave(pair, start + 2 * pair, is_whole=True)
        with T.If(count % 2 == 1), T.Then():
            self._interleave(count // 2, start + count - 1, is_whole=False)

    def _interleave(self, pair: Extent, key: Extent, is_whole: bool) -> None:
        problem, width = self.problem, self.shape.width
        for at in range(0, problem.head_dim, width):
            limit = None if at + width <= problem.head_dim else problem.head_dim
            keys = (key, key + 1) if is_whole else (key,)
            rows = [load(problem.v, problem.at(*self.of_kv, each), at, width, limit) for each in keys]
            words = [T.Cast(f"{_WORD}x{width}", row) for row in rows]
            T.buffer_store(self.values, self._joined(words), [pair, lanes(at, width)])

    def _joined(self, words: list[tirx.Expr]) -> tirx.Expr:
        """Return words of the lowest halves of one word or two."""
        sixteen = broadcast(tirx.const(16, _WORD), self.shape.width)
        return words[0] if len(words) == 1 else words[0] | (words[1] << sixteen)

    def _score(self, total: tirx.Expr, start: Extent, at: Extent, d: Extent, query: tirx.Expr) -> tirx.Expr:
        problem, width = self.problem, self.shape.width
        key = T.reinterpret(_WORD, problem.k[(*problem.at(*self.of_kv, start + at), lanes(2 * d, 2))])
        return _DOT.add(total, broadcast(key, width), T.reinterpret(f"{_WORD}x{width}", query))

    def _restrict(self, sums: Vectors, at: list[Extent], keys: list[Extent]) -> None:
        scale = broadcast(self.problem.scale, self.shape.width)
        for i in range(self.shape.keys):
            for v in range(self.shape.vectors):
                sums[i, v] = sums[i, v] * scale
        super()._restrict(sums, at, keys)

    def _weigh(self, count: Extent) -> None:
        def weigh(pair: Extent, keys: int = 2) -> None:
            for v in range(self.shape.vectors):
                words = [self._rounded(self._weight(2 * pair + i, v)) for i in range(keys)]
                self.pairs[pair, v] = self._joined(words)

        unrolled(count // 2, WEIGHTS_UNROLL // 2, weigh)
        with T.If(count % 2 == 1), T.Then():
            weigh(count // 2, keys=1)

    def _rounded(self, weight: tirx.Expr) -> tirx.Expr:
        """Return the bits of a weight, rounded to bfloat16: nearest, ties to even.

        They are not negative. Where one is NaN so is the total, and whatever this gives is lost.
        """
        width = self.shape.width
        bits = T.bind(T.reinterpret(f"{_WORD}x{width}", weight))
        half, one, sixteen = (broadcast(tirx.const(n, _WORD), width) for n in (0x7FFF, 1, 16))
        return (bits + half + ((bits >> sixteen) & one)) >> sixteen

    def _over_keys(self, start: Extent, count: Extent, sums: Vectors, first: Extent, dims: int) -> None:
        shape = self.shape

        def step(pair: Extent) -> None:
            weights = [self.pairs[pair, v] for v in range(shape.vectors)]
            for i in range(dims):
                values = broadcast(self.values[pair, first + i], shape.width)
                for v, weight in enumerate(weights):
                    sums[i, v] = _DOT.add(sums[i, v], values, weight)

        unrolled(ceildiv(count, 2), shape.unroll, step)


__all__ = ["CpuAttentionDot"]
