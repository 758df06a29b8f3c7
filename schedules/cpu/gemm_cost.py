"""What a blocking costs: an analytic estimate, and its parts as features for a cost model.

The estimate counts cycles of one core. It is rough: it orders a first batch, no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

from tvmops.schedules.cpu.gemm_frame import Blocking
from tvmops.signatures.layouts import PLAIN
from tvmops.targets import Target
from tvmops.workloads import Workload

_FMA_LATENCY = 4  # cycles, on each x86 and ARM core of the last decade
_L2_BYTES_A_CYCLE = 32
_L3_BYTES_A_CYCLE = 10
_MEMORY_BYTES_A_CYCLE = 4
_LAUNCH_CYCLES = 10_000  # to start threads and to wait for the last


@dataclass(frozen=True)
class Shape:
    """A problem, and the lanes of the vectors it is computed in."""

    m: int
    n: int
    k: int
    batch: int
    width: int
    panels: bool  # b was packed beforehand

    @classmethod
    def of(cls, workload: Workload, target: Target) -> Shape:
        m, n, k, batch = workload.dims("m", "n", "k", "batch")
        packed = workload["packed"] != PLAIN
        return cls(m, n, k, batch, target.vector_width(str(workload["dtype"])), packed)


@dataclass(frozen=True)
class _Work:
    """What the busiest task does, padding included."""

    tiles: int
    panels: int
    depth: int  # of a block of k
    k_blocks: int
    tasks: int
    waves: int  # tasks that a core runs one after the other

    @classmethod
    def of(cls, shape: Shape, target: Target, blocking: Blocking) -> _Work:
        stretch = ceil(shape.k / blocking.split_k)
        depth = min(blocking.kc or stretch, stretch)
        tasks = blocking.split_m * blocking.split_n * blocking.split_k * blocking.split_batch
        return cls(
            tiles=ceil(ceil(shape.m / blocking.mr) / blocking.split_m),
            panels=ceil(ceil(shape.n / (blocking.nv * shape.width)) / blocking.split_n),
            depth=depth,
            k_blocks=ceil(stretch / depth),
            tasks=tasks,
            waves=ceil(tasks / target.cores),
        )


def cost(shape: Shape, target: Target, blocking: Blocking) -> float:
    """Estimate the cycles of `blocking`."""
    work = _Work.of(shape, target, blocking)
    matrices = ceil(shape.batch / blocking.split_batch)
    matrix = _multiply(shape, target, blocking, work) + _pack(shape, target, blocking, work)
    return work.waves * matrices * matrix + (work.tasks > 1) * _LAUNCH_CYCLES


def _multiply(shape: Shape, target: Target, blocking: Blocking, work: _Work) -> float:
    multiplies = blocking.mr * blocking.nv
    loads = blocking.mr + blocking.nv
    step = float(max(multiplies, loads, _FMA_LATENCY))  # a core retires about one full vector a cycle
    step += (1 + (not blocking.pack_a) * blocking.mr / 8) / blocking.ku
    row_bytes = 4 * blocking.nv * shape.width
    step = max(step, row_bytes / _b_bandwidth(shape, target, blocking, work))
    edges = 3 * multiplies * (1 if work.k_blocks == 1 else 2)
    return work.tiles * work.panels * work.k_blocks * (work.depth * step + edges + 10)


def _b_bandwidth(shape: Shape, target: Target, blocking: Blocking, work: _Work) -> float:
    """Return the bytes a cycle at which a panel of b streams in."""
    panel = 4 * work.depth * blocking.nv * shape.width
    rows = min(blocking.mc or work.tiles, work.tiles)
    block = panel * min(blocking.nc or work.panels, work.panels)
    if work.tiles == 1 and not blocking.pack_b and not shape.panels:
        return _MEMORY_BYTES_A_CYCLE if 4 * shape.n * shape.k > target.l3_bytes else _L3_BYTES_A_CYCLE
    if rows > 1 and panel <= target.l1_bytes * 0.7:
        return 64.0
    return _L2_BYTES_A_CYCLE if block <= target.l2_bytes * 0.7 else _L3_BYTES_A_CYCLE


def _pack(shape: Shape, target: Target, blocking: Blocking, work: _Work) -> float:
    cycles = 0.0
    if blocking.pack_b:
        b_bytes = 4 * work.depth * work.k_blocks * work.panels * blocking.nv * shape.width
        from_memory = 4 * shape.n * shape.k > target.l2_bytes and not blocking.ahead
        cycles += b_bytes / _L3_BYTES_A_CYCLE
        cycles += b_bytes / (_MEMORY_BYTES_A_CYCLE if from_memory else _L3_BYTES_A_CYCLE)
    if blocking.pack_a:
        sweeps = ceil(work.panels / (blocking.nc or work.panels))
        cycles += (
            sweeps
            * work.tiles
            * blocking.mr
            * (8 * work.depth * work.k_blocks / _L2_BYTES_A_CYCLE + 10 * work.k_blocks)
        )
    return cycles


def features(shape: Shape, target: Target, blocking: Blocking) -> dict[str, float]:
    """Describe a blocking by ratios and logarithms, which hold across shapes."""
    work = _Work.of(shape, target, blocking)
    nr = blocking.nv * shape.width
    panel_bytes = 4 * work.depth * nr
    computed = work.tiles * blocking.mr * blocking.split_m * work.panels * nr * blocking.split_n
    return {
        "mr": blocking.mr,
        "nv": blocking.nv,
        "ku": blocking.ku,
        "accumulators": blocking.mr * blocking.nv,
        "pack_a": float(blocking.pack_a),
        "pack_b": float(blocking.pack_b),
        "split_m": blocking.split_m,
        "split_n": blocking.split_n,
        "split_k": blocking.split_k,
        "log_depth": log2(work.depth),
        "log_k_blocks": log2(work.k_blocks),
        "log_rows": log2(min(blocking.mc or work.tiles, work.tiles)),
        "log_columns": log2(min(blocking.nc or work.panels, work.panels)),
        "waste": computed / (shape.m * shape.n),
        "waves": work.waves,
        "panel_in_l1": panel_bytes / target.l1_bytes,
        "block_in_l2": panel_bytes * min(blocking.nc or work.panels, work.panels) / target.l2_bytes,
        "rows_in_l2": 4
        * work.depth
        * blocking.mr
        * min(blocking.mc or work.tiles, work.tiles)
        / target.l2_bytes,
        "row_pitch_4k": float(shape.k % 1024 == 0),
        "log_m": log2(shape.m),
        "log_n": log2(shape.n),
        "log_k": log2(shape.k),
        "log_estimate": log2(max(cost(shape, target, blocking), 1.0)),
    }
