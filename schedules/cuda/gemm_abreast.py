"""Products of 16 bits on Hopper, made as c^T = b^T a^T by clusters; `kernels.gemm_wgmma` says how."""

from __future__ import annotations

import math
from dataclasses import replace

from tvm import IRModule

from tvmops.schedules.cuda.gemm_stream_k import leaving_seconds, may_share_evenly, shared_waves
from tvmops.schedules.cuda.gemm_tiles import FEWER_SUMS, Tiles, sums_of
from tvmops.schedules.cuda.gemm_turned import TurnedGemm, turned
from tvmops.schedules.cuda.kernels.gemm_arrays import workspace_function
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_SHARERS, _STREAMS = (2, 4), (0, 1)


class AbreastGemm(TurnedGemm):
    """`TurnedGemm` in clusters of blocks, one above the other in c, each of which loads a part of b for all.

    Of few rows a tile has more columns, so b is most of what the L2 is asked for. With `streams` 1 clusters
    share the tiles that fill no wave evenly (stream-K, as `StreamKGemm`): all rows of a cluster are at the
    same k, so that b comes from memory once.
    """

    name = "cuda.gemm_abreast"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if not super().covers(workload, target):
            return False
        space = self.space(workload, target)
        return any(config in space for config in self.choices(workload))

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(workload, target)
        own = {"cluster": Knob("cluster", (1,)), "beside": Knob("beside", (1,))}
        knobs = tuple(own.get(knob.name, knob) for knob in whole.knobs)
        knobs += (Knob("abreast", _SHARERS), Knob("streams", _STREAMS))
        (m,) = workload.dims("m")

        def is_legal(config: Config) -> bool:
            tiles = Tiles.of(config, target)
            shared = tiles.streams == 0 or (
                may_share_evenly(turned(workload), tiles) and sums_of(config) <= FEWER_SUMS
            )
            return shared and whole.is_legal(config) and tiles.abreast <= math.ceil(m / tiles.bn)

        return Space(self.name, knobs, is_legal)

    def choices(self, workload: Workload) -> list[Config]:
        return [
            Config.of(**config.as_dict(), abreast=sharers, streams=streams)
            for config in super().choices(workload)
            if config["cluster"] == 1
            for sharers in _SHARERS
            for streams in _STREAMS
        ]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        tiles = Tiles.of(config, target)
        return super().estimate(workload, target, config) + (leaving_seconds(tiles) if tiles.streams else 0.0)

    def waves(self, workload: Workload, tiles: Tiles) -> float:
        return shared_waves(workload, tiles) if tiles.streams else super().waves(workload, tiles)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        module, left = super().build(workload, target, config), Tiles.of(config, target).workspace_bytes
        if left:
            form = replace(self.form_of(workload, config), left_bytes=left)
            module["main_workspace"] = workspace_function(form)
        return module
