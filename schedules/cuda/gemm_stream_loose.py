"""Few rows of a by a 16-bit b whose rows begin anywhere; `kernels.stream_loose` says how."""

from __future__ import annotations

import math

from tvm import IRModule

from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.gemm_mma import is_chained, product_of
from tvmops.schedules.cuda.gemm_stream import MOST_ROWS, is_streamed
from tvmops.schedules.cuda.kernels.stream_loose import LooseStream
from tvmops.schedules.cuda.kernels.stream_loose_tiles import LooseTiles
from tvmops.schedules.cuda.pieces import PIECE
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_MOST_SPLITS = 8  # where there are clusters
_OTHER_REGISTERS = 48  # of a thread, beside what is on its way and sums, at least, and
_TAKEN_REGISTERS = 64  # where the compiler has them
_MOST_REGISTERS = 255

# Of the guess, fitted to what an H200 took for 43 configs of 8 shapes.
_SHARE = 0.85  # of the bandwidth that a stream reaches
_BLOCK_RATE = 4e10  # bytes a second that one multiprocessor takes at most
_TRIP_SECONDS = 1.0e-6  # until a unit has come
_SHARPNESS = 3.0  # of the bend where one limit takes over from another
_START_SECONDS = 4.0e-6
_WAVE_SECONDS = 3.0e-6
_MEETING_SECONDS = 0.9e-6  # of the blocks of a cluster
_PLACE_SECONDS = 1.2e-9  # for a value of a, of a warp
_ROW_SECONDS = 1.5e-7  # for the sums of a row
_CHAINED_SECONDS, _AHEAD_SECONDS = 0.6e-6, 0.35e-6  # gained by an early launch, by asking ahead


class LooseStreamGemm(Template):
    """float16 or bfloat16, no batch, neither factor transposed; any epilogue."""

    name = "cuda.gemm_stream_loose"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if not is_streamed(workload, target):
            return False
        assert target.gpu is not None
        n, k = workload["n"], workload["k"]
        return (
            not workload["trans_b"]
            and isinstance(n, int)
            and isinstance(k, int)
            and (n % PIECE != 0 or k % PIECE != 0)
            and _smallest(workload, target).shared_bytes(k) <= target.gpu.shared_bytes
        )

    def space(self, workload: Workload, target: Target) -> Space:
        assert target.gpu is not None
        hopper = is_chained(target)
        knobs = (
            Knob("rows", (_rows(workload),)),
            Knob("spans", (1, 2)),
            Knob("turns", (1, 2)),
            Knob("splits", tuple(range(1, _MOST_SPLITS + 1)) if hopper else (1,)),
            Knob("depth", (1, 2)),
            Knob("chained", (0, 1) if hopper else (0,)),
            Knob("ahead", (0, 1, 2)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        space = self.space(workload, target)
        return min(space, key=lambda config: self.estimate(workload, target, config))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess: what limits most of memory, the busiest multiprocessor, and the way through k."""
        assert target.gpu is not None
        m, n, k = (known(workload, name) for name in "mnk")
        tiles, bandwidth = tiles_of(config), target.gpu.bandwidth
        blocks = math.ceil(m / tiles.rows) * math.ceil(n / tiles.columns) * tiles.splits
        registers = (tiles.registers + _TAKEN_REGISTERS) * tiles.threads
        beside = max(1, target.gpu.block_registers // registers)
        busiest = math.ceil(blocks / target.cores)
        own = 2.0 * tiles.window * k / tiles.splits  # bytes of a block
        trips = math.ceil(tiles.units(k) / (tiles.turns * tiles.depth))
        limits = (2.0 * n * k / (_SHARE * bandwidth), own * busiest / _BLOCK_RATE, trips * _TRIP_SECONDS)
        stream: float = sum(limit**_SHARPNESS for limit in limits) ** (1 / _SHARPNESS)
        waves = (math.ceil(busiest / beside) - 1) * (_WAVE_SECONDS + own / _BLOCK_RATE)
        meeting = _MEETING_SECONDS if tiles.splits > 1 else 0.0
        placing = tiles.rows * (k / tiles.splits / tiles.warps * _PLACE_SECONDS + _ROW_SECONDS)
        early = _CHAINED_SECONDS * tiles.chained + _AHEAD_SECONDS * min(1, tiles.ahead)
        seconds: float = _START_SECONDS + stream + waves + meeting + placing - early
        return seconds

    def kernel_workload(self, workload: Workload) -> Workload:
        return workload.replace(m=ANY, n=ANY)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        return LooseStream(product_of(self.kernel_workload(workload)), tiles_of(config)).module()


def _rows(workload: Workload) -> int:
    """Return the fewest rows of a block that hold all of m, or the most."""
    return next(rows for rows in (1, 2, 4, 8, 16) if rows >= min(known(workload, "m"), MOST_ROWS))


def _smallest(workload: Workload, target: Target) -> LooseTiles:
    """Return the tiles that take least of a multiprocessor."""
    return LooseTiles(_rows(workload), 1, 1, _MOST_SPLITS if is_chained(target) else 1, 1)


def tiles_of(config: Config) -> LooseTiles:
    return LooseTiles(**{name: int(value) for name, value in config.items})


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    assert target.gpu is not None
    tiles, k = tiles_of(config), known(workload, "k")
    units = tiles.units(k)  # of each class, of a block
    return (
        tiles.shared_bytes(k) <= target.gpu.shared_bytes
        and tiles.registers + _OTHER_REGISTERS
        <= min(_MOST_REGISTERS, target.gpu.block_registers // tiles.threads)
        and (tiles.splits == 1 or tiles.share(k) * (tiles.splits - 1) < k)  # each block has some of k
        and tiles.turns <= units
        and (tiles.depth == 1 or tiles.depth * tiles.turns <= units)
        and (tiles.chained == 1 or tiles.ahead == 0)
        and tiles.ahead * tiles.turns <= units
        and (tiles.spans == 1 or known(workload, "n") > tiles.columns // 2)
    )
