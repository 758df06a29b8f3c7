"""Matrix products of rows that begin anywhere, copied in part beside them; `kernels.late_copies` says how."""

from __future__ import annotations

import math
from dataclasses import replace

from tvmops.schedules.cuda.gemm_padded import COPIED, PaddedGemm, pads_of
from tvmops.schedules.cuda.gemm_tiles import Tiles, sums_of
from tvmops.schedules.cuda.gemm_wgmma import WgmmaGemm
from tvmops.schedules.cuda.kernels.gemm_arrays import Form
from tvmops.schedules.template import GenericKernel
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_REGISTERS = 96  # of a thread that copies
_SUMS = 128  # of a thread that multiplies, at most
_WAVE = 256 * 128  # results of a block's largest tile
_LEAST = 1000  # half of the size of a square product that takes longer than what is copied beside it
_BESIDE = 0.4  # of the bandwidth that the target states, when rows are copied beside a product
_CHOICES = {
    "consumers": (1, 2),
    "split_k": (1,),
    "beside": (1,),
}  # three warpgroups leave copies no registers


class LatePaddedGemm(PaddedGemm):
    """`PaddedGemm` of large products, whose operands are copied in part beside the first tiles."""

    name = "cuda.gemm_padded_late"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.is_generic or workload.ranges or not super().covers(workload, target):
            return False
        m, n, batch = workload.dims("m", "n", "batch")
        return batch == 1 and m * n > max(_WAVE * target.cores, _LEAST * (m + n))

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(workload, target)
        knobs = (Knob(knob.name, _CHOICES.get(knob.name, knob.values)) for knob in whole.knobs)
        return Space(
            self.name, tuple(knobs), lambda config: whole.is_legal(config) and sums_of(config) <= _SUMS
        )

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: with copies of all before it, but for what is copied beside the first tiles."""
        assert target.gpu is not None
        tiles = self.tiles_of(config, target)
        left, rate = 4 * _copied_beside(workload, tiles), target.gpu.bandwidth
        first = WgmmaGemm.estimate(self, workload, target, config) / self.waves(workload, tiles)
        waiting = max(0.0, left / (_BESIDE * rate) - first)
        return super().estimate(workload, target, config) - left / (COPIED * rate) + waiting

    def tiles_of(self, config: Config, target: Target) -> Tiles:
        return replace(super().tiles_of(config, target), producer_registers=_REGISTERS)

    def form_of(self, workload: Workload, config: Config) -> Form:
        return replace(super().form_of(workload, config), late=True)


def _copied_beside(workload: Workload, tiles: Tiles) -> int:
    """Return how many elements the first tiles of all blocks don't need."""
    m, n, k = workload.dims("m", "n", "k")
    height, workers = tiles.bm * tiles.cluster, tiles.blocks // tiles.cluster
    rows = min(tiles.group, math.ceil(m / height))
    bands = math.ceil(workers / (tiles.group * math.ceil(n / tiles.bn)))
    left = {
        "a": max(0, m - bands * tiles.group * height),
        "b": max(0, n - math.ceil(workers / rows) * tiles.bn),
    }
    return k * sum(left[name] for name in pads_of(workload))
