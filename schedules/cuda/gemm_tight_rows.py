"""Products of 16 bits on Hopper, by rows, with as many stages as there is room for."""

from __future__ import annotations

import itertools
import math

from tvmops.schedules.cuda.gemm_chained import ChainedGemm
from tvmops.schedules.cuda.gemm_tight import SHARERS, shares_one
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_LEAST_ROWS = 33  # of a: fewer are streamed
_STACKS = (
    (64, 1),
    (128, 1),
    (128, 2),
    (256, 2),
)  # rows of a of a tile, and the warpgroups that multiply them
_WIDTHS = tuple(range(48, 257, 16))


class TightRowsGemm(ChainedGemm):
    """`ChainedGemm` as `TightGemm` is `TurnedGemm`: any multiple of 16 columns of a b stored (n, k)."""

    name = "cuda.gemm_tight_rows"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if not super().covers(workload, target) or workload["batch"] != 1:
            return False
        (m,) = workload.dims("m")
        return m >= _LEAST_ROWS and bool(workload["trans_b"]) and not workload["trans_a"]

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(workload, target)
        (n,) = workload.dims("n")
        own = {
            "bn": Knob("bn", tuple(bn for bn in _WIDTHS if bn < 2 * max(n, 64))),
            "cluster": Knob("cluster", (1, 2, 4)),
            "split_k": Knob("split_k", (1,)),
            "beside": Knob("beside", (1,)),
        }
        knobs = (
            *(own.get(knob.name, knob) for knob in whole.knobs),
            Knob("abreast", (1, 2, 4)),
            Knob("store_buffers", (1, 2)),
            Knob("tight", (1,)),
        )

        def is_legal(config: Config) -> bool:
            tiles = Tiles.of(config, target)
            return (
                whole.is_legal(config)
                and shares_one(tiles)
                and (tiles.abreast == 1 or tiles.abreast <= math.ceil(n / tiles.bn))
            )

        return Space(self.name, knobs, is_legal)

    def choices(self, workload: Workload) -> list[Config]:
        return [
            Config.of(
                bm=bm,
                bn=bn,
                bk=64,
                consumers=consumers,
                cluster=cluster,
                split_k=1,
                group=group,
                beside=1,
                chained=1,
                abreast=abreast,
                store_buffers=1,
                tight=1,
            )
            for (bm, consumers), bn, (abreast, cluster), group in itertools.product(
                _STACKS, _WIDTHS, SHARERS, (1, 2, 4)
            )
        ]
