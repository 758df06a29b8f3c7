"""Convolutions of 16-bit types on Hopper, NHWC, with groups and epilogue; `kernels.conv_wgmma` says how."""

from __future__ import annotations

import math
from typing import ClassVar

from tvm import IRModule

from tvmops.ops import op_of
from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.conv_patches import Patch, patch_count, patches_of, steps_of
from tvmops.schedules.cuda.conv_tiles import PANEL, ROWS, ConvTiles
from tvmops.schedules.cuda.kernels.conv_wgmma import WgmmaConvKernel
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.signatures.layouts import PLAIN
from tvmops.space import Config, Knob, Space
from tvmops.targets import Gpu, Target
from tvmops.workloads import Workload

_ALIGNED = 8  # channels: TMA takes rows of a multiple of 16 bytes
_MOST_STRIDE = 8  # that TMA takes
# The guess, fitted to 704 configs of 90 layers on an H100 and an H200: median error 11%.
_CLOCK = 1.93e9
_WAITING = 48  # cycles of a step in which a warpgroup does not multiply
_HEAT = 0.2  # the clock's fall when all multiprocessors multiply
_PLACES = 0.85  # of the machine: large clusters don't find room everywhere
_ROW_SECONDS, _TAKEN = 7.3e-10, 2.9e11  # of a row that a multiprocessor loads, and its bytes a second
_L2 = 7.8e12  # bytes a second that the L2 answers
_JOINED = 0.4  # of what is asked, that is: neighbours ask for the same
_STORED = 3.4e10  # bytes a second of results that one multiprocessor finishes
_END_SECONDS = 7e-7
_MEETING = 1.4e-6  # of the blocks of a cluster
_FILL_SECONDS = 2.9e-6  # until the first stage is there, and for what follows the last


