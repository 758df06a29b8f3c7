"""Products of 16 bits on Hopper, c^T = b^T a^T by clusters that share k; see `kernels.gemm_stretches`."""

from __future__ import annotations

import itertools

from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.gemm_turned import TurnedGemm
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

# Of the guess: of the blocks of a cluster, each; of 128 x 128 sums that are sent.
_MEETING_SECONDS, _EXCHANGE_SECONDS = 0.3e-6, 1.4e-6
_PARTS = (2, 4)  # blocks of a cluster: of three, or of five, no 40 find room, or 24
_WIDTHS = tuple(range(48, 257, 16))


class SplitGemm(TurnedGemm):
    """`TurnedGemm` whose k the blocks of a cluster share, each of which finishes a stretch of the tile.

    A multiprocessor takes less of larger tiles with less of k each: of s blocks a tile, a part of sqrt(s).
    """

    name = "cuda.gemm_split"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if not super().covers(workload, target) or workload["trans_a"]:
            return False
        space = self.space(workload, target)
        return any(config in space for config in self.choices(workload))

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(workload, target)
        own = {
            "cluster": Knob("cluster", (1,)),
            "split_k": Knob("split_k", _PARTS),
            "beside": Knob("beside", (1,)),
        }
        knobs = (*(own.get(knob.name, knob) for knob in whole.knobs), Knob("sends", (1,)))

        def is_legal(config: Config) -> bool:
            return whole.is_legal(config) and Tiles.of(config, target).units >= config.number("split_k")

        return Space(self.name, knobs, is_legal)

    def meeting(self, tiles: Tiles) -> float:
        sent = tiles.bm * tiles.bn * (1 - 1 / tiles.split_k)
        return _MEETING_SECONDS * tiles.split_k + _EXCHANGE_SECONDS * sent / 128**2

    def choices(self, workload: Workload) -> list[Config]:
        return [
            Config.of(
                bm=bm,
                bn=bn,
                bk=64,
                consumers=consumers,
                cluster=1,
                split_k=_PARTS[0],
                group=group,
                beside=1,
                chained=1,
                sends=1,
            )
            for (bm, consumers), bn, group in itertools.product(
                ((64, 1), (128, 1), (128, 2), (192, 3), (256, 2)), _WIDTHS, (1, 2)
            )
        ]
