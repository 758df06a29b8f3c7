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

_ACCUMULATORS = {1: 172, 2: 188}  # registers of a thread for scores, weights and out, by consumers
_MOST_COLUMNS_ALONE = 192  # of out: a product has no more registers than a thread at launch, half of the most
_TILE = 128  # queries of a head that `cuda.attention_wgmma` takes at a time
_IDLE = 0.15  # of the machine, that its tiles leave idle before sharing keys is worth it
_FEW_QUERIES = 64  # that half a tile holds
_LONG = 1024  # keys, known to gain
_MEASURED, _DRAFT, _ANY_SIZE = 128, 16, 1 << 30  # head_dim and queries of generic kernels, and no limit
_SPLITS = (*range(1, 13), 14, 16, 18, 20, 24, 28, 32, 40, 48, 64)
_MOST_CLUSTER = 16
_CLUSTERS = (2, 4, 8, 16)  # what `default` chooses from
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
        if workload["q_len"] == 1:
            return False
        return workload.is_generic or workload.dims("q_len") < workload.dims("kv_len")

    def comes_last(self, workload: Workload, target: Target) -> bool:
        """Say whether `cuda.attention_wgmma` is the usual one, since measurements do not show a gain."""
        return not _gains(workload, target)

    def space(self, workload: Workload, target: Target) -> Space:
        knobs = (
            Knob("consumers", (1, 2)),
            Knob("bn", (32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192)),
            Knob("stages", (2, 3, 4)),
            Knob("splits", _SPLITS),
            Knob("cluster", (False, True)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        space = self.space(workload, target)
        shares = [(splits, False) for splits in _SPLITS] + [(splits, True) for splits in _CLUSTERS]
        choices = (_config(*tiles, *share) for tiles in _DEFAULTS for share in shares)
        legal = [config for config in choices if config in space]
        return min(legal, key=lambda config: self.estimate(workload, target, config))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        """Return kernels of few queries and many keys; `cuda.attention_wgmma` answers the other shapes.

        They share keys among as many blocks whatever the shape: more queries or heads than these may fill the
        machine without, and heads that share no keys gain nothing where they fill it.
        """
        if workload["head_dim"] != _MEASURED or workload["lengths"]:
            return []
        sizes = {"q_len": (2, _DRAFT), "kv_len": (_LONG, _ANY_SIZE)}
        one = {"batch": (1, 1), "heads": (1, 64), "kv_heads": (1, 16), **sizes}
        many = {"batch": (2, 64), "heads": (32, 64), "kv_heads": (1, 8), **sizes}
        return [
            GenericKernel(one, _config(1, 64, 3, 8, True)),
            GenericKernel(many, _config(1, 64, 3, 2, True)),
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


def _gains(workload: Workload, target: Target) -> bool:
    """Say whether whole heads, a tile of queries at a time, are known to leave much of the machine idle."""
    if workload["lengths"] or workload.is_generic:
        return not workload["lengths"]
    batch, heads, kv_heads, q_len, kv_len = workload.dims("batch", "heads", "kv_heads", "q_len", "kv_len")
    if kv_len < _LONG:
        return False
    if heads == kv_heads:
        return q_len <= _FEW_QUERIES and 2 * batch * heads < target.cores
    tiles = batch * heads * -(-q_len // _TILE)
    return q_len < _TILE or -(-tiles // target.cores) * target.cores > tiles / (1 - _IDLE)


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
_DEFAULTS = ((1, 64, 3), (1, 128, 2), (2, 128, 2), (1, 64, 2), (2, 64, 2), (1, 32, 2))
