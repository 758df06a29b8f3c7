"""Few rows of a by a 16-bit b on Hopper, at the speed of memory; `kernels.gemm_swapped` says how."""

from __future__ import annotations

import math

from tvm import IRModule

from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.few_rows import has_few_rows
from tvmops.schedules.cuda.gemm_mma import product_of
from tvmops.schedules.cuda.kernels.gemm_swapped import SwappedKernel, SwappedTiles
from tvmops.schedules.cuda.pieces import PIECE
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_MOST_ROWS = 64  # of a: more are a product like others

# Of the guess, fitted to what an H200 took for 293 configs of 18 shapes.
_SHARE = 1.08  # of the bandwidth that the target states
_FROM_L2 = 1.5  # times that bandwidth
_BLOCK_RATE = 5e10  # bytes a second that one multiprocessor takes at most
_LATENCY = 1.0e-6  # seconds until a stage has come
_SHARPNESS = 4.0  # of the bend where one limit takes over from another
_PLACES = 0.91  # of the machine: clusters of 4 and more don't find room everywhere
_CROWDED = (1.1, 1.03)
_START_SECONDS = 2.6e-6
_WAVE_SECONDS = 0.5e-6
_MEETING_SECONDS = 0.3e-6  # of the blocks of a cluster, and
_SUM_SECONDS = 1.5e-8  # for each of its blocks, each row
_CHAINED_SECONDS = 0.9e-6  # gained by an early launch
_WORTH_ASKING = 5e6  # bytes: more are gone again
_FILLED = 0.8  # of the columns that are loaded, at least


