"""Products of 16 bits on Hopper whose last tiles all blocks share; `kernels.gemm_streams` says how."""

from __future__ import annotations

import math
from dataclasses import replace

from tvm import IRModule

from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.gemm_wgmma import WgmmaGemm, tiles_of_c
from tvmops.schedules.cuda.kernels.gemm_arrays import workspace_function
from tvmops.schedules.template import GenericKernel
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_HOLDERS = (1, 2, 3, 4, 6, 8, 12, 16)
_LEAST_STEPS = 8  # of k, of each block: less is not worth another block's sums
_LEFT_RATE = 5e10  # bytes a second in which one multiprocessor writes and reads sums
_START_SECONDS = 1e-6  # of the kernel before


class StreamedGemm(WgmmaGemm):
    """`WgmmaGemm` by stream-K: no block waits for the last wave of tiles, which all share.

    Full waves but one take whole tiles; the steps along k of what is left, one to two tiles for each block, are
    divided evenly. A block leaves the sums of a tile's later steps in a workspace, and the one that has
    its first steps adds them up, always in the same order.
    Osama, Merrill, Cecka, Garland, Owens: "Stream-K", PPoPP 2023.
    """

    name = "cuda.gemm_streamed"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if not super().covers(workload, target) or workload.is_generic or workload["batch"] != 1:
            return False
        space = self.space(workload, target)
        return any(config in space for config in self.choices(workload))

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(workload, target)
        knobs = (*whole.knobs, Knob("streams", _HOLDERS), Knob("chained", (1,)))
        return Space(self.name, knobs, lambda c: whole.is_legal(c) and _is_legal(c, workload, target))

    def choices(self, workload: Workload) -> list[Config]:
        whole = [*super().choices(workload), *_FEW]
        return [Config.of(**one.as_dict(), streams=holders, chained=1) for one in whole for holders in _HOLDERS]

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: those of whole tiles, without what the last wave leaves idle, and of sums left."""
        tiles = Tiles.of(config, target)
        holders = tiles.streams
        left = 8 * tiles.bm * tiles.bn / _LEFT_RATE + _START_SECONDS
        if holders > 1:
            (k,) = workload.dims("k")
            items = workload.replace(batch=holders, k=max(8, math.ceil(k / holders)))
            return super().estimate(items, target, config) + left
        waves = tiles_of_c(workload, tiles) / tiles.blocks
        return super().estimate(workload, target, config) * waves / math.ceil(waves) + left

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        module = super().build(workload, target, config)
        form = replace(self.form_of(workload, config), left_bytes=Tiles.of(config, target).workspace_bytes)
        module["main_workspace"] = workspace_function(form)
        return module


def _is_legal(config: Config, workload: Workload, target: Target) -> bool:
    tiles = Tiles.of(config, target)
    count, holders = tiles_of_c(workload, replace(tiles, bm=tiles.bm * tiles.cluster)), tiles.streams
    (k,) = workload.dims("k")
    steps = math.ceil(k / tiles.bk)
    if tiles.split_k > 1:
        return False
    workers = tiles.blocks // tiles.cluster
    rest = count % workers  # tiles, as clusters see them, that fill no wave
    if holders == 1:
        return rest > 0 and count * steps >= _LEAST_STEPS * workers
    return 0 < rest * holders <= workers and steps >= 2 * holders


# Tiles for few blocks of a long k.
_FEW = tuple(
    Config.of(bm=bm, bn=bn, bk=64, consumers=bm // 64, cluster=1, split_k=1, group=1, beside=1)
    for bm, bn in ((128, 128), (128, 64), (64, 128))
)
