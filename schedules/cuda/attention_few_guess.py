"""How long attention of few queries takes, as `default` guesses; constants are fitted to times on an H100."""

from __future__ import annotations

import math

from tvmops.schedules.cuda.attention_sizes import gpu_of
from tvmops.schedules.cuda.kernels.attention_tiles import Tiles, shared_bytes
from tvmops.targets import Target
from tvmops.workloads import Workload

_CLOCK = 1.6e9
_PRODUCTS, _EXPONENTIALS = 4096 * 1.36, 16 * 0.9  # a cycle of a multiprocessor; the first as the fit has it
_EXPOSED = 0.61  # of the shorter of the two, what the longer does not hide
_STEP = {1: 327, 2: 267}  # cycles of a tile of keys beside, by consumers
_BANDWIDTH = 0.72  # of the memory's
_LATENCY = 1.38e-6  # seconds until a copy from memory has come
_BLOCK_RATE = 5e10  # bytes a second of one multiprocessor, where half of them take all that memory gives
_L2_RATE = 7.7e12
_OVERLAP = 0.053  # of the shorter of computing and reading, what the longer does not hide
_BLOCK = 2.06e-6  # seconds of a block beside its tiles of keys
_SECOND_KERNEL, _PARTS_RATE = 1.33e-6, 4.2e12
_MEETING, _EACH, _CLUSTER_RATE = 1.29e-6, 7.5e-8, 2.15e12  # of a cluster, and for each of its blocks
_RESERVED = 1024  # bytes of shared memory that a block takes besides


def seconds(workload: Workload, target: Target, tiles: Tiles, splits: int, cluster: bool) -> float:
    """Guess how long a call takes: as long as the slower of computing and reading, and what parts cost."""
    batch, heads, kv_heads, q_len = workload.dims("batch", "heads", "kv_heads", "q_len")
    kv_len, head_dim = workload.dims("kv_len", "head_dim")
    q_tiles = -(-(q_len * heads // kv_heads) // tiles.bm)
    blocks = batch * kv_heads * q_tiles * splits
    most = math.ceil(blocks / target.cores)  # of a multiprocessor
    beside = min(resident(head_dim, tiles, target), most)
    rounds = math.ceil(most / beside)
    steps = math.ceil(math.ceil(kv_len / tiles.bn) / splits)
    computing = _computing(head_dim, tiles, steps, rounds, most)
    reading = _reading(batch * kv_heads * kv_len, head_dim, q_tiles, blocks, beside, tiles, target)
    both = max(computing, reading) + _OVERLAP * min(computing, reading) + _BLOCK * rounds
    parts = 4 * batch * heads * q_len * splits * head_dim
    if splits == 1:
        return both
    if cluster:
        return both + _MEETING + _EACH * splits + parts / _CLUSTER_RATE
    return both + _SECOND_KERNEL + 2 * parts / _PARTS_RATE


def resident(head_dim: int, tiles: Tiles, target: Target) -> int:
    """Count the blocks for which a multiprocessor has room."""
    if tiles.consumers > 1:
        return 1
    return min(2, target.l1_bytes // (shared_bytes(head_dim, tiles) + 2 * _RESERVED))


def _computing(head_dim: int, tiles: Tiles, steps: int, rounds: int, most: int) -> float:
    products = 4 * tiles.bm * tiles.bn * (-(-head_dim // 16) * 16) / _PRODUCTS
    exponentials = tiles.bm * tiles.bn / _EXPONENTIALS
    shorter, longer = sorted((products, exponentials))
    alone = longer + _EXPOSED * shorter + _STEP[tiles.consumers]
    return max(rounds * steps * alone, most * steps * longer) / _CLOCK


def _reading(
    keys: int, head_dim: int, q_tiles: int, blocks: int, beside: int, tiles: Tiles, target: Target
) -> float:
    nbytes = 4 * keys * head_dim
    in_flight = min(blocks, target.cores * beside) * 4 * tiles.stages * tiles.bn * head_dim
    bandwidth = _BANDWIDTH * gpu_of(target).bandwidth
    rate = min(bandwidth, in_flight / _LATENCY, min(blocks, target.cores) * _BLOCK_RATE)
    return max(nbytes / rate, nbytes * q_tiles / _L2_RATE)