class SwappedGemm(Template):
    """float16 or bfloat16, no batch, rows that begin at multiples of 16 bytes; any epilogue."""

    name = "cuda.gemm_swapped"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if not is_for_hopper(workload, target):
            return False
        rows = ("k",) if workload["trans_b"] else ("n", "k")
        return all(isinstance(size, int) and size % PIECE == 0 for size in map(workload.__getitem__, rows))

    def space(self, workload: Workload, target: Target) -> Space:
        m, n, k = (known(workload, name) for name in "mnk")
        rows = min(-(-m // 8) * 8, _MOST_ROWS)
        knobs = (
            Knob("rows", (rows,)),
            Knob("bn", _widths(n, target.cores)),
            Knob("bk", (64, 128, 256)),
            Knob("stages", (2, 3, 4, 6, 8, 10, 12)),
            Knob("splits", tuple(splits for splits in (1, 2, 4, 8) if splits <= max(1, k // 64))),
            Knob("chained", (0, 1, 2)),
            Knob("ahead", (0, 1, 2, 4)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        space = self.space(workload, target)
        choices = [config for config in self.choices(workload, target) if config in space]
        return min(choices, key=lambda config: self.estimate(workload, target, config))

    def choices(self, workload: Workload, target: Target) -> list[Config]:
        """Return what the default is chosen from, by the estimate."""
        rows = min(-(-known(workload, "m") // 8) * 8, _MOST_ROWS)
        even = [bn for bn in _widths(known(workload, "n"), target.cores) if bn % 64]
        wide = [_knobs(bn, 64, 8 if bn <= 128 else 4, 1, 2) for bn in even]
        return [Config.of(rows=rows, **knobs) for knobs in (*_DEFAULTS, *wide)]

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess: what limits most of memory, the L2, what is on its way, and the busiest multiprocessor."""
        assert target.gpu is not None
        m, n, k = (known(workload, name) for name in "mnk")
        tiles, bandwidth = tiles_of(config), target.gpu.bandwidth
        across = math.ceil(m / tiles.rows) * math.ceil(n / tiles.bn)
        blocks = across * tiles.splits
        beside = max(1, target.gpu.shared_bytes // (tiles.shared_bytes + 1024))
        places = beside * target.cores * (_PLACES if tiles.splits >= 4 else 1.0)
        busy = min(blocks, int(places))
        depth = min(tiles.stages, math.ceil(k / tiles.bk / tiles.splits))
        own = 2.0 * tiles.bn * k / tiles.splits  # bytes of a block
        limits = (
            2.0 * n * k / (_SHARE * bandwidth),
            2.0 * across * (tiles.lines + min(m, tiles.rows)) * k / (_FROM_L2 * bandwidth),
            2.0 * n * k * _LATENCY / (busy * depth * tiles.bn * tiles.bk * 2),
            own * math.ceil(busy / target.cores) / _BLOCK_RATE,
        )
        stream: float = sum(limit**_SHARPNESS for limit in limits) ** (1 / _SHARPNESS)
        if tiles.chained and beside > 1:  # the next kernel's blocks take places unevenly
            stream *= _CROWDED[tiles.chained - 1]
        meeting = _MEETING_SECONDS + tiles.rows * tiles.splits * _SUM_SECONDS if tiles.splits > 1 else 0.0
        more = math.ceil(blocks / busy) - 1  # waves
        waves = more * (_WAVE_SECONDS + meeting) + (more > 0) * own / _BLOCK_RATE
        asked = min(tiles.ahead, depth) * busy * tiles.bn * tiles.bk * 2
        early = _CHAINED_SECONDS if tiles.chained else 0.0
        worth = (min(asked, _WORTH_ASKING) - max(0, asked - 2 * _WORTH_ASKING)) / bandwidth / 4
        return _START_SECONDS + stream + waves + meeting - early - worth

    def kernel_workload(self, workload: Workload) -> Workload:
        return workload.replace(m=ANY, n=ANY, k=ANY)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        return SwappedKernel(product_of(self.kernel_workload(workload)), tiles_of(config)).module()


def is_for_hopper(workload: Workload, target: Target) -> bool:
    """True for few rows of a by a 16-bit b, on a GPU with wgmma."""
    return target.gpu is not None and target.gpu.code == "sm_90a" and has_few_rows(workload, _MOST_ROWS)


def tiles_of(config: Config) -> SwappedTiles:
    return SwappedTiles(**{name: int(value) for name, value in config.items})


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    assert target.gpu is not None
    tiles, k = tiles_of(config), known(workload, "k")
    steps = -(-k // tiles.bk)
    return (
        tiles.shared_bytes <= target.gpu.shared_bytes
        and tiles.lines // 64 * tiles.rows // 2 <= 128  # registers of a thread for sums
        and tiles.splits <= steps
        and (tiles.bk == 64 or tiles.bk <= k)
        and (tiles.stages == 2 or tiles.stages <= -(-steps // tiles.splits))
        and (tiles.chained > 0 or tiles.ahead == 0)
        and tiles.ahead <= max(1, -(-steps // tiles.splits))
    )


def _widths(n: int, cores: int) -> tuple[int, ...]:
    """Return widths of a tile: what wgmma takes, and those that give multiprocessors as much each."""
    whole = [bn for bn in (64, 128, 256) if bn < 2 * max(n, 64)]
    even = [-(-n * splits // (beside * cores) // 8) * 8 for splits in (1, 2, 4, 8) for beside in (1, 2)]
    filled = [bn for bn in even if bn <= 256 and bn % 64 and bn >= _FILLED * (-(-bn // 64) * 64)]
    return tuple(sorted({*whole, *filled}))


def _knobs(bn: int, bk: int, stages: int, splits: int, ahead: int) -> dict[str, int]:
    return {"bn": bn, "bk": bk, "stages": stages, "splits": splits, "chained": 2, "ahead": ahead}


# Those that were fastest somewhere, and one that is always legal.
_DEFAULTS = (
    _knobs(64, 64, 2, 1, 0),
    _knobs(64, 128, 4, 1, 2),
    _knobs(64, 128, 8, 1, 2),
    _knobs(64, 128, 8, 2, 2),
    _knobs(64, 128, 4, 4, 4),
    _knobs(64, 64, 4, 4, 4),
    _knobs(64, 64, 8, 8, 4),
    _knobs(128, 64, 6, 1, 2),
    _knobs(128, 64, 6, 8, 4),
)
