"""Matrix products of 16-bit types on Hopper whose rows begin anywhere; `kernels.gemm_wgmma` says how."""

from __future__ import annotations

import dataclasses
import math
from itertools import product

from tvm import IRModule

from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.gemm_wgmma import STACKS, WIDTHS, WgmmaGemm, form_of, is_ragged
from tvmops.schedules.cuda.kernels.gemm_arrays import Form, workspace_function
from tvmops.schedules.template import GenericKernel
from tvmops.signatures import ANY
from tvmops.signatures.layouts import PLAIN
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_ALIGNED = 8  # elements: what stands for every aligned size
_FROM_SIZE = 65  # of m: for less, a copy of b takes longer than the product
_ANY_SIZE = 1 << 30
# Of the guess, fitted to what an H100 took for 76 configs of 19 shapes.
_START_SECONDS = 4.5e-6  # of two kernels, until the first stage is there, and for what follows the last
_TILE_SECONDS = 1e-6  # for what follows the sums of a tile
_COPIED = 0.77  # of the bandwidth that the target states, when rows are copied
_MULTIPLIED = 0.85  # of the rate that it states
_TAKEN = 9e10  # bytes a second that one multiprocessor loads at most, and
_FROM_L2 = 7.3e12  # all together
_SHARED = 0.75  # of the time of loading a tile, where two blocks load one
_UNEVEN = 1.1  # times as long, where a tile's columns end inside 64 that are loaded together
_MEETING_SECONDS = 1e-6  # of the blocks of a cluster, each that shares a sum, or all that share loads

_MOST_SUMS = 128 * 144  # of a warpgroup: with more it lacks registers


class PaddedGemm(WgmmaGemm):
    """`WgmmaGemm` on copies of those operands that TMA can't take."""

    name = "cuda.gemm_padded"
    version = 3

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != "matmul" or target.gpu is None or target.gpu.code != "sm_90a":
            return False
        return (
            workload["dtype"] in ("float16", "bfloat16")
            and workload["packed"] == PLAIN
            and (workload.is_generic or not super().covers(workload, target))
        )

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(workload, target)
        knobs = (*whole.knobs, Knob("chained", (1,)))
        return Space(self.name, knobs, whole.is_legal)

    def choices(self, workload: Workload) -> list[Config]:
        """Return tiles of all shapes, since waves decide, and those whose sums clusters share."""
        split = [config for config in super().choices(workload) if config.number("split_k") > 1]
        return [*_CHOICES, *map(_chained, split)]

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        (*_, some, many) = super().generic(workload, target)
        return [
            GenericKernel({"m": (_FROM_SIZE, 1024)}, _chained(some.config)),
            GenericKernel({"m": (1025, _ANY_SIZE)}, _chained(many.config)),
        ]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: of copies, and of each wave of tiles the slower of multiplying and loading."""
        assert target.gpu is not None
        tiles = self.tiles_of(config, target)
        m, n, k, batch = workload.dims("m", "n", "k", "batch")
        shared = str(workload["shared"])
        sizes = {"a": m * k, "b": k * n}
        elements = sum(sizes[each] * (1 if shared == each else batch) for each in pads_of(workload))
        copies = 4 * elements / (_COPIED * target.gpu.bandwidth)
        clusters = math.ceil(m / (tiles.bm * tiles.cluster)) * math.ceil(n / tiles.bn) * batch
        blocks = clusters * tiles.cluster * tiles.split_k
        steps = math.ceil(math.ceil(k / tiles.bk) / tiles.split_k)
        rate = _MULTIPLIED * target.gpu.tensor_flops / tiles.blocks
        multiply = 2 * tiles.bm * tiles.bn * tiles.bk / rate
        along = bool(workload["trans_b"])
        load = _loaded(tiles, along) / min(_TAKEN, _FROM_L2 / min(blocks, tiles.blocks))
        step = max(multiply, load) * (1.0 if along or tiles.bn % 64 == 0 else _UNEVEN)
        waves = math.ceil(blocks / tiles.blocks)
        meeting = _MEETING_SECONDS * (tiles.split_k if tiles.split_k > 1 else tiles.cluster - 1)
        return copies + waves * (steps * step + _TILE_SECONDS) + meeting + _START_SECONDS

    def kernel_workload(self, workload: Workload) -> Workload:
        """Return the workload with `*` for sizes, but those along rows that TMA takes."""
        rows = {"n", "k", "m" if workload["trans_a"] else "k"}
        aligned = [dim for dim in rows if workload[dim] != ANY and not is_ragged(workload, dim)]
        return super().kernel_workload(workload).replace(**dict.fromkeys(aligned, _ALIGNED))

    def form_of(self, workload: Workload, config: Config) -> Form:
        loose = workload["n"] == ANY or is_ragged(workload, "n")
        return dataclasses.replace(form_of(workload), pads=pads_of(workload), loose=loose)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        module = super().build(workload, target, config)
        form = self.form_of(workload, config)
        if form.pads:
            module["main_workspace"] = workspace_function(form)
        return module


def _loaded(tiles: Tiles, along: bool) -> float:
    """Return the bytes of a stage, what blocks share counted less; columns of b across k come by 64."""
    columns = tiles.bn if along else math.ceil(tiles.bn / 64) * 64
    return 2 * (tiles.bm + columns * (_SHARED if tiles.cluster > 1 else 1.0)) * tiles.bk


def _chained(config: Config) -> Config:
    return Config.of(**config.as_dict(), chained=1)


def pads_of(workload: Workload) -> tuple[str, ...]:
    """Return the operands whose rows begin where TMA can't, or may do so."""
    rows = {"a": "m" if workload["trans_a"] else "k", "b": "k" if workload["trans_b"] else "n"}
    return tuple(name for name, dim in rows.items() if workload[dim] == ANY or is_ragged(workload, dim))


_CHOICES = tuple(
    Config.of(
        bm=bm, bn=bn, bk=64, consumers=consumers, cluster=cluster, split_k=1, group=group, beside=1, chained=1
    )
    for (bm, consumers), bn, cluster, group in product(STACKS, reversed(WIDTHS), (1, 2), (4, 1))
    if bm // consumers * bn <= _MOST_SUMS
)  # fmt: skip
