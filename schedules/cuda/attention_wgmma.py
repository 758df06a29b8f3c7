"""Attention on Hopper's tensor cores, any lengths; `kernels.attention_flash` says how."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from tvm import IRModule

from tvmops.schedules.cuda.attention_sizes import gpu_of, is_plain, sizes_of
from tvmops.schedules.cuda.kernels.attention_flash import FlashKernel
from tvmops.schedules.cuda.kernels.attention_tiles import IN_PAIRS, Tiles, shared_bytes
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures.attention import BHLD, THD
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_ACCUMULATORS_PAGED = {2: 196, 3: 120}  # looking up pages takes some
Costs: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.float64]]"

ALIGNED = 8  # elements of head_dim: the copy engine takes rows of a multiple of 16 bytes
_ACCUMULATORS = {2: 196, 3: 128}  # registers of a thread for scores, weights and out, by consumers
_TOGETHER = (IN_PAIRS, 4, 8, 16, 32, 64)
# Cycles of a multiprocessor, fitted to times on an H200.
_PRODUCTS = 4096 * 0.85  # operations of 16 bits a cycle, at the clock that they leave
_EXPONENTIALS = 16  # a cycle
_EXPOSED = {2: 0.5, 3: 0.15}  # of the shorter of the two, what the longer does not hide, by consumers
_STEP = 400  # for each tile of keys, beside its products
_TILE = 2200  # for each tile of queries; less where the next can begin before out has left
_TILE_OWN_OUT = 1500
_MISSES_L2 = 1.05  # where the heads at work hold more keys and values than it


class WgmmaAttention(Template):
    name = "cuda.attention_wgmma"
    version = 1
    generic_together = IN_PAIRS

    def covers(self, workload: Workload, target: Target) -> bool:
        if target.gpu is None or target.gpu.code != "sm_90a" or not is_plain(workload, ALIGNED):
            return False
        return workload["layout"] == BHLD and workload["page_size"] == 0

    def space(self, workload: Workload, target: Target) -> Space:
        knobs = (
            Knob("consumers", (2, 3)),
            Knob("bn", (48, 64, 80, 96, 112, 128, 144, 160, 176, 192)),
            Knob("stages", (2, 3, 4)),
            Knob("take_turns", (False, True)),
            Knob("own_out", (False, True)),
            Knob("together", self.together(workload)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def together(self, workload: Workload) -> tuple[int, ...]:
        """Return the values of this knob."""
        return _TOGETHER if workload["causal"] else (IN_PAIRS,)

    def default(self, workload: Workload, target: Target) -> Config:
        space = self.space(workload, target)
        together = space.knobs[-1].values
        choices = [
            _config(consumers, bn, own_out, int(heads))
            for consumers, bn, own_out in _DEFAULTS
            for heads in together
        ]
        legal = [config for config in choices if config in space]
        return min(legal, key=lambda config: self.estimate(workload, target, config))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        space = self.space(workload, target)
        choices = (_config(*tiles, self.generic_together) for tiles in _DEFAULTS)
        return [GenericKernel({}, next(config for config in choices if config in space))]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the cycles of the block that has most to do."""
        if workload.is_generic:
            return 0.0
        tiles = tiles_of(config, target)
        cost = costs(workload, tiles)
        return _longest_share(cost, workload, tiles) * _memory_factor(workload, target, tiles)

    def kernel_workload(self, workload: Workload) -> Workload:
        return workload.generic()

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        sizes = sizes_of(self.kernel_workload(workload))
        return FlashKernel(sizes, tiles_of(config, target)).module()


