"""Products of 16 bits on Hopper whose last tiles blocks share; `kernels.gemm_stream_k` says how."""

from __future__ import annotations

import math
from dataclasses import replace

from tvmops.schedules.cuda.gemm_long_k import LongKGemm
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.gemm_wgmma import DEFAULTS, clusters_of
from tvmops.schedules.cuda.kernels.gemm_arrays import Form
from tvmops.space import Config, Knob
from tvmops.targets import Target
from tvmops.workloads import Workload

_LEAST_STEPS = 8  # of k, of each block
_LEAVING_SECONDS = 1.2e-6  # for sums to be left and found
# Times as long, if all blocks share tiles, and if those reach beyond c: zeros take long to load.
_EVENLY, _BEYOND = 1.08, 1.46
_LEAVING_RATE = 1.1e10  # bytes a second of those, of one multiprocessor


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
        return list(_CHOICES)

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        tiles = Tiles.of(config, target)
        left = 4 * tiles.bm * tiles.bn * (1 - 1 / tiles.streams if tiles.streams > 1 else 1)
        return super().estimate(workload, target, config) + _LEAVING_SECONDS + left / _LEAVING_RATE

    def waves(self, workload: Workload, tiles: Tiles) -> float:
        """Return the waves of whole tiles, and the part of another one that shared tiles take."""
        waves = clusters_of(workload, tiles) / _workers(tiles)
        if tiles.streams > 1:
            return math.floor(waves) + 1.0 / tiles.streams
        sides = zip(workload.dims("m", "n"), (tiles.bm, tiles.bn))
        return (
            waves * _EVENLY * (_BEYOND if any(size > tile and size % tile for size, tile in sides) else 1.0)
        )

    def may_share(self, config: Config, workload: Workload, target: Target) -> bool:
        tiles = Tiles.of(config, target)
        if tiles.split_k > 1:
            return False
        (k,) = workload.dims("k")
        steps, count, workers = math.ceil(k / tiles.bk), clusters_of(workload, tiles), _workers(tiles)
        rest, holders = count % workers, tiles.streams  # tiles that fill no wave
        if holders == 1:
            return rest > 0 and count * steps >= _LEAST_STEPS * workers
        places = -(-rest // tiles.neighbours) * tiles.neighbours * holders
        return 0 < places <= workers and steps >= _LEAST_STEPS * holders

    def with_workspace(self, workload: Workload, target: Target, config: Config) -> Form:
        return replace(self.form_of(workload, config), left_bytes=Tiles.of(config, target).workspace_bytes)


def _workers(tiles: Tiles) -> int:
    return tiles.blocks // tiles.sharers


_CHOICES = tuple(
    Config.of(**one.as_dict(), streams=holders, chained=1)
    for one in DEFAULTS
    for holders in StreamKGemm.sharers.values
    if one["split_k"] == 1 and one.number("bn") % 64 == 0
)
