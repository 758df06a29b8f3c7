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

_STREAM = {"streams": 1, "chained": 1}
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
        knobs = (*whole.knobs, *(Knob(name, (value,)) for name, value in _STREAM.items()))
        return Space(self.name, knobs, lambda c: whole.is_legal(c) and _is_legal(c, workload, target))

    def choices(self, workload: Workload) -> list[Config]:
        return [Config.of(**config.as_dict(), **_STREAM) for config in super().choices(workload)]

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: those of whole tiles, without what the last wave leaves idle, and of sums left."""
        tiles = Tiles.of(config, target)
        waves = tiles_of_c(workload, tiles) / tiles.blocks
        left = 8 * tiles.bm * tiles.bn / _LEFT_RATE
        return super().estimate(workload, target, config) * waves / math.ceil(waves) + left + _START_SECONDS

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        module = super().build(workload, target, config)
        form = replace(self.form_of(workload, config), left_bytes=Tiles.of(config, target).workspace_bytes)
        module["main_workspace"] = workspace_function(form)
        return module


def _is_legal(config: Config, workload: Workload, target: Target) -> bool:
    tiles = Tiles.of(config, target)
    count = tiles_of_c(workload, tiles)
    (k,) = workload.dims("k")
    return (
        tiles.split_k == 1
        and count % tiles.blocks != 0
        and count * math.ceil(k / tiles.bk) >= _LEAST_STEPS * tiles.blocks
    )
