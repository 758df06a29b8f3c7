"""Products of float32 on CUDA cores of newer GPUs; `kernels.gemm_float32` says how."""

from __future__ import annotations

import math

from tvm import IRModule

from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.gemm_mma import product_of
from tvmops.schedules.cuda.gemm_simt import SimtGemm
from tvmops.schedules.cuda.kernels.gemm_float32 import Float32Kernel, Float32Tiles
from tvmops.schedules.template import GenericKernel
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_AMPERE, _HOPPER = 80, 90  # cp.async; clusters
_MOST_REGISTERS = 240  # of a thread
_OTHER_REGISTERS = 20
_VECTOR = 4  # elements: 16 bytes
_SCHEDULERS = 4  # of a multiprocessor
# Of multiplying at the stated rate, and of what is issued beside it, as an H100 showed them.
_MULTIPLYING, _READING, _COPYING = 0.72, 1.4, 14.0
_WAITING = 0.35  # of a scheduler's time, where it has one warp, beside the time that it issues
_PLACES = 0.9  # of the machine: clusters of 4 and more don't find room everywhere
_MEETING_SECONDS = 0.7e-6  # of blocks or warps that share k
_START_SECONDS = 3e-6
_SHORT_SECONDS = 15e-6  # of a kernel that gains by an early launch; in others blocks of the next take places
_RESERVED = 1024  # bytes of shared memory that the system takes of each block


