"""Attention of one query a head against a long cache, at the speed of memory; `kernels.attention_split`."""

from __future__ import annotations

import math

from tvm import IRModule

from tvmops.schedules.cuda.attention_sizes import gpu_of, is_plain, sizes_of
from tvmops.schedules.cuda.extents import extent
from tvmops.schedules.cuda.kernels.attention_shares import (
    COLUMNS,
    KEYS,
    MET,
    SUMMED,
    Cache,
    Split,
    shared_bytes,
)
from tvmops.schedules.cuda.kernels.attention_split import SplitKernel
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.signatures.attention import BLHD, NO_MASK, THD
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_ALIGNED = 16  # of head_dim: the sum's length of a product
_MOST_GROUP = 2 * COLUMNS  # heads that share keys
_MOST_SPLITS = 8  # of clusters of 16 not all find a place at once
_AMPERE, _HOPPER = 80, 90  # mma.sync of 16 bits with cp.async; clusters
_ACCUMULATORS = 160  # registers of a thread for out^T, q^T and scores
# Of the multiprocessors, so many take all that memory gives; clusters spread over the machine evenly.
_BUSY, BUSY_IN_CLUSTERS = 0.5, 0.48
_SHORT = 48 << 20  # bytes of a cache that is read before clusters that crowd each other lose much
_BRIEF = 24 << 20  # bytes of a cache so short that the next kernel had better ask for its own meanwhile
_RESERVED = 1024  # bytes of shared memory that a block takes besides
_FEW = 4  # key and value heads: so many clusters of 16 find a place at once
_SMALL = 128  # head_dim of which two rings fit a multiprocessor: clusters of 16 gain where they overlap
BLOCK_RATE = 1e11  # bytes a second that one multiprocessor takes at most
_LATENCY = 1.2e-6  # seconds until a copy from memory has come
_MEETING = 2.5e-6  # of the blocks of a cluster, and what comes before the first copy


