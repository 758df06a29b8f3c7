"""Attention of few queries a sequence against many keys, on Hopper; `kernels.attention_few` says how."""

from __future__ import annotations

import math

from tvm import IRModule

from tvmops.schedules.cuda.attention_sizes import gpu_of, is_plain, sizes_of
from tvmops.schedules.cuda.attention_wgmma import ALIGNED
from tvmops.schedules.cuda.kernels.attention_few import FewKernel
from tvmops.schedules.cuda.kernels.attention_tiles import IN_PAIRS, Tiles, shared_bytes
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures.attention import BHLD, NO_MASK
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_ACCUMULATORS = {1: 172, 2: 188, 3: 120}  # registers of a thread for scores, weights and out, by consumers
_MOST_COLUMNS_ALONE = 192  # of out: a product has no more registers than a thread at launch, half of the most
_MOST_QUERIES = 512  # beyond, tiles of one head's queries fill a GPU by themselves
_FEW_QUERIES, _LONG, _ANY_SIZE = 64, 1024, 1 << 30  # where a generic kernel gains
_SPLITS = (*range(1, 13), 14, 16, 18, 20, 24, 28, 32, 40, 48, 64, 96, 128)
_PRODUCTS, _EXPONENTIALS = 4096 * 0.85, 16 * 0.5  # a cycle of a multiprocessor
_STEP = 800  # cycles of a step beside
_CLOCK = 1.6e9
_L2_RATE = 5e12  # bytes a second
_BLOCK = 2e-6  # seconds of a block beside its steps
_SECOND_KERNEL = 1.5e-6
_MOST_CLUSTER = 16
_BARRIER = 8  # bytes of one, of a cluster
_RESERVED = 1024  # bytes of shared memory that a block takes besides


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
        return 1 < q_len <= _MOST_QUERIES and (not isinstance(kv_len, int) or q_len < kv_len)

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
        """Guess the seconds: waves of blocks, each as long as what it has least of lets it be."""
        if workload.is_generic:
            return 0.0
        tiles, splits, gpu = tiles_of(config), config.number("splits"), gpu_of(target)
        batch, heads, kv_heads, q_len = workload.dims("batch", "heads", "kv_heads", "q_len")
        kv_len, head_dim = workload.dims("kv_len", "head_dim")
        q_tiles = -(-(q_len * heads // kv_heads) // tiles.bm)
        blocks = batch * kv_heads * q_tiles * splits
        beside = min(_resident(head_dim, tiles, target), math.ceil(blocks / target.cores))
        waves = math.ceil(blocks / (beside * target.cores))
        steps = math.ceil(math.ceil(kv_len / tiles.bn) / splits)
        products = 4 * tiles.bm * tiles.bn * (-(-head_dim // 16) * 16) / _PRODUCTS
        exponentials = tiles.bm * tiles.bn / _EXPONENTIALS
        alone = products + exponentials + _STEP
        busy = beside * max(products, exponentials)
        nbytes = min(beside * target.cores, blocks) * 4 * tiles.bn * head_dim
        memory = max(nbytes / q_tiles / gpu.bandwidth, nbytes / _L2_RATE)
        seconds = waves * (steps * max(alone / _CLOCK, busy / _CLOCK, memory) + _BLOCK)
        if splits > 1:
            parts = batch * heads * q_len * splits * 4 * head_dim
            seconds += _SECOND_KERNEL + 2 * parts / _L2_RATE
        return seconds

    def kernel_workload(self, workload: Workload) -> Workload:
        return workload.generic()

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        sizes = sizes_of(self.kernel_workload(workload))
        return FewKernel(sizes, tiles_of(config), config.number("splits"), bool(config["cluster"])).module()


def _config(consumers: int, bn: int, stages: int, splits: int, cluster: bool) -> Config:
    return Config.of(consumers=consumers, bn=bn, stages=stages, splits=splits, cluster=cluster)


def _resident(head_dim: int, tiles: Tiles, target: Target) -> int:
    """Count the blocks for which a multiprocessor has room."""
    if tiles.consumers > 1:
        return 1
    return min(2, target.l1_bytes // (shared_bytes(head_dim, tiles) + 2 * _RESERVED))


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