class Float32Gemm(SimtGemm):
    """Any m, n, k, batch, transposes and epilogue."""

    name = "cuda.gemm_float32"
    version = 4

    def covers(self, workload: Workload, target: Target) -> bool:
        newer = target.gpu is not None and target.gpu.compute >= _AMPERE
        return newer and super().covers(workload, target) and workload["dtype"] == "float32"

    def space(self, workload: Workload, target: Target) -> Space:
        knobs = (
            *super().space(workload, target).knobs,
            Knob("stages", (2, 3, 4)),
            Knob("a_vector", _vectors(workload["m"]) if workload["trans_a"] else _along(workload["k"])),
            Knob("b_vector", _along(workload["k"]) if workload["trans_b"] else _vectors(workload["n"])),
            Knob("beside", (1, 2, 3, 4)),
            Knob("slices", (1, 2, 4)),
            Knob("splits", (1, 2, 4, 8) if has_clusters(target) and not workload.is_generic else (1,)),
            Knob("chained", (0, 1) if has_clusters(target) and not workload.is_generic else (0,)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        space = self.space(workload, target)
        vectors = {knob.name: knob.values[0] for knob in space.knobs if "vector" in knob.name}
        legal = [config for knobs in _DEFAULTS if (config := Config.of(**{**knobs, **vectors})) in space]
        best = min(legal, key=lambda config: self.estimate(workload, target, config))
        chained = best.replace(chained=1)
        is_short = self.estimate(workload, target, best) < _SHORT_SECONDS
        return chained if is_short and chained in space else best

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        # addresses take more registers where sizes are not known: no second block has room beside one
        small, large = (
            Config.of(**{**knobs, "a_vector": 1, "b_vector": 1, "beside": 1})
            for knobs in (_DEFAULTS[0], _DEFAULTS[-1])
        )
        return [GenericKernel({"m": (1, 32)}, small), GenericKernel({}, large)]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: of all waves of blocks, multiplying, reading and copying factors."""
        assert target.gpu is not None
        m, n, k, batch = (known(workload, name) for name in ("m", "n", "k", "batch"))
        tiles, gpu = tiles_of(config), target.gpu
        blocks = batch * math.ceil(m / tiles.bm) * math.ceil(n / tiles.bn) * tiles.splits
        cores = target.cores * (_PLACES if tiles.splits >= 4 else 1.0)
        beside = max(1.0, min(float(tiles.beside), blocks / cores))
        warps = tiles.threads / 32 * beside / _SCHEDULERS
        busy = warps / (warps + _WAITING)
        reads = _READING * (tiles.tm + tiles.tn) / (tiles.tm * tiles.tn)
        copies = _COPYING * (tiles.bm + tiles.bn) / (tiles.bm * tiles.bn)
        work = 2 * tiles.bm * tiles.bn * k / tiles.splits
        each = work / (gpu.flops / target.cores) * (_MULTIPLYING + reads + copies) / busy
        fewest = 4 * batch * (m * k + k * n + m * n) / gpu.bandwidth
        meeting = _MEETING_SECONDS * math.log2(tiles.splits * tiles.slices)
        return max(math.ceil(blocks / cores) * each, fewest) + meeting + _START_SECONDS

    def kernel_workload(self, workload: Workload) -> Workload:
        """Return the workload itself: where sizes are known, copies need no addresses of their own."""
        return super().kernel_workload(workload) if workload.is_generic else workload

    def tiles_of(self, config: Config) -> Float32Tiles:
        return tiles_of(config)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        return Float32Kernel(product_of(self.kernel_workload(workload)), tiles_of(config)).module()


def tiles_of(config: Config) -> Float32Tiles:
    return Float32Tiles(**{name: int(value) for name, value in config.items})


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    assert target.gpu is not None
    tiles = tiles_of(config)
    across = 16 * (
        workload["trans_a"] is True and tiles.a_vector == 1
    )  # addresses of what is copied by four bytes
    registers = tiles.registers + _OTHER_REGISTERS + across + _fetched(tiles, workload)
    return (
        32 <= tiles.threads <= 512
        and tiles.grid is not None
        and registers <= _MOST_REGISTERS
        and tiles.beside * tiles.threads * registers <= target.gpu.block_registers
        and tiles.beside * (tiles.shared_bytes + _RESERVED) <= target.gpu.shared_bytes + _RESERVED
        and tiles.splits <= math.ceil(known(workload, "k") / tiles.bk)
        and tiles.bm < 2 * max(32, known(workload, "m"))
        and tiles.bn < 2 * max(32, known(workload, "n"))
    )


def has_clusters(target: Target) -> bool:
    return target.gpu is not None and target.gpu.compute >= _HOPPER


def _vectors(row: object) -> tuple[int, ...]:
    """Return what copies can take at once where rows have `row` elements: both ends if unknown."""
    if not isinstance(row, int):
        return (_VECTOR, 1)
    return (_VECTOR if row % _VECTOR == 0 else 1,)


def _fetched(tiles: Float32Tiles, workload: Workload) -> int:
    """Return the registers of a thread for what it reads along k, four at a time."""
    blocks = (
        (tiles.bm, tiles.a_vector, not workload["trans_a"]),
        (tiles.bn, tiles.b_vector, workload["trans_b"]),
    )
    fours = (
        -(-block * tiles.bk // (_VECTOR * tiles.threads))
        for block, vector, along in blocks
        if along and vector == _VECTOR
    )
    return _VECTOR * sum(fours)


def _along(row: object) -> tuple[int, ...]:
    """Return how many floats along k may be read at once, of rows of `row` elements."""
    return (1, _VECTOR) if isinstance(row, int) and row % _VECTOR == 0 else (1,)


def _knobs(
    bm: int, bn: int, bk: int, tm: int, tn: int, stages: int, beside: int, slices: int = 1, splits: int = 1
) -> dict[str, int]:
    return {
        "bm": bm, "bn": bn, "bk": bk, "tm": tm, "tn": tn, "stages": stages, "a_vector": 1, "b_vector": 1,
        "beside": beside, "slices": slices, "splits": splits, "chained": 0,
    }  # fmt: skip


# What `default` chooses from, by the estimate; smallest tiles first.
_DEFAULTS = (
    _knobs(16, 32, 16, 4, 4, 3, 1),
    _knobs(32, 32, 16, 4, 4, 3, 1),
    _knobs(16, 64, 32, 4, 4, 3, 4, slices=2, splits=4),
    _knobs(32, 64, 16, 4, 4, 3, 4),
    _knobs(64, 64, 16, 8, 4, 3, 2),
    _knobs(64, 64, 16, 8, 4, 3, 2, splits=2),
    _knobs(64, 64, 32, 8, 8, 3, 2, slices=2),
    _knobs(64, 64, 32, 8, 8, 3, 2, slices=2, splits=2),
    _knobs(64, 64, 32, 8, 8, 3, 2, slices=4, splits=2),
    _knobs(64, 128, 16, 8, 8, 3, 2),
    _knobs(64, 128, 16, 8, 8, 3, 2, slices=2, splits=2),
    _knobs(128, 128, 16, 8, 8, 3, 1, splits=2),
    _knobs(128, 256, 8, 16, 8, 3, 1),
    _knobs(128, 128, 16, 8, 8, 3, 2),
)