class DecodeAttention(Template):
    name = "cuda.attention_decode"
    version = 4

    def covers(self, workload: Workload, target: Target) -> bool:
        if target.gpu is None or target.gpu.compute < _AMPERE or not is_plain(workload, _ALIGNED):
            return False
        heads, kv_heads = workload["heads"], workload["kv_heads"]
        return (
            workload["q_len"] == 1
            and workload["layout"] != THD
            and not (workload["causal"] and workload["align"] == "top-left")  # that query sees one key
            and (workload["page_size"] == 0 or workload["mask"] == NO_MASK)
            and isinstance(heads, int)
            and isinstance(kv_heads, int)
            and heads // kv_heads <= _MOST_GROUP
        )

    def space(self, workload: Workload, target: Target) -> Space:
        clusters = has_clusters(target)
        knobs = (
            Knob("splits", (*range(1, _MOST_SPLITS + 1), 16) if clusters else (1,)),
            Knob("warps", (2, 4, 8)),
            Knob("keys", (16, 32)),
            Knob("stages", (2, 3, 4, 6)),
            Knob("ahead", (0, 1, 2, 3, 4) if clusters and not workload["lengths"] else (0,)),
            Knob("early", (MET, SUMMED, 2, 3, 4) if clusters else (MET,)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        """Return the least split that keeps the memory busy, with as much in flight as fits."""
        space, cores, pairs = self.space(workload, target), target.cores, pairs_of(workload)
        asks = has_clusters(target) and not workload["lengths"]
        brief = asks and cache_bytes(workload) <= _BRIEF
        few = brief and pairs <= _FEW and workload.dims("head_dim")[0] <= _SMALL
        splits = [s for s in map(int, space.knobs[0].values) if s <= (2 if few else 1) * _MOST_SPLITS]
        enough = [s for s in splits if pairs * s >= cores * (_BUSY if s == 1 else BUSY_IN_CLUSTERS)]
        wanted = min(enough, default=max(splits))
        two_fit = wanted == 1 and cores * _BUSY <= pairs <= 2 * cores
        rings = SMALL_RINGS + RINGS if two_fit else RINGS
        early = int(wanted > 1 and (wanted == 2 or cache_bytes(workload) <= _SHORT))
        choices = [Config.of(splits=wanted, **ring, ahead=int(asks), early=early) for ring in rings]
        if asks and wanted > 1:
            choices = _overlapping(choices, workload, target) + choices
        return next(config for config in choices if config in space)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []  # heads must be known; `cuda.attention_wgmma` answers every shape

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: the bytes of the cache, at the share of the bandwidth in flight."""
        split, gpu = split_of(config), gpu_of(target)
        (head_dim,) = workload.dims("head_dim")
        blocks = pairs_of(workload) * split.splits
        resident = target.cores * (gpu.shared_bytes // shared_bytes(head_dim, _group(workload), split))
        uneven = math.ceil(blocks / resident) * resident / blocks if blocks > resident else 1.0
        in_flight = min(blocks, resident) * split.warps * (split.stages - 1) * split.keys * head_dim * 4
        rate = min(gpu.bandwidth, in_flight / _LATENCY, min(blocks, target.cores) * BLOCK_RATE)
        return cache_bytes(workload) * uneven / rate + _MEETING + (_LATENCY if split.splits > 1 else 0.0)

    def kernel_workload(self, workload: Workload) -> Workload:
        paged = {"pages": ANY} if workload["page_size"] != 0 else {}
        return workload.replace(batch=ANY, kv_len=ANY, **paged)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        general = self.kernel_workload(workload)
        chained = has_clusters(target)
        return SplitKernel(sizes_of(general), split_of(config), cache_of(general), chained).module()


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    split = split_of(config)
    (head_dim,), group = workload.dims("head_dim"), _group(workload)
    tiles = -(-group // COLUMNS)
    accumulators = tiles * (head_dim // 16 * 6 + split.keys // KEYS * 6)
    return (
        shared_bytes(head_dim, group, split) <= gpu_of(target).shared_bytes
        and accumulators <= _ACCUMULATORS
        and (split.keys * head_dim // 8) % 32 == 0
        and (split.splits > 1 or split.early != SUMMED)
        and workload.dims("page_size")[0] % split.keys == 0  # a chunk lies in one page
    )


def _overlapping(choices: list[Config], workload: Workload, target: Target) -> list[Config]:
    """Return those of `choices` that let the next kernel begin while the last keys are on their way."""
    if choices[0]["splits"] == 2:  # its blocks find room as those of this one end
        return [config.replace(ahead=2, early=4) for config in choices]
    if cache_bytes(workload) > _BRIEF:
        return []
    (head_dim,), group = workload.dims("head_dim"), _group(workload)
    half = (gpu_of(target).shared_bytes + _RESERVED) // 2 - _RESERVED  # of what a multiprocessor has
    fitting = [c for c in choices if shared_bytes(head_dim, group, split_of(c)) <= half and c["warps"] != 2]
    return [config.replace(ahead=3, early=4) for config in fitting]


def cache_of(workload: Workload) -> Cache:
    (page_size,) = workload.dims("page_size")
    return Cache(workload["layout"] == BLHD, extent(workload, "pages"), page_size)


def split_of(config: Config) -> Split:
    return Split(**{name: int(value) for name, value in config.items})


def pairs_of(workload: Workload) -> int:
    """Count the key and value heads over the batch; a batch that is not known is 1."""
    batch = workload.dims("batch")[0] if workload["batch"] != ANY else 1
    return batch * workload.dims("kv_heads")[0]


def has_clusters(target: Target) -> bool:
    return gpu_of(target).compute >= _HOPPER


def cache_bytes(workload: Workload) -> int:
    """Count the bytes of keys and values; a length that is not known is 8192."""
    kv_len = workload.dims("kv_len")[0] if workload["kv_len"] != ANY else 8192
    return 4 * pairs_of(workload) * kv_len * workload.dims("head_dim")[0]


def _group(workload: Workload) -> int:
    """Count the query heads that share keys."""
    heads, kv_heads = workload.dims("heads", "kv_heads")
    return heads // kv_heads


# What `default` chooses from: the first that fits. Of blocks with a small ring two fit a multiprocessor.
SMALL_RINGS = ({"warps": 4, "keys": 16, "stages": 3},)
RINGS = (
    {"warps": 8, "keys": 16, "stages": 3},
    {"warps": 8, "keys": 16, "stages": 2},
    {"warps": 4, "keys": 16, "stages": 3},
    {"warps": 4, "keys": 16, "stages": 2},
    {"warps": 2, "keys": 16, "stages": 2},
)
