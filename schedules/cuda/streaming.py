"""What templates of streamed weights have in common: knobs, limits, a guess of their time."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.kernels.stream import StreamForm, StreamTiles
from tvmops.schedules.template import GenericKernel, Template
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

MOST_ROWS = 64
_BAND = 32  # rows of a block at most
_HOPPER = 90  # clusters
_MOST_WARPS = 16
_OTHER_REGISTERS = 28  # of a thread
_MOST_REGISTERS = 200  # of a thread: the compiler moves some
_PORTABLE = 8  # blocks of a cluster
_SHARE = 0.9  # of the bandwidth that a stream reaches
_LATENCY = 1.0e-6  # seconds until a read from memory has come
_X_RATE = 4.0e12  # bytes a second from the L2
_START_SECONDS = 2.4e-6
_MEETING_SECONDS = 0.9e-6  # of the blocks of a cluster


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
    return (next((rows for rows in (1, 2, 4, 8, 16) if rows >= m), _BAND),)


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
            and (tiles.chained or not tiles.ahead)
            and tiles.ahead <= max(1, -(-units // (tiles.warps_k * tiles.splits)))
            and tiles.depth <= max(1, -(-units // (tiles.warps_k * tiles.splits)))
        )

    def _registers(self, tiles: StreamTiles) -> int:
        shape = self.form.sums(tiles)
        sums = self.grouped * (8 + shape.registers)
        return self.form.registers(tiles) + 4 * shape.parts + sums + _OTHER_REGISTERS

    def seconds(self, tiles: StreamTiles, target: Target) -> float:
        """Guess: bytes at the share of the bandwidth that is on its way, in waves of blocks."""
        assert target.gpu is not None
        gpu, form, units = target.gpu, self.form, -(-self.k // self.form.unit)
        columns = math.ceil(self.n / (tiles.spans * tiles.warps_n * form.columns))
        blocks = math.ceil(self.m / tiles.rows) * columns * tiles.splits
        registers = min(-(-self._registers(tiles) // 8) * 8, 255) * 32 * tiles.warps
        beside = max(1, min(gpu.block_registers // registers, gpu.shared_bytes // form.shared_bytes(tiles)))
        busy = min(blocks, beside * target.cores)
        steps = math.ceil(units / (tiles.warps_k * tiles.splits))
        in_flight = busy * tiles.warps * min(tiles.depth, steps) * tiles.spans * form.slots * 512
        rate = min(_SHARE * gpu.bandwidth, in_flight / _LATENCY)
        uneven = (
            math.ceil(blocks / target.cores) * target.cores / blocks if blocks < 4 * target.cores else 1.0
        )
        x = 2 * self.m * self.k * columns * tiles.warps_n
        stream = self.nbytes * math.sqrt(uneven) / rate + x / _X_RATE
        trips = math.ceil(steps / tiles.depth) * math.ceil(blocks / busy)
        return (
            max(stream, (trips - 1) * _LATENCY)
            + _LATENCY
            + _START_SECONDS
            + (tiles.splits > 1) * _MEETING_SECONDS
        )


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
        return min(self.space(workload, target), key=lambda config: self.estimate(workload, target, config))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        return self.stream(workload).seconds(tiles_of(config), target)