def costs(workload: Workload, tiles: Tiles) -> Costs:
    """Guess the cycles of each tile of one head's queries."""
    steps = _steps(workload, tiles)
    rows, head_dim = tiles.bm, workload.dims("head_dim")[0]
    products = 4 * rows * tiles.bn * (-(-head_dim // 16) * 16) / _PRODUCTS
    exponentials = rows * tiles.bn / _EXPONENTIALS
    exposed = _EXPOSED[tiles.consumers] if tiles.take_turns else 0.9
    step = max(products, exponentials) + exposed * min(products, exponentials) + _STEP
    return steps * step + (_TILE_OWN_OUT if tiles.own_out else _TILE)


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    tiles = tiles_of(config, target)
    (head_dim, page_size), packed = workload.dims("head_dim", "page_size"), workload["layout"] == THD
    paged = page_size > 0
    accumulators = tiles.bn // 2 + tiles.bn // 4 + -(-head_dim // 16) * 16 // 2
    return (
        accumulators <= (_ACCUMULATORS_PAGED if paged else _ACCUMULATORS)[tiles.consumers]
        and shared_bytes(head_dim, tiles, packed) <= gpu_of(target).shared_bytes
        and (not paged or tiles.bn % page_size == 0 or page_size % tiles.bn == 0)
    )


def tiles_of(config: Config, target: Target) -> Tiles:
    return Tiles(
        consumers=config.number("consumers"),
        bn=config.number("bn"),
        stages=config.number("stages"),
        take_turns=bool(config["take_turns"]),
        own_out=bool(config["own_out"]),
        together=config.number("together"),
        blocks=target.cores,
    )


def _config(consumers: int, bn: int, own_out: bool, together: int) -> Config:
    return Config.of(
        consumers=consumers, bn=bn, stages=2, take_turns=True, own_out=own_out, together=together
    )


# What `default` chooses from: consumers, bn, own_out. The first that fits is the generic kernel's.
_DEFAULTS = ((2, 128, True), (3, 128, True), (2, 80, False), (2, 64, False), (2, 48, False))


def _steps(workload: Workload, tiles: Tiles) -> Costs:
    """Count the tiles of keys that each tile of one head's queries sees."""
    q_len, kv_len = workload.dims("q_len", "kv_len")
    count = -(-q_len // tiles.bm)
    if not workload["causal"]:
        return np.full(count, math.ceil(kv_len / tiles.bn), np.float64)
    offset = kv_len - q_len if workload["align"] == "bottom-right" else 0
    last = np.arange(1, count + 1) * tiles.bm + offset
    return np.maximum(np.ceil(np.minimum(last, kv_len) / tiles.bn), 1.0)


def _longest_share(cost: Costs, workload: Workload, tiles: Tiles) -> float:
    """Return the cost of the block that has most to do; `cost` is that of one head's tiles."""
    batch, heads = workload.dims("batch", "heads")
    pairs, count, blocks = batch * heads, len(cost), tiles.blocks
    if not workload["causal"]:
        return float(cost[0]) * math.ceil(pairs * count / blocks)
    if tiles.together == IN_PAIRS:
        half = (count + 1) // 2
        both = cost[:half] + np.where(np.arange(half) * 2 + 1 == count, 0.0, cost[::-1][:half])
        index = np.arange(pairs * half)
        return float(np.bincount(index % blocks, both[index % half]).max())
    index = np.arange(pairs * count)
    party, rest = np.divmod(index, tiles.together * count)
    size = np.minimum(pairs - party * tiles.together, tiles.together)
    turn, place = np.divmod(index, blocks)
    block = np.where(turn % 2 == 0, place, blocks - 1 - place)
    return float(np.bincount(block, cost[count - 1 - rest // size]).max())


def _memory_factor(workload: Workload, target: Target, tiles: Tiles) -> float:
    batch, heads, kv_heads, kv_len = workload.dims("batch", "heads", "kv_heads", "kv_len")
    if not workload["causal"] or tiles.together == IN_PAIRS:
        return 1.0
    alive = min(tiles.together, batch * heads) * kv_heads / heads
    held = alive * kv_len * workload.dims("head_dim")[0] * 4
    return _MISSES_L2 if held > target.l2_bytes / 2 else 1.0


__all__ = ["ALIGNED", "WgmmaAttention", "costs", "is_legal", "tiles_of"]
