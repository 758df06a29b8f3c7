"""What templates of streamed weights have in common: knobs, limits, a guess of their time."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.kernels.column_sums import LANES
from tvmops.schedules.cuda.kernels.stream_tiles import StreamForm, StreamTiles
from tvmops.schedules.template import GenericKernel, Template
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

MOST_ROWS = 32
_HOPPER = 90  # clusters
_MOST_WARPS = 16
_OTHER_REGISTERS = 20  # of a thread
_MOST_REGISTERS = 192  # of a thread: the compiler moves some
_RESIDENT_WARPS = 64  # of a multiprocessor

# Of the guess, fitted to what an H100 took for 1401 configs of 43 shapes.
_SHARE = 0.9  # of the bandwidth that a stream reaches
_X_RATE = 8e12  # bytes a second from the L2
_BLOCK_RATE = 5.0e10  # bytes a second that one multiprocessor takes at most
_LATENCY = 0.7e-6  # seconds until a read has come
_PIECE_SECONDS = 1e-7  # that a warp works on a piece
_SHARPNESS = 3.0  # of the bend where one limit takes over from another
_START_SECONDS = 3.0e-6
_WAVE_SECONDS = 1.5e-6
_MEETING_SECONDS = 0.9e-6  # of the blocks of a cluster
_PLACES = 0.75  # of the machine: clusters of 4 and more don't find room everywhere
_CHAINED_SECONDS, _AHEAD_SECONDS = 0.6e-6, 0.35e-6  # gained by an early launch, by asking ahead


def knobs_of(workload: Workload, target: Target) -> tuple[Knob, ...]:
    assert target.gpu is not None
    return (
        Knob("rows", _rows(known(workload, "m"))),
        Knob("spans", (1, 2)),
        Knob("warps_n", (1, 2, 4)),
        Knob("warps_k", (1, 2, 4, 8, 16)),
        Knob("splits", (1, 2, 4, 8) if target.gpu.compute >= _HOPPER else (1,)),
        Knob("depth", (1, 2, 3, 4)),
        Knob("chained", (0, 1) if target.gpu.compute >= _HOPPER else (0,)),
        Knob("ahead", (0, 1, 2, 4)),
    )


def _rows(m: int) -> tuple[int, ...]:
    """Return the fewest rows of a block that hold all of m, or the most."""
    return (next((rows for rows in (1, 2, 4, 8, 16) if rows >= m), MOST_ROWS),)


def tiles_of(config: Config) -> StreamTiles:
    return StreamTiles(**{name: int(value) for name, value in config.items})


@dataclass(frozen=True)
class Stream:
    """A workload as a stream of weights: its sizes, and the bytes of weights."""

    m: int
    n: int
    k: int
    form: StreamForm
    nbytes: float
    grouped: bool = False  # sums of a group are apart from the totals

    def fits(self, tiles: StreamTiles, target: Target) -> bool:
        """Say whether tiles fit the machine and the sizes."""
        assert target.gpu is not None
        units = -(-self.k // self.form.unit)
        return (
            tiles.warps <= _MOST_WARPS
            and self._registers(tiles) <= _MOST_REGISTERS
            and self._registers(tiles) * 32 * tiles.warps <= target.gpu.block_registers
            and self.form.shared_bytes(tiles) <= target.gpu.shared_bytes
            and tiles.spans * tiles.warps_n * self.form.columns < 2 * max(self.form.columns, self.n)
            and (tiles.warps_k * tiles.splits == 1 or tiles.warps_k * tiles.splits <= units)
            and (tiles.chained == 1 or tiles.ahead == 0)
            and tiles.ahead <= max(1, -(-units // (tiles.warps_k * tiles.splits)))
            and tiles.depth <= max(1, -(-units // (tiles.warps_k * tiles.splits)))
        )

    def _registers(self, tiles: StreamTiles) -> int:
        shape = self.form.sums(tiles)
        sums = self.grouped * (8 * shape.parts + shape.registers)
        return self.form.registers(tiles) + 4 * shape.parts + sums + _OTHER_REGISTERS

    def seconds(self, tiles: StreamTiles, target: Target) -> float:
        """Guess: whichever limits more of memory, what is on its way, and what multiprocessors take."""
        assert target.gpu is not None
        units = -(-self.k // self.form.unit)
        columns = math.ceil(self.n / (tiles.spans * tiles.warps_n * self.form.columns))
        blocks = math.ceil(self.m / tiles.rows) * columns * tiles.splits
        busy = min(blocks, self._places(tiles, target))
        steps = math.ceil(units / (tiles.warps_k * tiles.splits))
        pieces = tiles.spans * self.form.slots
        trip = _LATENCY / min(tiles.depth, steps) + _PIECE_SECONDS * pieces
        limits = (
            self.nbytes / (_SHARE * target.gpu.bandwidth)
            + 2 * self.m * self.k * columns * tiles.warps_n / _X_RATE,
            self.nbytes * trip / (busy * tiles.warps * pieces * LANES),
            self.nbytes / (min(blocks, target.cores) * _BLOCK_RATE),
        )
        stream: float = sum(limit**_SHARPNESS for limit in limits) ** (1 / _SHARPNESS)
        waves = (math.ceil(blocks / busy) - 1) * _WAVE_SECONDS
        meeting = (tiles.splits > 1) * _MEETING_SECONDS
        asked = min(1.0, tiles.ahead / steps) * busy / blocks
        return (
            _START_SECONDS
            + stream
            + waves
            + meeting
            - tiles.chained * _CHAINED_SECONDS
            - asked * _AHEAD_SECONDS
        )

    def _places(self, tiles: StreamTiles, target: Target) -> int:
        """Count the blocks that find room at once."""
        assert target.gpu is not None
        registers = min(-(-self._registers(tiles) // 8) * 8, 255) * 32 * tiles.warps
        beside = min(
            target.gpu.block_registers // registers,
            target.gpu.shared_bytes // (self.form.shared_bytes(tiles) + 1024),
            _RESIDENT_WARPS // tiles.warps,
        )
        share = _PLACES if tiles.splits >= 4 and beside > 1 else 1.0
        return int(max(1, beside) * target.cores * share)


class StreamTemplate(Template):
    """A template of few rows; another one answers the shapes that it does not cover."""

    @abstractmethod
    def stream(self, workload: Workload) -> Stream:
        """Return what `workload` streams."""

    def space(self, workload: Workload, target: Target) -> Space:
        stream = self.stream(workload)
        return Space(
            self.name, knobs_of(workload, target), lambda config: stream.fits(tiles_of(config), target)
        )

    def default(self, workload: Workload, target: Target) -> Config:
        space = self.space(workload, target)
        choices = [config for config in _choices(space) if config in space]
        return min(choices, key=lambda config: self.estimate(workload, target, config))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        return self.stream(workload).seconds(tiles_of(config), target)


def _choices(space: Space) -> list[Config]:
    """Return what the default is chosen from, launched early where the machine can."""
    values = {knob.name: knob.values for knob in space.knobs}
    early = {"chained": 1, "ahead": 1} if 1 in values["chained"] else {"chained": 0, "ahead": 0}
    return [Config.of(rows=values["rows"][0], **knobs, **early) for knobs in _DEFAULTS]


def _knobs(spans: int, warps_n: int, warps_k: int, splits: int, depth: int) -> dict[str, int]:
    return {"spans": spans, "warps_n": warps_n, "warps_k": warps_k, "splits": splits, "depth": depth}


# Those that were fastest somewhere, and one that is always legal.
_DEFAULTS = (
    _knobs(1, 1, 1, 1, 1),
    _knobs(1, 1, 4, 1, 1),
    _knobs(1, 1, 4, 1, 2),
    _knobs(1, 1, 8, 1, 1),
    _knobs(1, 1, 8, 1, 2),
    _knobs(1, 1, 16, 1, 1),
    _knobs(1, 1, 16, 1, 2),
    _knobs(1, 1, 16, 2, 1),
    _knobs(1, 1, 8, 2, 2),
    _knobs(1, 1, 8, 8, 1),
    _knobs(1, 1, 4, 8, 2),
    _knobs(2, 1, 4, 1, 2),
    _knobs(2, 1, 4, 2, 2),
)
