"""Products of 16 bits on Hopper with few tiles and a long k; `kernels.gemm_wgmma` says how."""

from __future__ import annotations

import math
from dataclasses import replace

from tvmops.schedules.cuda.gemm_long_k import LongKGemm
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.gemm_wgmma import tiles_of_c
from tvmops.schedules.cuda.kernels.gemm_arrays import Form
from tvmops.space import Config, Knob
from tvmops.targets import Target
from tvmops.workloads import Workload

_MOST_SUMS = 1 << 22  # partial sums: more leave the L2, or take as long as the product
_START_SECONDS = 2e-6  # of the second kernel
_CROWDED_SECONDS = 3e-6  # where kernels that follow each other find no room beside each other


class SummedGemm(LongKGemm):
    """`WgmmaGemm` with k cut in `parts`: blocks anywhere add up one each, and a second kernel adds up those.

    A cluster that shares a sum must find room in one part of the machine, and large clusters leave
    some of it idle; here any number of blocks may share one.
    """

    name = "cuda.gemm_summed"
    version = 2

    sharers = Knob("parts", (2, 4, 6, 8, 12, 16))

    def choices(self, workload: Workload) -> list[Config]:
        shared, alone = (
            Config.of(bm=128, bn=128, bk=64, consumers=2, cluster=cluster, split_k=1, group=1, beside=1)
            for cluster in (2, 1)
        )
        whole = [shared, alone, alone.replace(bn=64, consumers=1), alone.replace(bm=64, bn=64, consumers=1)]
        return [
            Config.of(**one.as_dict(), parts=parts, chained=1)
            for one in whole
            for parts in self.sharers.values
        ]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: those of a product of as many items, and of writing and reading their sums."""
        assert target.gpu is not None
        m, n, k = workload.dims("m", "n", "k")
        parts = config.number("parts")
        items = workload.replace(batch=parts, k=max(8, math.ceil(k / parts)))
        sums = 8 * parts * m * n / target.gpu.bandwidth
        blocks = tiles_of_c(workload, Tiles.of(config, target)) * parts
        crowded = _CROWDED_SECONDS if 2 * blocks > target.cores else 0.0
        return super().estimate(items, target, config) + sums + _START_SECONDS + crowded

    def form_of(self, workload: Workload, config: Config) -> Form:
        return replace(super().form_of(workload, config), parts=config.number("parts"))

    def may_share(self, config: Config, workload: Workload, target: Target) -> bool:
        tiles = Tiles.of(config, target)
        m, n, k = workload.dims("m", "n", "k")
        return (
            tiles.split_k == 1
            and tiles.parts <= k // (2 * tiles.bk)
            and tiles.parts * m * n <= _MOST_SUMS
            and tiles_of_c(workload, tiles) * tiles.parts <= tiles.blocks
        )
