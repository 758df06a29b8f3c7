"""Attention with few queries against a long cache of keys and values: bound by reading them.

A task is one head of k and v and a stretch of its keys, for all queries that share the head;
`tvmops.schedules.cpu.attention_cache` does it. With `splits` stretches a head, so that all cores
have work where there are few heads, their results are merged by their maxima and sums
(T. Dao et al., Flash-Decoding, 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.ops import op_of
from tvmops.schedules.cpu.attention_cache import CacheShape, CacheTask, Partial, merge
from tvmops.schedules.cpu.attention_problem import F32, FEW_QUERIES, Problem
from tvmops.schedules.cpu.emit import Extent, Span, ceildiv, computed, minimum, share
from tvmops.schedules.cpu.floats import DTYPES
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.signatures.attention import THD
from tvmops.signatures.dtypes import bits_of
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_SMALL_BYTES = 100_000  # of k and v; below, starting threads costs more than it saves
_MEMORY_BYTES_A_CYCLE = 4
_LAUNCH_CYCLES = 10_000


@dataclass(frozen=True)
class Blocking:
    """The knobs, as numbers."""

    tiles: int
    vectors: int
    prefetch: int
    splits: int
    parallel: bool

    @classmethod
    def of(cls, config: Config) -> Blocking:
        return cls(**config.as_dict())  # type: ignore[arg-type]


class CpuDecode(Template):
    name = "cpu.attention_decode"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != "attention" or workload["lengths"] or workload["layout"] == THD:
            return False
        if workload["dtype"] not in DTYPES or target.kind != "cpu":
            return False
        return workload["q_len"] == ANY or workload.dims("q_len")[0] <= FEW_QUERIES

    def space(self, workload: Workload, target: Target) -> Space:
        knobs = (
            Knob("tiles", (1, 2, 4, 8, 16, 32, 64)),
            Knob("vectors", (1, 2, 4, 8, 16)),
            Knob("prefetch", (0, 1024, 2048, 4096, 8192)),
            Knob("splits", tuple(sorted({1, 2, 4, target.cores, 2 * target.cores}))),
            Knob("parallel", (False, True)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        batch, kv_heads, kv_len, head_dim = workload.dims("batch", "kv_heads", "kv_len", "head_dim")
        parallel = op_of(workload).nbytes(workload) > _SMALL_BYTES
        splits = target.cores if parallel and batch * kv_heads % target.cores else 1
        tiles = max(tiles for tiles in (1, 2, 4, 8) if tiles == 1 or tiles * _width(target) < 2 * kv_len)
        wanted = _default(head_dim, target, tiles, splits, parallel)
        return wanted if is_legal(wanted, workload, target) else wanted.replace(splits=1)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        (head_dim,) = workload.dims("head_dim")
        few = {"q_len": (1, FEW_QUERIES)}
        return [
            GenericKernel(
                {**few, "batch": (1, 1), "kv_heads": (1, 4), "kv_len": (1, 64)},
                _default(head_dim, target, 2, 1, False),
            ),
            GenericKernel(few, _default(head_dim, target, 8, target.cores, True)),
        ]

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                T.func_attr({"tirx.noalias": True})
                _tasks(Problem.declare(workload), _width(target), Blocking.of(config))
        return IRModule({"main": builder.get()})

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Estimate the cycles of the busiest core: rough, to order a first batch."""
        knobs = Blocking.of(config)
        batch, heads, kv_heads = workload.dims("batch", "heads", "kv_heads")
        q_len, kv_len, head_dim = workload.dims("q_len", "kv_len", "head_dim")
        rows = heads // kv_heads * q_len
        width = _width(target)
        parts = ceil(head_dim / width)
        passes = ceil(parts / knobs.vectors)
        size = bits_of(str(workload["dtype"])) // 8
        read = 2 * size * kv_len * head_dim / _MEMORY_BYTES_A_CYCLE * (1 if knobs.prefetch else 1.1)
        step = parts + 3 + max(parts, 4 * passes) + 2 * passes
        blocks = ceil(kv_len / (knobs.tiles * width)) * (60 + 3 * parts)
        work = max(read, rows * (kv_len * step + blocks))
        tasks = batch * kv_heads * knobs.splits
        rounds = ceil(tasks / target.cores) if knobs.parallel else tasks
        return rounds * work / knobs.splits + _LAUNCH_CYCLES * knobs.parallel * (1 + (knobs.splits > 1))


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    knobs = Blocking.of(config)
    kv_len, head_dim = workload.dims("kv_len", "head_dim")
    heads, kv_heads, q_len = workload.dims("heads", "kv_heads", "q_len")
    width = _width(target)
    block = knobs.tiles * width
    return (
        (knobs.tiles == 1 or block < 2 * kv_len)
        and (knobs.splits == 1 or (knobs.splits * width <= kv_len and knobs.parallel))
        and (knobs.vectors == 1 or knobs.vectors < 2 * ceil(head_dim / width))
        and knobs.vectors + 3 <= target.vector_registers
        and 4 * heads // kv_heads * q_len * (block + 2 * head_dim) <= target.l2_bytes
    )


def _default(head_dim: int, target: Target, tiles: int, splits: int, parallel: bool) -> Config:
    parts = ceil(head_dim / _width(target))
    vectors = max(vectors for vectors in (1, 2, 4, 8) if vectors == 1 or vectors < 2 * parts)
    return Config.of(tiles=tiles, vectors=vectors, prefetch=0, splits=splits, parallel=parallel)


def _width(target: Target) -> int:
    return target.vector_width(F32)


def _tasks(problem: Problem, width: int, knobs: Blocking) -> None:
    """Give each task a head and a stretch of its keys; merge what several found for one head."""
    shape = CacheShape(width, knobs.tiles, knobs.vectors, knobs.prefetch)
    kv_heads = computed(problem.heads // problem.group)
    seen: Extent = problem.kv_len
    if problem.last_key is not None:
        seen = computed(tirx.max(minimum(seen, problem.q_len + problem.last_key), 0))
    partial: Partial | None = None
    rows = (problem.batch, problem.heads, problem.q_len)
    if knobs.splits > 1:
        pitch = ceildiv(problem.head_dim, width) * width
        partial = Partial(
            T.alloc_buffer((knobs.splits, *rows, pitch), F32),
            T.alloc_buffer((knobs.splits, *rows), F32),
            T.alloc_buffer((knobs.splits, *rows), F32),
        )
    loop = T.parallel if knobs.parallel else T.serial
    with loop(problem.batch * kv_heads * knobs.splits) as task:
        head, part = computed(task // knobs.splits), computed(task % knobs.splits)
        batch, kv_head = computed(head // kv_heads), computed(head % kv_heads)
        CacheTask(problem, shape, batch, kv_head, share(Span(0, seen), part, knobs.splits)).emit(
            partial, part
        )
    if partial is not None:
        with loop(problem.batch * problem.heads) as head, T.serial(problem.q_len) as query:
            at = [computed(head // problem.heads), computed(head % problem.heads), query]
            merge(problem, width, partial, knobs.splits, at)


__all__ = ["CpuDecode", "is_legal"]
