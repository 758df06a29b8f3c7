"""Products of 16 bits on Hopper with as many stages as there is room for; see `kernels.gemm_wgmma`."""

from __future__ import annotations

import itertools
import math

from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.gemm_turned import TurnedGemm
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

# Columns of b of a tile, the warpgroups that multiply them, and whether those lie side by side.
_STACKS = (
    (64, 1, 0),
    (128, 1, 0),
    (128, 2, 0),
    (192, 1, 0),
    (192, 2, 1),
    (256, 2, 0),
    (320, 2, 1),
)
_WIDTHS = tuple(range(48, 257, 16))
SHARERS = ((1, 1), (2, 1), (4, 1), (1, 2))  # blocks of a cluster that share rows of a, and columns of b


class TightGemm(TurnedGemm):
    """`TurnedGemm` whose stages leave no gaps in shared memory, in clusters that share a factor.

    Of few rows a tile fits no multiple of 64: a ring of such stages has a fourth more on their way. Two
    warpgroups side by side multiply all columns of b of a tile, each by half of its rows of a, for 192 or
    320 columns; one alone leaves the room of another's results to the ring.
    """

    name = "cuda.gemm_tight"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        return super().covers(workload, target) and not workload["trans_a"]

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(workload, target)
        (m,) = workload.dims("m")
        own = {
            "bm": Knob("bm", tuple(sorted({bm for bm, *_ in _STACKS}))),
            "cluster": Knob("cluster", (1, 2, 4)),
            "beside": Knob("beside", (1,)),
            "chained": Knob("chained", (1, 4)),
        }
        knobs = (
            *(own.get(knob.name, knob) for knob in whole.knobs),
            Knob("abreast", (1, 2, 4)),
            Knob("aside", (0, 1)),
            Knob("store_buffers", (1, 2)),
            Knob("tight", (1,)),
        )

        def is_legal(config: Config) -> bool:
            tiles = Tiles.of(config, target)
            return (
                whole.is_legal(config)
                and (not tiles.aside or (tiles.consumers, tiles.bm % 128, tiles.bn % 32) == (2, 64, 0))
                and shares_one(tiles)
                and (tiles.abreast == 1 or tiles.abreast <= math.ceil(m / tiles.bn))
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
                aside=aside,
                store_buffers=1,
                tight=1,
            )
            for (bm, consumers, aside), bn, (cluster, abreast), group in itertools.product(
                _STACKS, _WIDTHS, SHARERS, (1, 2)
            )
        ]


def shares_one(tiles: Tiles) -> bool:
    """Say whether blocks of a cluster share one factor at most."""
    return min(tiles.cluster, tiles.abreast) == 1