class WgmmaConv(Template):
    name = "cuda.conv_wgmma"
    version = 1
    layout: ClassVar[str] = "NHWC"

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != "conv2d" or target.gpu is None or target.gpu.code != "sm_90a":
            return False
        groups, strides = workload["groups"], workload["stride"]
        assert isinstance(groups, int) and isinstance(strides, tuple)
        return (
            workload["dtype"] in ("float16", "bfloat16")
            and workload["layout"] == self.layout
            and workload["packed"] == PLAIN
            and max(strides) <= _MOST_STRIDE
            and all(_is_aligned(workload[channels], groups) for channels in ("ci", "co"))
        )

    def space(self, workload: Workload, target: Target) -> Space:
        patches = patches_of(workload)
        widths, heights, images = (tuple(sorted({patch[axis] for patch in patches})) for axis in range(3))
        knobs = (
            Knob("patch_w", widths),
            Knob("patch_h", heights),
            Knob("patch_n", images),
            Knob("patches", (1, 2)),
            Knob("consumers", (1, 2, 3)),
            Knob("alternate", (0, 1)),
            Knob("bn", (32, 64, 128, 192, 256)),
            Knob("depth", depths_of(workload)),
            Knob("cluster", (1, 2)),
            Knob("split_k", (1, 2, 3, 4, 6, 8)),
            Knob("beside", (1, 2)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        space = self.space(workload, target)
        legal = [config for config in self.choices(workload) if config in space]
        return min(legal, key=lambda config: self.estimate(workload, target, config))

    def choices(self, workload: Workload) -> list[Config]:
        """Return what the default is chosen from, by the estimate."""
        patch = patches_of(workload)[0]
        return [_config(patch, knobs, depth) for knobs in _DEFAULTS for depth in depths_of(workload)]

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        patch = (ROWS, 1, 1) if ConvShape.of(workload).is_pointwise else (8, 8, 1)
        aligned = {} if workload["groups"] != 1 else dict.fromkeys(("ci", "co"), _ALIGNED)
        return [GenericKernel({}, _config(patch, _GENERIC), aligned)]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: of each wave of tiles the slower of multiplying and moving, and its end."""
        gpu, tiles = _gpu(target), tiles_of(workload, target, config)
        count = _tile_count(workload, tiles)
        steps = math.ceil(steps_of(workload, tiles.depth) / tiles.split_k)
        places = tiles.blocks * (_PLACES if tiles.meeting > 2 else 1.0)
        blocks = min(count * tiles.meeting, tiles.blocks)
        waves = math.ceil(count * tiles.meeting / places)
        patch = 2 * tiles.bn * tiles.depth / PANEL  # cycles of a step's products
        alone = patch * tiles.patches + _WAITING  # for one warpgroup, with no other
        together = patch * tiles.all_patches * min(tiles.beside, math.ceil(blocks / target.cores))
        multiply = max(alone, together) * (1 + _HEAT * min(1.0, blocks / target.cores)) / _CLOCK
        rows = tiles.all_patches * tiles.pixels + tiles.bn / tiles.cluster
        load = rows * tiles.beside * (_ROW_SECONDS + tiles.row_bytes / _TAKEN)
        asked = rows * tiles.row_bytes * blocks * (1 if tiles.split_k > 1 else _JOINED) / _L2
        results = ROWS * tiles.all_patches * tiles.bn
        end = 2 * results * (1 + tiles.residual) / _STORED + _END_SECONDS
        if tiles.alternate:
            end *= 0.8  # the rest runs under the products of another tile
        elif tiles.beside > 1:
            end *= 1.2
        meeting = (_MEETING + 2 * results / _STORED) if tiles.split_k > 1 else 0.0
        fewest = op_of(workload).nbytes(workload) / (0.92 * gpu.bandwidth)
        fill = _FILL_SECONDS * (waves if tiles.split_k > 1 else 1)  # others stay, and are filled once
        return max(waves * (steps * max(multiply, load, asked) + end), fewest) + fill + meeting

    def features(self, workload: Workload, target: Target, config: Config) -> dict[str, float]:
        tiles = tiles_of(workload, target, config)
        count = _tile_count(workload, tiles) * tiles.meeting
        return {
            **super().features(workload, target, config),
            "waves": count / tiles.blocks,
            "last_wave": count % tiles.blocks / tiles.blocks,
            "steps": steps_of(workload, tiles.depth) / tiles.split_k,
            "stages": tiles.stages,
            "tile": tiles.all_patches * tiles.bn,
            "filled": tiles.pixels / ROWS,
            "estimate": math.log(self.estimate(workload, target, config)),
        }

    def kernel_workload(self, workload: Workload) -> Workload:
        free = dict.fromkeys(("n", "h", "w", "co"), ANY)
        return workload.replace(**free, **({"ci": ANY} if workload["groups"] == 1 else {}))

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        tiles = tiles_of(workload, target, config)
        shape = ConvShape.of(self.kernel_workload(workload))
        return WgmmaConvKernel(shape, str(workload["dtype"]), tiles).module()


def tiles_of(workload: Workload, target: Target, config: Config) -> ConvTiles:
    return ConvTiles.of(config, target, bool(workload["residual"]))


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    tiles = tiles_of(workload, target, config)
    co, groups = workload.dims("co", "groups")
    count = _tile_count(workload, tiles)
    return (
        (tiles.patch_w, tiles.patch_h, tiles.patch_n) in patches_of(workload)
        and tiles.patches * tiles.bn // 2 <= tiles.consumer_registers - 72
        and (tiles.beside == 1 or tiles.bn < 256)  # ptxas finds no registers for such a product
        and tiles.stages >= 2
        and tiles.partial_bytes <= tiles.stages * tiles.stage_bytes
        and (tiles.bn % PANEL == 0 or tiles.split_k > 1)  # results leave 64 channels at a time
        and tiles.bn < 2 * max(PANEL, co // groups)
        and (tiles.all_patches == 1 or tiles.all_patches < 2 * patch_count(workload, tiles))
        and (tiles.cluster == 1 or tiles.split_k == tiles.beside == 1)
        and (tiles.cluster == 1 or tiles.cluster * tiles.all_patches < 2 * patch_count(workload, tiles))
        and (not tiles.alternate or (tiles.consumers > 1 and tiles.split_k == 1))
        and (tiles.split_k == 1 or tiles.split_k <= steps_of(workload, tiles.depth) // 2)
        and (tiles.split_k == 1 or count * tiles.split_k <= 2 * tiles.blocks)
    )


def depths_of(workload: Workload) -> tuple[int, ...]:
    """Return how many channels a step may take: other than 64 where 64 would be zeros in part."""
    ci, groups = workload["ci"], workload["groups"]
    assert isinstance(groups, int)
    whole = not isinstance(ci, int) or ci // groups % PANEL == 0
    return (PANEL,) if whole else (16, 32, PANEL)


def _tile_count(workload: Workload, tiles: ConvTiles) -> int:
    """Count what blocks, or clusters that share weights, take one by one."""
    co, groups = workload.dims("co", "groups")
    rows = math.ceil(patch_count(workload, tiles) / (tiles.all_patches * tiles.cluster))
    return rows * groups * math.ceil(co // groups / tiles.bn)


def _is_aligned(channels: object, groups: int) -> bool:
    """Say whether a group's channels are whole pieces of 16 bytes; unknown ones may be, without groups."""
    if channels == ANY:
        return groups == 1
    assert isinstance(channels, int)
    return channels // groups % _ALIGNED == 0


def _gpu(target: Target) -> Gpu:
    assert target.gpu is not None
    return target.gpu


Knobs = tuple[
    int, int, int, int, int, int, int
]  # patches, consumers, alternate, bn, cluster, split_k, beside
_GENERIC: Knobs = (1, 2, 0, 128, 1, 1, 1)
# What `default` chooses from, by the estimate.
_DEFAULTS: tuple[Knobs, ...] = (
    (1, 1, 0, 32, 1, 4, 1),
    (1, 1, 0, 32, 1, 8, 1),
    (1, 1, 0, 64, 1, 1, 2),
    (1, 1, 0, 64, 1, 1, 1),
    (1, 1, 0, 64, 1, 2, 1),
    (1, 1, 0, 64, 1, 4, 1),
    (1, 1, 0, 64, 1, 8, 1),
    (1, 1, 0, 128, 1, 1, 1),
    (1, 1, 0, 128, 1, 1, 2),
    (1, 1, 0, 128, 1, 4, 1),
    (1, 2, 0, 64, 1, 1, 1),
    (1, 2, 0, 64, 1, 2, 1),
    (1, 2, 0, 64, 1, 1, 2),
    (2, 2, 0, 64, 1, 1, 1),
    _GENERIC,
    (1, 2, 0, 128, 1, 2, 1),
    (1, 2, 0, 128, 1, 3, 1),
    (1, 2, 0, 128, 1, 4, 1),
    (1, 2, 0, 192, 1, 1, 1),
    (1, 2, 0, 192, 1, 2, 1),
    (1, 2, 0, 192, 1, 4, 1),
    (2, 2, 0, 128, 1, 1, 1),
    (2, 2, 0, 128, 1, 3, 1),
    (2, 2, 0, 128, 1, 6, 1),
    (1, 2, 0, 256, 1, 1, 1),
    (1, 2, 0, 128, 2, 1, 1),
    (2, 2, 0, 128, 2, 1, 1),
    (1, 2, 0, 256, 2, 1, 1),
    (1, 2, 1, 128, 1, 1, 1),
    (2, 2, 1, 64, 1, 1, 1),
    (2, 2, 1, 128, 1, 1, 1),
    (2, 2, 1, 128, 2, 1, 1),
)


def _config(patch: Patch, knobs: Knobs, depth: int = PANEL) -> Config:
    patch_w, patch_h, patch_n = patch
    patches, consumers, alternate, bn, cluster, split_k, beside = knobs
    return Config.of(
        patch_w=patch_w,
        patch_h=patch_h,
        patch_n=patch_n,
        patches=patches,
        consumers=consumers,
        alternate=alternate,
        bn=bn,
        depth=depth,
        cluster=cluster,
        split_k=split_k,
        beside=beside,
    )
