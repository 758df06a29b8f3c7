"""Products of 16 bits on Hopper, c^T = b^T a^T by warpgroups side by side; `kernels.gemm_wgmma` says how."""

from __future__ import annotations

import itertools
import math

from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.gemm_turned import TurnedGemm
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_STACKS = (192, 320)  # columns of b of a tile: odd multiples of 64, that no two warpgroups share evenly
_WIDTHS = (64, 96, 128, 160, 192)  # rows of a: each warpgroup has a multiple of 16 of them


class AsideGemm(TurnedGemm):
    """`TurnedGemm` whose two warpgroups multiply all columns of b of a tile, each by half of the rows of a.

    So a tile may have 192 or 320 columns of b, and more results than any other: 320 x 128.
    """

    name = "cuda.gemm_aside"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if not super().covers(workload, target) or workload["trans_a"]:
            return False
        space = self.space(workload, target)
        return any(config in space for config in self.choices(workload))

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(workload, target)
        m, n = workload.dims("m", "n")
        own = {
            "bm": Knob("bm", tuple(bm for bm in _STACKS if bm < 2 * n)),
            "bn": Knob("bn", tuple(bn for bn in _WIDTHS if bn < 2 * m)),
            "consumers": Knob("consumers", (2,)),
            "beside": Knob("beside", (1,)),
        }
        knobs = (
            *(own.get(knob.name, knob) for knob in whole.knobs),
            Knob("abreast", (1, 2)),
            Knob("aside", (1,)),
        )

        def is_legal(config: Config) -> bool:
            tiles = Tiles.of(config, target)
            return whole.is_legal(config) and (tiles.abreast == 1 or tiles.abreast <= math.ceil(m / tiles.bn))

        return Space(self.name, knobs, is_legal)

    def choices(self, workload: Workload) -> list[Config]:
        return [
            Config.of(
                bm=bm,
                bn=bn,
                bk=64,
                consumers=2,
                cluster=cluster,
                split_k=1,
                group=group,
                beside=1,
                chained=1,
                abreast=abreast,
                aside=1,
            )
            for bm, bn, (cluster, abreast), group in itertools.product(
                _STACKS, _WIDTHS, ((1, 1), (2, 1), (1, 2)), (1, 2, 8)
            )
        ]
