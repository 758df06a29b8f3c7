"""Softmax on GPUs along an axis that is not the last; `kernels.softmax_columns` says how."""

from __future__ import annotations

import math
from itertools import product

from tvm import IRModule

from tvmops.schedules.cuda.extents import extent, known
from tvmops.schedules.cuda.kernels.softmax_columns import DEPTH, ColumnKernel, ColumnShape, ColumnTiles
from tvmops.schedules.cuda.row_memory import parts_of, vector_width
from tvmops.schedules.cuda.rows import HOPPER, of_any_rows
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.signatures.softmax import MIDDLE
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_THREADS = (128, 256, 512)
_LANES = (4, 8, 16, 32, 64, 128)
_CLUSTERS = (1, 2, 4, 8, 16)
_KEPT = (0, 4, 8, 12, 16, 24, 32)
_RESIDENT = (1, 2, 3, 4, 6, 8)
_OTHER_REGISTERS = 40  # of a thread
_MOST_THREADS = 2048  # of a multiprocessor
_BUSY = 1024  # threads with which one is
_RATE = 80e9  # bytes a second that one moves at most
_LINE = 128  # bytes side by side that are read as fast as more


class SoftmaxColumns(Template):
    name = "cuda.softmax_columns"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        return target.gpu is not None and workload.op == "softmax" and workload["axis"] == MIDDLE

    def space(self, workload: Workload, target: Target) -> Space:
        knobs = (
            Knob("threads", _THREADS),
            Knob("lanes", _LANES),
            Knob("cluster", _clusters(target)),
            Knob("kept", _KEPT),
            Knob("resident", _RESIDENT),
            Knob("stream", (False, True)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        legal = (
            config
            for threads, lanes, cluster, kept, resident in product(
                _THREADS, _LANES, _clusters(target), _KEPT, _RESIDENT
            )
            if threads * resident <= _BUSY
            and is_legal(config := _config(threads, lanes, cluster, kept, resident), workload, target)
        )
        return min(legal, key=lambda config: self.estimate(workload, target, config))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return [GenericKernel(ranges={}, config=_config(256, 32, 1, 0, 2))]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds, as an H100 has them: of a block alone, of the bytes, of blocks that are late."""
        assert target.gpu is not None
        tiles = tiles_of(config, workload)
        rows, cols, inner = (known(workload, name) for name in ("rows", "cols", "inner"))
        strips = math.ceil(inner / tiles.columns)
        blocks = rows * strips * tiles.cluster
        waves = blocks / (tiles.resident * target.cores)
        steps = math.ceil(cols / (tiles.groups * tiles.cluster))
        rest = max(0.0, 1 - tiles.kept / steps)  # is read twice
        short = 1.0 if strips == 1 else max(1.0, _LINE / (tiles.columns * _bytes(workload)))
        moved = rows * cols * strips * tiles.columns * _bytes(workload)
        nbytes = (2 + 0.6 * rest) * moved * short
        rate = min(target.gpu.bandwidth * 0.9, min(blocks, target.cores) * _RATE)
        busy = math.ceil(min(waves, 1.0) * tiles.resident) * tiles.threads / _BUSY
        late = (math.ceil(waves) - waves) / waves**2 if waves > 1 else 0.0
        alone = 1.5e-6 + 1.2e-9 * tiles.threads + 0.8e-6 * math.log2(tiles.cluster) + 0.03e-6 * steps
        alone += 0.02e-6 * tiles.groups
        return alone * (1 + 0.02 * waves) + nbytes / (rate * math.pow(min(1.0, busy), 0.4)) * (1 + late)

    def kernel_workload(self, workload: Workload) -> Workload:
        return of_any_rows(workload)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        shape = ColumnShape(
            rows=extent(workload, "rows"),
            cols=extent(workload, "cols"),
            inner=extent(workload, "inner"),
            dtype=str(workload["dtype"]),
            log=bool(workload["log"]),
            scaled=bool(workload["scaled"]),
            mask_rows=extent(workload, "mask_rows"),
        )
        return ColumnKernel(shape, tiles_of(config, workload)).module()


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine and the columns; the only statement of the template's limits."""
    assert target.gpu is not None
    tiles, lanes = tiles_of(config, workload), config.number("lanes")
    raw = (
        (tiles.kept + DEPTH)
        * parts_of(str(workload["dtype"]), tiles.width)
        * (1 + (workload["mask_rows"] != 0))
    )
    registers = _OTHER_REGISTERS + raw + tiles.width * (DEPTH + 2)
    threads = tiles.resident * tiles.threads
    shared = (tiles.groups + tiles.cluster) * tiles.columns * 8 + 1024
    if (
        threads > _MOST_THREADS
        or threads * registers > target.gpu.block_registers
        or registers > 255
        or tiles.resident * shared > target.gpu.shared_bytes
        or (workload["inner"] != ANY and lanes > _LANES[0] and lanes >= 2 * tiles.lanes)
    ):
        return False
    if workload["cols"] == ANY:
        return True
    stride = tiles.groups * tiles.cluster
    steps = -(-workload.dims("cols")[0] // stride)
    return (stride == tiles.groups or steps > 1 or tiles.groups == 1) and tiles.kept < steps + DEPTH


def tiles_of(config: Config, workload: Workload) -> ColumnTiles:
    width, lanes = 1, config.number("lanes")
    if workload["inner"] != ANY:
        (inner,) = workload.dims("inner")
        width = vector_width(str(workload["dtype"]), inner)
        lanes = min(lanes, -(-inner // width))  # neighbours that follow each other in memory, however many
    return ColumnTiles(
        threads=config.number("threads"),
        lanes=lanes,
        width=width,
        cluster=config.number("cluster"),
        kept=config.number("kept"),
        stream=bool(config["stream"]),
        resident=config.number("resident"),
    )


def _config(threads: int, lanes: int, cluster: int, kept: int, resident: int) -> Config:
    return Config.of(threads=threads, lanes=lanes, cluster=cluster, kept=kept, resident=resident, stream=True)


def _clusters(target: Target) -> tuple[int, ...]:
    return _CLUSTERS if target.gpu is not None and target.gpu.compute >= HOPPER else (1,)


def _bytes(workload: Workload) -> int:
    return 4 if workload["dtype"] == "float32" else 2
