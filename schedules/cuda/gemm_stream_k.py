"""Products of 16 bits on Hopper whose last tiles blocks share; `kernels.gemm_stream_k` says how."""

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

_LEAST_STEPS = 8  # of k, of each block
_FIXED_SECONDS = 1.6e-6  # of a kernel, however long it is
_LEAVING_SECONDS = 2e-6  # for sums to be left and found
_LEAVING_RATE = 2e10  # bytes a second of those, of one multiprocessor


class StreamKGemm(LongKGemm):
    """`WgmmaGemm` whose tiles that fill no wave are shared, by their steps along k.

    With `streams` 1 all blocks share all of them evenly (stream-K): the last blocks begin a tile each,
    the others divide what follows those tiles' first steps, and who began a tile adds up what they leave
    in a workspace. With more, as many blocks share each tile, and each finishes a stretch of it.
    Sums are always added in the same order.

    References
    ----------
    Osama, Merrill, Cecka, Garland, Owens: "Stream-K", PPoPP 2023. Its blocks take steps of neighbouring
    tiles; here those of one wave stay at the same k, for what they load is in L2 for others then.
    """

    name = "cuda.gemm_stream_k"
    version = 3

    sharers = Knob("streams", (1, 2, 3, 4, 6, 8))

    def choices(self, workload: Workload) -> list[Config]:
        whole = [*super().choices(workload), *_FEW]
        return [
            Config.of(**one.as_dict(), streams=holders, chained=1)
            for one in whole
            for holders in self.sharers.values
        ]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: those of whole tiles, less what the last wave would leave idle."""
        tiles = Tiles.of(config, target)
        waves = _clusters(workload, tiles) / _workers(tiles)
        rest = waves % 1.0 if tiles.streams == 1 else 1.0 / tiles.streams
        saved = (math.floor(waves) + rest) / math.ceil(waves)
        left = 4 * tiles.bm * tiles.bn * (1 - 1 / tiles.streams if tiles.streams > 1 else 1)
        product = super().estimate(workload, target, config) - _FIXED_SECONDS
        return product * saved + _FIXED_SECONDS + _LEAVING_SECONDS + left / _LEAVING_RATE

    def may_share(self, config: Config, workload: Workload, target: Target) -> bool:
        tiles = Tiles.of(config, target)
        if tiles.split_k > 1:
            return False
        (k,) = workload.dims("k")
        steps, count, workers = math.ceil(k / tiles.bk), _clusters(workload, tiles), _workers(tiles)
        rest, holders = count % workers, tiles.streams  # tiles that fill no wave
        if holders == 1:
            return rest > 0 and count * steps >= _LEAST_STEPS * workers
        places = -(-rest // tiles.neighbours) * tiles.neighbours * holders
        return 0 < places <= workers and steps >= _LEAST_STEPS * holders

    def with_workspace(self, workload: Workload, target: Target, config: Config) -> Form:
        return replace(self.form_of(workload, config), left_bytes=Tiles.of(config, target).workspace_bytes)


def _clusters(workload: Workload, tiles: Tiles) -> int:
    """Return how many tiles clusters have to do."""
    return tiles_of_c(workload, replace(tiles, bm=tiles.bm * tiles.cluster))


def _workers(tiles: Tiles) -> int:
    return tiles.blocks // tiles.cluster


# Tiles for a result of few, and a long k.
_FEW = tuple(
    Config.of(bm=bm, bn=bn, bk=64, consumers=consumers, cluster=1, split_k=1, group=1, beside=1)
    for bm, bn, consumers in ((128, 128, 2), (128, 64, 1), (64, 128, 1))
)
