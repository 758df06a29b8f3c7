"""Softmax, LayerNorm and RMSNorm on GPUs of rows that are long, few, or begin anywhere; `kernels.long_rows` says how."""

from __future__ import annotations

import math

from tvm import IRModule

from tvmops.schedules.cuda.extents import extent, known
from tvmops.schedules.cuda.kernels.long_rows import PARTS, LongRowKernel, LongTiles
from tvmops.schedules.cuda.kernels.row_values import WARP
from tvmops.schedules.cuda.loose_memory import full_width
from tvmops.schedules.cuda.row_memory import VECTOR_BYTES
from tvmops.schedules.cuda.rows import row_shape
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.signatures.dtypes import bits_of
from tvmops.signatures.softmax import LAST
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_NORMS = ("layer_norm", "rms_norm")
_THREADS = (64, 96, 128, 192, 256, 320, 512, 640, 1024)
_KEPT = (0, 1, 2, 3, 4, 5, 6, 7, 8)
_CLUSTERS = (1, 2, 4, 8, 16)
_HOPPER = 90
_OTHER_REGISTERS = 32


class LongRows(Template):
    name = "cuda.rows_long"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if target.gpu is None or workload.op not in ("softmax", *_NORMS):
            return False
        return workload.op in _NORMS or workload["axis"] == LAST

    def space(self, workload: Workload, target: Target) -> Space:
        knobs = (
            Knob("threads", _THREADS),
            Knob("cluster", _CLUSTERS if _has_clusters(target) else (1,)),
            Knob("kept", _KEPT),
            Knob("depth", (0, 1, 2, 4)),
            Knob("ahead", (False, True) if _factors(workload) else (False,)),
            Knob("stream", (False, True)),
            Knob("resident", (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)),
            Knob("stays", (False, True) if _factors(workload) else (False,)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        configs = [
            Config.of(threads=threads, cluster=cluster, kept=kept, depth=depth, ahead=False, stream=True, resident=1, stays=False)
            for threads in _THREADS
            for cluster in (_CLUSTERS if _has_clusters(target) else (1,))
            for kept in _KEPT
            for depth in (0, 4)
        ]
        legal = [config for config in configs if is_legal(config, workload, target)]
        return min(legal, key=lambda config: self.estimate(workload, target, config))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        config = Config.of(threads=512, cluster=1, kept=0, depth=2, ahead=False, stream=False, resident=2, stays=False)
        return [GenericKernel(ranges={}, config=config)]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds."""
        assert target.gpu is not None
        tiles = tiles_of(config, target)
        rows, cols = known(workload, "rows"), known(workload, "cols")
        size = bits_of(str(workload["dtype"])) // 8
        blocks = rows * tiles.cluster
        side = max(1, min(2048 // tiles.threads, target.gpu.block_registers // (tiles.threads * _registers(workload, target, config))))
        busy = min(blocks, side * target.cores)
        waves = math.ceil(blocks / (side * target.cores))
        rest = max(0.0, 1 - tiles.kept * tiles.team * full_width(str(workload["dtype"])) / cols)
        flow = min(target.gpu.bandwidth, min(blocks, target.cores) * 60e9)
        in_flight = busy * tiles.threads * 16 * (tiles.kept or tiles.depth)
        rate = flow * min(1.0, in_flight / (target.gpu.bandwidth * 1.5e-6))
        return (2 + 0.6 * rest) * rows * cols * size / rate + waves * 1e-7 * (1 + math.log2(tiles.team))

    def kernel_workload(self, workload: Workload) -> Workload:
        changes = {"rows": ANY}
        if workload.op == "softmax" and workload["mask_rows"] != 0:
            changes["mask_rows"] = ANY
        return workload.replace(**changes)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        return LongRowKernel(row_shape(workload), tiles_of(config, target)).module()


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    assert target.gpu is not None
    tiles, width = tiles_of(config, target), full_width(str(workload["dtype"]))
    step = tiles.team * width
    registers = tiles.resident * tiles.threads * _registers(workload, target, config)
    if tiles.resident * tiles.threads > 2048 or registers > target.gpu.block_registers or (tiles.ahead and not tiles.kept):
        return False
    if workload["cols"] == ANY:
        return tiles.depth > 0 and not tiles.stays
    held = tiles.stays * _factors(workload) * tiles.kept * tiles.threads * VECTOR_BYTES
    if tiles.resident * (held + 2048) > target.gpu.shared_bytes:
        return False
    if tiles.stays and (tiles.cluster > 1 or tiles.depth or tiles.ahead):
        return False
    (cols,) = workload.dims("cols")
    vectors = -(-cols // width) + (cols % width > 0)  # of a row that begins anywhere
    all_kept = tiles.kept * tiles.team >= vectors
    needed = (tiles.kept - 1) * tiles.team < vectors and (tiles.team == _THREADS[0] or step < 2 * cols + 2 * width)
    return needed and all_kept == (tiles.depth == 0)


def tiles_of(config: Config, target: Target) -> LongTiles:
    return LongTiles(
        threads=config.number("threads"),
        cluster=config.number("cluster"),
        kept=config.number("kept"),
        depth=config.number("depth"),
        ahead=bool(config["ahead"]),
        stream=bool(config["stream"]),
        resident=config.number("resident"),
        stays=bool(config["stays"]),
        multiprocessors=target.cores,
    )


def _has_clusters(target: Target) -> bool:
    return target.gpu is not None and target.gpu.compute >= _HOPPER


def _factors(workload: Workload) -> int:
    return int(bool(workload["weight"])) + int(bool(workload["bias"])) if workload.op in _NORMS else 0


def _registers(workload: Workload, target: Target, config: Config) -> int:
    """Guess the registers of a thread; where they do not suffice, compiling says so."""
    tiles = tiles_of(config, target)
    added = workload["mask_rows"] != 0 if workload.op == "softmax" else bool(workload["residual"])
    raw = (tiles.kept * (1 + tiles.stays) + tiles.depth) * (1 + added) + (tiles.kept * _factors(workload) if tiles.ahead else 0)
    return _OTHER_REGISTERS + PARTS * raw
