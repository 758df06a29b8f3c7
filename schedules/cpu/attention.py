"""Attention with many queries a head: tiles of queries, blocks of keys, online softmax.

A task is one tile: some vectors of queries of one head. It walks over the keys that they see
in blocks; for each block it computes the scores, raises the running maximum, turns scores
into weights, fades what it has and adds the block's values (T. Dao et al., FlashAttention,
NeurIPS 2022). `tvmops.schedules.cpu.attention_tile` does it, with vectors along the queries.

The queries of heads that share k and v are taken as those of one head where all see the same, or
are few.
A q_len that is no multiple of `vectors` vectors ends in a smaller tile; where it is not known,
in tiles of one vector.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from tvm import IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.ops import op_of
from tvmops.schedules.cpu.attention_problem import F32, Problem, can_join, joined
from tvmops.schedules.cpu.attention_tile import Tile, TileShape
from tvmops.schedules.cpu.emit import Extent, branch, ceildiv, computed
from tvmops.schedules.cpu.floats import DTYPES
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures.attention import THD
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_SMALL_FLOPS = 500_000  # below, starting threads costs more than it saves
_LAUNCH_CYCLES = 10_000


@dataclass(frozen=True)
class Blocking:
    """The knobs, as numbers."""

    vectors: int
    keys: int
    tiles: int  # of keys in a block
    dims: int
    unroll: int
    parallel: bool

    @classmethod
    def of(cls, config: Config) -> Blocking:
        return cls(**config.as_dict())  # type: ignore[arg-type]

    def tile(self, width: int) -> TileShape:
        return TileShape(width, self.vectors, self.keys, self.keys * self.tiles, self.dims, self.unroll)


class CpuAttention(Template):
    name = "cpu.attention"
    version = 3

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != "attention" or workload["lengths"] or workload["layout"] == THD:
            return False
        return workload["dtype"] in DTYPES and target.kind == "cpu"

    def space(self, workload: Workload, target: Target) -> Space:
        knobs = (
            Knob("vectors", (1, 2, 3, 4, 6)),
            Knob("keys", (2, 3, 4, 5, 6, 8, 10, 12, 14, 20)),
            Knob("tiles", (2, 4, 6, 8, 10, 12, 16, 24, 32, 48)),
            Knob("dims", (2, 3, 4, 5, 6, 8, 10, 12, 16, 20)),
            Knob("unroll", (1, 2, 4)),
            Knob("parallel", (False, True)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, joined(workload), target))

    def default(self, workload: Workload, target: Target) -> Config:
        return _default(joined(workload), target, op_of(workload).flops(workload) > _SMALL_FLOPS)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        few = {"batch": (1, 2), "heads": (1, 4), "q_len": (1, 16), "kv_len": (1, 32)}
        small, large = (workload.replace(q_len=q, kv_len=kv) for q, kv in ((16, 32), (1024, 1024)))
        return [
            GenericKernel(few, _default(small, target, False)),
            GenericKernel({}, _default(large, target, True)),
        ]

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        blocking = Blocking.of(config)
        shape = blocking.tile(target.vector_width("float32"))
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                T.func_attr({"tirx.noalias": True})
                problem = Problem.declare(workload)
                problem = problem.joined() if can_join(workload) else problem
                self.tasks(problem, shape, blocking.parallel)
        return IRModule({"main": builder.get()})

    def tasks(self, problem: Problem, shape: TileShape, parallel: bool) -> None:
        """Emit the loop over tasks."""
        tasks(Tile, problem, shape, parallel)

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        return _cycles(joined(workload), target, Blocking.of(config))


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    knobs = Blocking.of(config)
    q_len, kv_len, head_dim = workload.dims("q_len", "kv_len", "head_dim")
    width = target.vector_width("float32")
    rows = max(knobs.keys, min(knobs.dims, head_dim))  # sums in registers; queries or weights, one element
    block = knobs.keys * knobs.tiles
    return (
        rows * knobs.vectors + knobs.vectors + 1 <= target.vector_registers
        and knobs.vectors <= ceil(q_len / width)
        and (knobs.tiles == 2 or block < 2 * kv_len)
        and (knobs.dims == 2 or knobs.dims < 2 * head_dim)
        and 4 * width * knobs.vectors * (block + 2 * head_dim) <= target.l2_bytes // 2
        and (workload["dtype"] == F32 or _widened(head_dim) * block <= target.l2_bytes // 2)
        and rows * knobs.vectors * knobs.unroll <= 128  # beyond, compiling takes long and gains nothing
    )


def _widened(head_dim: int) -> int:
    """Return how many bytes the elements of k and v that belong to a key take as float32."""
    return 8 * head_dim


def _default(workload: Workload, target: Target, parallel: bool) -> Config:
    """Fill the register file with sums; hold a block's weights in half of the first cache."""
    q_len, kv_len, head_dim = workload.dims("q_len", "kv_len", "head_dim")
    width = target.vector_width("float32")
    vectors = min(2, ceil(q_len / width))
    most = min((target.vector_registers - 1) // vectors - 1, 24 // vectors)
    keys = max(keys for keys in (2, 3, 4, 5, 6, 8, 10, 12, 20) if keys <= most)
    dims = max(dims for dims in (2, 3, 4, 5, 6, 8) if dims <= min(most, max(head_dim, 2)))
    room = max(2 * keys, min(target.l1_bytes // (2 * 4 * width * vectors), 2 * kv_len - 1))
    if workload["dtype"] != F32:
        room = max(2 * keys, min(room, target.l2_bytes // 4 // _widened(head_dim)))
    tiles = max(tiles for tiles in (2, 4, 6, 8, 10) if tiles * keys <= room)
    return Config.of(vectors=vectors, keys=keys, tiles=tiles, dims=dims, unroll=2, parallel=parallel)


def tasks(tile: type[Tile], problem: Problem, shape: TileShape, parallel: bool) -> None:
    """Give each task a tile; with a causal mask, long and short ones in turn."""
    vectors = ceildiv(problem.q_len, shape.width)
    whole, rest = computed(vectors // shape.vectors), computed(vectors % shape.vectors)
    known = isinstance(vectors, int)
    tiles = computed(whole + (min(rest, 1) if known else rest))
    small = replace(shape, vectors=rest if known and rest else 1)
    loop = T.parallel if parallel else T.serial
    with loop(problem.batch * problem.heads * tiles) as task:
        head, index = computed(task // tiles), computed(task % tiles)
        if problem.last_key is not None:
            index = computed(T.if_then_else(index % 2 == 0, index // 2, tiles - 1 - index // 2))
        at = (computed(head // problem.heads), computed(head % problem.heads))
        last = whole * shape.queries + (index - whole) * small.queries

        def emit(shape: TileShape, first: Extent) -> None:
            tile(problem, shape, *at, first).emit()

        if known and rest == 0:
            emit(shape, index * shape.queries)
        elif known and whole == 0:
            emit(small, 0)
        else:
            branch(index < whole, lambda: emit(shape, index * shape.queries), lambda: emit(small, last))


def _cycles(workload: Workload, target: Target, knobs: Blocking) -> float:
    """Estimate the cycles of the busiest core: rough, to order a first batch."""
    batch, heads, q_len = workload.dims("batch", "heads", "q_len")
    kv_len, head_dim = workload.dims("kv_len", "head_dim")
    width = target.vector_width("float32")
    vectors = ceil(q_len / width)
    queries = width * knobs.vectors
    keys = kv_len / 2 + queries / 2 if workload["causal"] and q_len == kv_len else kv_len
    block = min(knobs.keys * knobs.tiles, kv_len)

    def a_step(rows: int) -> float:
        """Return the cycles of a step of a product: multiplications, loads or their latency."""
        return max(rows * knobs.vectors, (rows + 2 * knobs.vectors) / 2, 4) + 1 / knobs.unroll

    dims = min(knobs.dims, head_dim)
    products = ceil(keys / knobs.keys) * head_dim * a_step(knobs.keys)
    products += ceil(head_dim / dims) * keys * a_step(dims)
    edges = ceil(keys / knobs.keys) * (20 + 2 * knobs.keys * knobs.vectors)
    blocks = ceil(keys / block) * (head_dim * knobs.vectors * 3 + 100)
    weights = keys * knobs.vectors * 9
    footprint = 4 * queries * (block + head_dim)
    slow = 1.05 if footprint > target.l1_bytes else 1.0
    tile = (products + edges + blocks + weights) * slow + head_dim * knobs.vectors * 12
    tiles = batch * heads * vectors / knobs.vectors
    return tile * ceil(tiles) / (min(target.cores, ceil(tiles)) if knobs.parallel else 1) + (
        _LAUNCH_CYCLES * knobs.parallel
    )


__all__ = ["CpuAttention", "is_legal", "tasks"]
