"""Products of 16 bits on Hopper, c^T = b^T a^T by warpgroups side by side; see `kernels.gemm_wgmma`."""

from __future__ import annotations

import itertools
import math

from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.gemm_turned import TurnedGemm
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_COLUMNS = 192  # of b, of a tile: three times what a wgmma takes
_WIDTHS = (64, 96, 128, 160, 192)  # rows of a: each warpgroup has a multiple of 16 of them


class AsideGemm(TurnedGemm):
    """`TurnedGemm` of 192 columns of b, all of which each of two warpgroups multiplies by half of the rows.

    Three warpgroups, one above the other, need room for results of one more: it is worth a stage of the ring.
    """

    name = "cuda.gemm_aside"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        return super().covers(workload, target) and not workload["trans_a"]

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(workload, target)
        (m,) = workload.dims("m")
        own = {
            "bm": Knob("bm", (_COLUMNS,)),
            "bn": Knob("bn", tuple(bn for bn in _WIDTHS if bn < 2 * m)),
            "consumers": Knob("consumers", (2,)),
            "cluster": Knob("cluster", (1, 2)),
            "beside": Knob("beside", (1,)),
        }
        knobs = (
            *(own.get(knob.name, knob) for knob in whole.knobs),
            Knob("abreast", (1, 2)),
            Knob("aside", (1,)),
        )

        def is_legal(config: Config) -> bool:
            tiles = Tiles.of(config, target)
            return (
                whole.is_legal(config)
                and min(tiles.cluster, tiles.abreast) == 1  # blocks of a cluster share one factor
                and (tiles.abreast == 1 or tiles.abreast <= math.ceil(m / tiles.bn))
            )

        return Space(self.name, knobs, is_legal)

    def choices(self, workload: Workload) -> list[Config]:
        return [
            Config.of(
                bm=_COLUMNS,
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
            for bn, (cluster, abreast), group in itertools.product(
                _WIDTHS, ((1, 1), (2, 1), (1, 2)), (1, 2, 8)
            )
        ]
