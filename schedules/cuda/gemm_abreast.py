"""Products of 16 bits on Hopper, made as c^T = b^T a^T by clusters; `kernels.gemm_wgmma` says how."""

from __future__ import annotations

import math

from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.gemm_turned import TurnedGemm
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_SHARERS = (2, 4)


class AbreastGemm(TurnedGemm):
    """`TurnedGemm` in clusters of blocks, one above the other in c, each of which loads a part of b for all.

    Of few rows a tile has more columns, so b is most of what the L2 is asked for.
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
        knobs = (*(own.get(knob.name, knob) for knob in whole.knobs), Knob("abreast", _SHARERS))
        (m,) = workload.dims("m")

        def is_legal(config: Config) -> bool:
            tiles = Tiles.of(config, target)
            return whole.is_legal(config) and tiles.abreast <= math.ceil(m / tiles.bn)

        return Space(self.name, knobs, is_legal)

    def choices(self, workload: Workload) -> list[Config]:
        return [
            Config.of(**config.as_dict(), abreast=sharers)
            for config in super().choices(workload)
            if config["cluster"] == 1
            for sharers in _SHARERS
        ]
