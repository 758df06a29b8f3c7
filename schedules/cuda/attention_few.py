"""Attention of few queries a sequence against many keys, on Hopper; `kernels.attention_few` says how."""

from __future__ import annotations

from tvm import IRModule

from tvmops.schedules.cuda.attention_few_guess import seconds
from tvmops.schedules.cuda.attention_sizes import gpu_of, is_plain, sizes_of
from tvmops.schedules.cuda.attention_wgmma import ALIGNED
from tvmops.schedules.cuda.kernels.attention_few import FewKernel
from tvmops.schedules.cuda.kernels.attention_tiles import IN_PAIRS, Tiles, shared_bytes
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures.attention import BHLD, NO_MASK
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_ACCUMULATORS = {1: 172, 2: 188, 3: 112}  # registers of a thread for scores, weights and out, by consumers
_MOST_COLUMNS_ALONE = 192  # of out: a product has no more registers than a thread at launch, half of the most
_TILE = 128  # queries of a head that `cuda.attention_wgmma` takes at a time
_IDLE = 0.15  # of the machine, that its tiles leave idle before sharing keys is worth it
_FEW_QUERIES, _LONG, _ANY_SIZE = 64, 1024, 1 << 30  # where a generic kernel gains
_SPLITS = (*range(1, 13), 14, 16, 18, 20, 24, 28, 32, 40, 48, 64, 96, 128)
_MOST_CLUSTER = 16
_BARRIER = 8  # bytes of one, of a cluster


class FewAttention(Template):
    """For a cache of keys that is longer than the queries are many: drafts, and prompts in chunks."""

    name = "cuda.attention_few"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if target.gpu is None or target.gpu.code != "sm_90a" or not is_plain(workload, ALIGNED):
            return False
        if workload["layout"] != BHLD or workload["page_size"] != 0 or workload["mask"] != NO_MASK:
            return False
        q_len, kv_len = workload["q_len"], workload["kv_len"]
        if not isinstance(q_len, int):
            return True
        if q_len == 1 or (isinstance(kv_len, int) and q_len >= kv_len):
            return False
        return q_len < _TILE or _leaves_idle(workload, target)

    def space(self, workload: Workload, target: Target) -> Space:
        knobs = (
            Knob("consumers", (1, 2, 3)),
            Knob("bn", (32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192)),
            Knob("stages", (2, 3, 4)),
            Knob("splits", _SPLITS),
            Knob("cluster", (False, True)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        space = self.space(workload, target)
        choices = (_config(*tiles, splits, False) for tiles in _DEFAULTS for splits in _SPLITS)
        legal = [config for config in choices if config in space]
        return min(legal, key=lambda config: self.estimate(workload, target, config))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        """Return kernels of few queries and many keys; `cuda.attention_wgmma` answers the other shapes."""
        space = self.space(workload, target)
        tiles = next(tiles for tiles in _DEFAULTS if _config(*tiles, 1, False) in space)
        few, long = (2, _FEW_QUERIES), (_LONG, _ANY_SIZE)
        return [
            GenericKernel({"batch": (1, 2), "q_len": few, "kv_len": long}, _config(*tiles, 8, True)),
            GenericKernel({"batch": (3, _ANY_SIZE), "q_len": few, "kv_len": long}, _config(*tiles, 2, True)),
        ]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        if workload.is_generic:
            return 0.0
        splits, cluster = config.number("splits"), bool(config["cluster"])
        return seconds(workload, target, tiles_of(config), splits, cluster)

    def kernel_workload(self, workload: Workload) -> Workload:
        return workload.generic()

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        sizes = sizes_of(self.kernel_workload(workload))
        return FewKernel(sizes, tiles_of(config), config.number("splits"), bool(config["cluster"])).module()


def _leaves_idle(workload: Workload, target: Target) -> bool:
    """Say whether tiles of one head's queries, with all of its keys, leave much of the machine idle."""
    if workload.is_generic:
        return True
    batch, heads, q_len = workload.dims("batch", "heads", "q_len")
    tiles = batch * heads * -(-q_len // _TILE)
    return -(-tiles // target.cores) * target.cores > tiles / (1 - _IDLE)


def _config(consumers: int, bn: int, stages: int, splits: int, cluster: bool) -> Config:
    return Config.of(consumers=consumers, bn=bn, stages=stages, splits=splits, cluster=cluster)


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    tiles, (head_dim,) = tiles_of(config), workload.dims("head_dim")
    accumulators = tiles.bn // 2 + tiles.bn // 4 + -(-head_dim // 16) * 16 // 2
    return (
        accumulators <= _ACCUMULATORS[tiles.consumers]
        and (tiles.consumers > 1 or head_dim <= _MOST_COLUMNS_ALONE)
        and (not config["cluster"] or 1 < config.number("splits") <= _MOST_CLUSTER)
        and shared_bytes(head_dim, tiles) + _BARRIER <= gpu_of(target).shared_bytes
    )


def tiles_of(config: Config) -> Tiles:
    consumers = config.number("consumers")
    return Tiles(
        consumers=consumers,
        bn=config.number("bn"),
        stages=config.number("stages"),
        take_turns=consumers > 1,
        own_out=False,
        together=IN_PAIRS,
        blocks=0,  # as many as there are tiles and shares
    )


# What `default` chooses from: consumers, bn, stages.
_DEFAULTS = ((1, 64, 3), (2, 128, 2), (1, 64, 2), (2, 64, 2), (1, 32, 2))
