"""Softmax, LayerNorm and RMSNorm on GPUs of rows that are long, few, or begin anywhere.

`kernels.long_rows` says how.
"""

from __future__ import annotations

import math
from itertools import product

from tvm import IRModule

from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.kernels.long_rows import PARTS, LongRowKernel, LongTiles
from tvmops.schedules.cuda.loose_memory import full_width
from tvmops.schedules.cuda.row_memory import VECTOR_BYTES
from tvmops.schedules.cuda.rows import HOPPER, of_any_rows, row_shape
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.signatures.softmax import LAST
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_NORMS = ("layer_norm", "rms_norm")
_THREADS = (64, 96, 128, 192, 256, 320, 512, 640, 1024)
_CLUSTERS = (1, 2, 4, 8, 16)
_KEPT = (0, 1, 2, 3, 4, 5, 6, 7, 8)
_RESIDENT = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
_OTHER_REGISTERS = 32  # of a thread
_MOST_THREADS = 2048  # of a multiprocessor
_BUSY = 1024  # threads with which one is
_RATE = 80e9  # bytes a second that one moves at most
_LONG = (16384, 1 << 30)  # columns


class LongRows(Template):
    name = "cuda.rows_long"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if target.gpu is None or workload.op not in ("softmax", *_NORMS):
            return False
        return workload.op in _NORMS or workload["axis"] == LAST

    def space(self, workload: Workload, target: Target) -> Space:
        either = (False, True) if _factors(workload) else (False,)
        knobs = (
            Knob("threads", _THREADS),
            Knob("cluster", _clusters(target)),
            Knob("kept", _KEPT),
            Knob("depth", (0, 1, 2, 4)),
            Knob("ahead", either),
            Knob("stream", (False, True)),
            Knob("resident", _RESIDENT),
            Knob("stays", either),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        """Return the fastest by estimate of those that keep whole rows, and of some that read them twice."""
        either = (False, True) if _factors(workload) else (False,)
        candidates = (
            _config(threads, resident, cluster, kept, depth, ahead, stays)
            for threads, resident in product(_THREADS, _RESIDENT)
            if threads * resident <= _BUSY
            for cluster, kept, depth in product(_clusters(target), _KEPT, (0, 4))
            for ahead, stays in product(either, either)
        )
        legal = (config for config in candidates if is_legal(config, workload, target))
        return min(legal, key=lambda config: self.estimate(workload, target, config))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        many = GenericKernel(ranges={}, config=_config(threads=512, depth=2, resident=2))
        if not _clusters(target)[1:]:
            return [many]
        few = _config(threads=256, cluster=8, kept=1, depth=2, resident=2)
        return [GenericKernel(ranges={"rows": (1, target.cores // 2), "cols": _LONG}, config=few), many]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds, as an H100 has them: of a block alone, of the bytes, of blocks that are late."""
        assert target.gpu is not None
        tiles, width = tiles_of(config, target), full_width(str(workload["dtype"]))
        rows, cols = known(workload, "rows"), known(workload, "cols")
        blocks = rows * tiles.cluster
        waves = blocks / (tiles.resident * target.cores)
        steps = math.ceil(cols / (tiles.team * width))
        rest = max(0.0, 1 - tiles.kept * tiles.team * width / cols)  # is read twice
        idle = steps * tiles.team * width / cols
        added = _added(workload)
        written = 1 + (workload.op in _NORMS and added)
        nbytes = (1 + added + written) * (1 + 0.3 * rest) * rows * cols * VECTOR_BYTES / width
        nbytes *= math.pow(idle, 0.3)
        rate = min(target.gpu.bandwidth * 0.9, min(blocks, target.cores) * _RATE)
        busy = math.ceil(min(waves, 1.0) * tiles.resident) * tiles.threads * (1 + added) / _BUSY
        if _factors(workload) and cols % width and width > 4 and not tiles.stays:
            nbytes *= 1.2  # instructions that shift weight and bias
        late = (math.ceil(waves) - waves) / waves**2 if waves > 1 and not tiles.stays else 0.0
        alone = 1.3e-6 + 1.2e-9 * tiles.threads + 0.2e-6 * math.log2(tiles.cluster) + 0.1e-6 * steps
        alone += 0.8e-6 * (rest > 0) - 0.1e-6 * tiles.ahead + 0.5e-6 * tiles.stays
        flow = nbytes / (rate * math.pow(min(1.0, busy), 0.4)) * (1 + late)
        return flow + alone + 0.02 * alone * waves + 0.4 * max(0.0, 2 * alone * waves - flow)

    def kernel_workload(self, workload: Workload) -> Workload:
        return of_any_rows(workload)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        return LongRowKernel(row_shape(workload), tiles_of(config, target)).module()


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine and the row; the only statement of the template's limits."""
    assert target.gpu is not None
    tiles, width = tiles_of(config, target), full_width(str(workload["dtype"]))
    threads = tiles.resident * tiles.threads
    held = tiles.stays * _factors(workload) * tiles.kept * tiles.threads * VECTOR_BYTES
    if (
        threads > _MOST_THREADS
        or threads * _registers(workload, tiles) > target.gpu.block_registers
        or tiles.resident * (held + 2 * 1024) > target.gpu.shared_bytes
        or (tiles.ahead and (not tiles.kept or tiles.stays))
        or (tiles.stays and (tiles.cluster > 1 or tiles.depth > 0))
    ):
        return False
    if workload["cols"] == ANY:
        return tiles.depth > 0
    (cols,) = workload.dims("cols")
    vectors = -(-cols // width) + (cols % width > 0)  # of a row that begins anywhere
    few_idle = tiles.team == _THREADS[0] or tiles.team < 2 * vectors
    none_for_nothing = (tiles.kept - 1) * tiles.team < vectors
    keeps_all = tiles.kept * tiles.team >= vectors
    return few_idle and none_for_nothing and keeps_all == (tiles.depth == 0)


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


def _config(
    threads: int,
    resident: int,
    cluster: int = 1,
    kept: int = 0,
    depth: int = 0,
    ahead: bool = False,
    stays: bool = False,
) -> Config:
    knobs = {"threads": threads, "cluster": cluster, "kept": kept, "depth": depth, "ahead": ahead}
    return Config.of(**knobs, stream=True, resident=resident, stays=stays)


def _clusters(target: Target) -> tuple[int, ...]:
    return _CLUSTERS if target.gpu is not None and target.gpu.compute >= HOPPER else (1,)


def _factors(workload: Workload) -> int:
    return int(bool(workload["weight"])) + int(bool(workload["bias"])) if workload.op in _NORMS else 0


def _added(workload: Workload) -> bool:
    """Say whether something of the size of x is added to it first."""
    return workload["mask_rows"] != 0 if workload.op == "softmax" else bool(workload["residual"])


def _registers(workload: Workload, tiles: LongTiles) -> int:
    """Guess the registers of a thread; where they do not suffice, compiling says so."""
    added = _added(workload)
    vectors = (tiles.kept * (1 + tiles.stays) + tiles.depth) * (1 + added)
    if workload.op == "softmax":
        more = 8 * bool(workload["log"] or workload["scaled"])
    else:  # what is kept, beside what is read twice, has both statistics to go through
        more = 4 + 16 * (tiles.stays and added) + 24 * (tiles.kept > 0 and tiles.depth > 0)
    vectors += tiles.ahead * tiles.kept * _factors(workload)
    return _OTHER_REGISTERS + more + 12 * added + PARTS * vectors
