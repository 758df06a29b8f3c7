"""Matrix products of rows that begin anywhere, copied in part beside them; `kernels.late_copies` says how."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tvmops.schedules.cuda.gemm_padded import COPIED, PaddedGemm, pads_of
from tvmops.schedules.cuda.gemm_tiles import Tiles, sums_of
from tvmops.schedules.cuda.gemm_wgmma import WgmmaGemm
from tvmops.schedules.cuda.kernels.gemm_arrays import MOST_PARTS, Form
from tvmops.schedules.template import GenericKernel
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_REGISTERS = 104  # of a thread that copies
_SUMS = 128  # of a thread that multiplies, at most
_FILLED = 0.85  # of waves of the largest tiles, at least
_LEAST = 1000  # half of the size of a square product that takes longer than what is copied beside it
_BESIDE = 0.3  # of the bandwidth that the target states, when rows are copied beside a product
# Three warpgroups that multiply leave copies no registers.
_CHOICES = {"consumers": (1, 2), "split_k": (1,), "beside": (1,)}


class LatePaddedGemm(PaddedGemm):
    """`PaddedGemm` of large products, whose operands are copied in part beside the first tiles."""

    name = "cuda.gemm_padded_late"
    version = 2

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.is_generic or workload.ranges or not super().covers(workload, target):
            return False
        if workload["trans_a"] and workload["residual"]:  # what follows the sums would lack registers
            return False
        m, n, batch = workload.dims("m", "n", "batch")
        waves = math.ceil(m / 256) * math.ceil(n / 128) / target.cores
        fills = waves > 1 and waves > _FILLED * math.ceil(waves)
        return bool(pads_of(workload)) and batch == 1 and fills and m * n > _LEAST * (m + n)

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(workload, target)
        knobs = (Knob(knob.name, _CHOICES.get(knob.name, knob.values)) for knob in whole.knobs)
        return Space(self.name, tuple(knobs), lambda config: self._fits(config, workload, target, whole))

    def _fits(self, config: Config, workload: Workload, target: Target, whole: Space) -> bool:
        """Say whether `config` leaves copies registers, and counters for their parts."""
        tiles = self.tiles_of(config, target)
        parts = max(_Late.of(workload, tiles, name).parts for name in "ab")
        return whole.is_legal(config) and sums_of(config) <= _SUMS and parts <= MOST_PARTS

    def choices(self, workload: Workload) -> list[Config]:
        """Return what the default is chosen from: the largest tiles, in clusters, were best beside copies."""
        return [c for c in super().choices(workload) if c["cluster"] == 2 and sums_of(c) == _SUMS]

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: with copies of all before it, but for what is copied beside waves of tiles."""
        assert target.gpu is not None
        tiles, rate = self.tiles_of(config, target), target.gpu.bandwidth
        waves = self.waves(workload, tiles)
        wave = WgmmaGemm.estimate(self, workload, target, config) / waves
        a, b = (_Late.of(workload, tiles, name) for name in "ab")
        left = a.nbytes + b.nbytes
        needed = ((b.nbytes, b.parts - 1), (left, waves - 1))  # by the end of so many waves
        waiting = max(0.0, *(nbytes / (_BESIDE * rate) - count * wave for nbytes, count in needed))
        return super().estimate(workload, target, config) - left / (COPIED * rate) + waiting

    def tiles_of(self, config: Config, target: Target) -> Tiles:
        return replace(super().tiles_of(config, target), producer_registers=_REGISTERS)

    def form_of(self, workload: Workload, config: Config) -> Form:
        return replace(super().form_of(workload, config), late=True)


@dataclass(frozen=True)
class _Late:
    """What the kernel makes of an operand."""

    parts: int  # one for the first tiles of all blocks, and others
    nbytes: float  # read and written of the others

    @classmethod
    def of(cls, workload: Workload, tiles: Tiles, name: str) -> _Late:
        m, n, k = workload.dims("m", "n", "k")
        height, workers = tiles.bm * tiles.cluster, tiles.blocks // tiles.cluster
        rows = min(tiles.group, math.ceil(m / height))
        bands = math.ceil(workers / (tiles.group * math.ceil(n / tiles.bn)))
        lines, size = {
            "a": (m, bands * tiles.group * height),
            "b": (n, math.ceil(workers / rows) * tiles.bn),
        }[name]
        copied = name in pads_of(workload)
        return cls(math.ceil(lines / size), 4.0 * k * max(0, lines - size) if copied else 0.0)
