"""Attention of one query a head against a long cache of few heads; see `kernels.attention_parts`."""

from __future__ import annotations

import dataclasses
import math

from tvm import IRModule

from tvmops.schedules.cuda.attention_decode import (
    BLOCK_RATE,
    BUSY_IN_CLUSTERS,
    RINGS,
    SMALL_RINGS,
    DecodeAttention,
    cache_bytes,
    cache_of,
    has_clusters,
    is_legal,
    pairs_of,
    split_of,
)
from tvmops.schedules.cuda.attention_sizes import gpu_of, sizes_of
from tvmops.schedules.cuda.kernels.attention_shares import MET
from tvmops.schedules.cuda.kernels.attention_split import SplitKernel
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_CLUSTERS = (2, 3, 4, 6, 8)
_SPLITS = 8  # blocks of a cluster
_SHORT = 12 << 20  # bytes of a cache of which a block does not need much at a time
_WORTH = 2.5e-6  # seconds that are to be saved of what one cluster a head takes
_SECOND_KERNEL = 1e-6


class SpreadAttention(DecodeAttention):
    """For caches of few key and value heads: with a cluster each, most multiprocessors would be idle."""

    name = "cuda.attention_spread"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        return (
            super().covers(workload, target)
            and has_clusters(target)
            and isinstance(workload["batch"], int)
            and isinstance(workload["kv_len"], int)
            and _saved(workload, target) > _WORTH
        )

    def space(self, workload: Workload, target: Target) -> Space:
        knobs = {knob.name: knob for knob in super().space(workload, target).knobs}
        knobs["splits"] = Knob("splits", (2, 4, _SPLITS))
        knobs["clusters"] = Knob("clusters", _CLUSTERS)
        return Space(self.name, tuple(knobs.values()), lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        """Return as many clusters as keep the memory busy, with as much in flight as fits."""
        space, wanted = self.space(workload, target), _wanted(workload, target)
        clusters = next((c for c in _CLUSTERS if c >= wanted), _CLUSTERS[-1])
        ahead = int(not workload["lengths"])
        rings = SMALL_RINGS + RINGS if cache_bytes(workload) < _SHORT else RINGS
        choices = [
            Config.of(splits=_SPLITS, **ring, ahead=ahead, early=MET, clusters=clusters) for ring in rings
        ]
        return next(config for config in choices if config in space)

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        split = split_of(config)
        spread = dataclasses.replace(split, splits=split.blocks, clusters=1)
        one = {name: getattr(spread, name) for name, _ in config.items if name != "clusters"}
        return super().estimate(workload, target, Config.of(**one)) + _SECOND_KERNEL

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        general = self.kernel_workload(workload)
        return SplitKernel(sizes_of(general), split_of(config), cache_of(general), True).module()


def _wanted(workload: Workload, target: Target) -> int:
    """Return how many clusters a key and value head needs to keep the memory busy."""
    return math.ceil(target.cores * BUSY_IN_CLUSTERS / (_SPLITS * pairs_of(workload)))


def _saved(workload: Workload, target: Target) -> float:
    """Guess the seconds by which reading a cache with one cluster a head is slower than memory."""
    rate = _SPLITS * pairs_of(workload) * BLOCK_RATE
    return cache_bytes(workload) * (1 / rate - 1 / gpu_of(target).bandwidth)


__all__ = ["SpreadAttention"]
