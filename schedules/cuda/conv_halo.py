"""Convolutions of few channels of 16-bit types on Hopper, NHWC; `kernels.conv_halo` says how."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

from tvm import IRModule

from tvmops.ops import op_of
from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.conv_wgmma import WgmmaConv
from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.halo_tiles import ROWS, SIDE, HaloLayout, HaloTiles
from tvmops.schedules.cuda.kernels.conv_halo import HaloKernel
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.signatures.layouts import PLAIN
from tvmops.signatures.windows import output_size, windows
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_ALIGNED = 8  # channels: TMA takes rows of a multiple of 16 bytes
_MOST_STRIDE = 8  # that TMA takes
MOST_BOX = 256
_MOST_PRODUCTS = 240  # of a warpgroup and a tile, all unrolled
_MOST_WEIGHTS = 180 * 1024  # bytes, of a group: of more the image would be copied often
_OTHER_REGISTERS = 72
_MOST_PATCHES = 4  # of a tile
_KEPT = 2  # tiles of as many patches that are tried: those that fit the image best
_COPIED = 0.2  # what a pixel that is copied costs, in pixels that are multiplied
# The guess, fitted to 86 configs of 18 layers on an H100: median error 5%.
_CLOCK = 1.9e9
_SLOWER = 1.37  # than tensor cores, or shared memory, could be
_WAITING = 7  # cycles of a product, of a warpgroup that multiplies alone
_END, _END_EACH = 570, 6  # cycles in which a warpgroup finishes a tile, and of a patch's channel
_SEEN = 0.3  # of them, that no other warpgroup's products hide
_ROW_SECONDS, _TAKEN = 8.6e-10, 2.3e11  # of a row that a multiprocessor copies, and its bytes a second
_HIDDEN = 0.05  # the part of what takes less time that is seen beside what takes most
_EQUAL = 1.05  # all of 17 layers that were guessed to be as fast were faster
_FILL_SECONDS = 1.6e-6  # until the first tile is there


class HaloConv(Template):
    name = "cuda.conv_halo"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        return seconds(self, workload, target) < math.inf

    def comes_last(self, workload: Workload, target: Target) -> bool:
        """Say whether `conv_wgmma` is faster by what both guess."""
        return not seconds(self, workload, target) < _EQUAL * seconds_without(workload, target)

    def space(self, workload: Workload, target: Target) -> Space:
        heights, widths = (tuple(sorted({tile[axis] for tile in tiles_for(workload)})) for axis in range(2))
        knobs = (
            Knob("tile_h", heights),
            Knob("tile_w", widths),
            Knob("consumers", (1, 2, 3, 4)),
            Knob("alternate", (0, 1)),
            Knob("bn", (16, 32, 48, 64, 96, 128)),
            Knob("depth", depths_for(workload)),
            Knob("beside", (1, 2, 3, 4)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        choices = self.choices(workload, target)
        return min(choices, key=lambda config: self.estimate(workload, target, config))

    def choices(self, workload: Workload, target: Target) -> list[Config]:
        """Return what the default is chosen from, by the estimate."""
        found = []
        for (tile_h, tile_w), (consumers, alternate, beside), bn, depth in itertools.product(
            tiles_for(workload), _WAYS, _WIDTHS, depths_for(workload)
        ):
            config = Config.of(
                tile_h=tile_h,
                tile_w=tile_w,
                consumers=consumers,
                alternate=alternate,
                bn=bn,
                depth=depth,
                beside=beside,
            )
            if is_legal(config, workload, target):
                found.append(config)
        return found

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []  # channels decide on what is unrolled, and on what there is room for

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: of the busiest multiprocessor, what it multiplies or copies, and an end."""
        assert target.gpu is not None
        tiles = tiles_of(config, target)
        layout = HaloLayout(ConvShape.of(workload), tiles)
        (oh, ow), n = output_of(workload), known(workload, "n")
        count = layout.count(n, oh, ow) * layout.jobs
        beside = min(tiles.beside, math.ceil(min(layout.blocks, count) / target.cores))
        rounds = math.ceil(count / layout.blocks) * beside
        alone = (_WAITING if tiles.bn >= 48 else 2) / (tiles.consumers * tiles.beside)
        product = max(16 + tiles.bn / 4, tiles.bn / 2) * _SLOWER + alone  # cycles
        end = _END + _END_EACH * layout.patches * tiles.bn
        under_way = tiles.beside * tiles.consumers // tiles.sharers
        multiply = (layout.products * tiles.sharers * product + _SEEN * end / under_way) / _CLOCK
        load = layout.loaded_bytes * (_ROW_SECONDS / tiles.row_bytes + 1 / _TAKEN)
        fewest = op_of(workload).nbytes(workload) / (0.79 * target.gpu.bandwidth)
        fill = layout.weight_bytes / _TAKEN + _FILL_SECONDS
        body = rounds * max(multiply, load)
        return max(body, fewest) + _HIDDEN * min(body, fewest) + end / _CLOCK + fill

    def kernel_workload(self, workload: Workload) -> Workload:
        return workload.replace(**dict.fromkeys(("n", "h", "w"), ANY))

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        shape = ConvShape.of(self.kernel_workload(workload))
        return HaloKernel(shape, str(workload["dtype"]), tiles_of(config, target)).module()


_WIDTHS = (16, 32, 48, 64, 96, 128)
# Of warpgroups, whether they take tiles in turn, and blocks side by side.
_WAYS = ((4, 1, 1), (3, 1, 1), (2, 1, 1), (2, 0, 1), (1, 0, 1), (1, 0, 2))


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    tiles = tiles_of(config, target)
    co, groups = workload.dims("co", "groups")
    if (tiles.tile_h, tiles.tile_w) not in tiles_for(workload) or tiles.bn >= co // groups + 16:
        return False
    if tiles.alternate and tiles.consumers == 1:
        return False
    layout = HaloLayout(ConvShape.of(workload), tiles)
    strides = layout.down.stride, layout.across.stride
    return (
        layout.products <= _MOST_PRODUCTS
        and layout.patches * tiles.bn // 2 <= tiles.consumer_registers - _OTHER_REGISTERS
        and max(layout.h * strides[0], layout.w * strides[1]) <= MOST_BOX
        and layout.weight_bytes * layout.columns <= _MOST_WEIGHTS
        and layout.stages > 0
    )


def tiles_of(config: Config, target: Target) -> HaloTiles:
    return HaloTiles.of(config, target)


@lru_cache(maxsize=256)
def seconds(template: HaloConv, workload: Workload, target: Target) -> float:
    """Guess the seconds of the default of `template`, infinite where it can't schedule `workload`."""
    if not _is_possible(workload, target):
        return math.inf
    known_sizes = with_sizes(workload)
    return min(
        (template.estimate(known_sizes, target, c) for c in template.choices(workload, target)),
        default=math.inf,
    )


@lru_cache(maxsize=256)
def seconds_without(workload: Workload, target: Target) -> float:
    """Guess the seconds of `conv_wgmma`, which copies what each tap sees."""
    usual, known_sizes = WgmmaConv(), with_sizes(workload)
    if not usual.covers(workload, target):
        return -math.inf
    return usual.estimate(known_sizes, target, usual.default(known_sizes, target))


def with_sizes(workload: Workload) -> Workload:
    """Return `workload` with large images for unknown ones."""
    return workload.replace(**{name: known(workload, name) for name in ("n", "h", "w")})


def _is_possible(workload: Workload, target: Target) -> bool:
    if workload.op != "conv2d" or target.gpu is None or target.gpu.code != "sm_90a":
        return False
    groups, strides = workload["groups"], workload["stride"]
    kh, kw = workload.dims("kh", "kw")
    assert isinstance(groups, int) and isinstance(strides, tuple)
    return (
        workload["dtype"] in ("float16", "bfloat16")
        and workload["layout"] == "NHWC"
        and workload["packed"] == PLAIN
        and kh * kw > 1
        and max(strides) <= _MOST_STRIDE
        and all(_is_aligned(workload[channels], groups) for channels in ("ci", "co"))
    )


Tile = tuple[int, int]  # rows, columns


@lru_cache(maxsize=64)
def tiles_for(workload: Workload) -> tuple[Tile, ...]:
    """Return tiles of each number of patches that leave the fewest products and copies unused."""
    oh, ow = output_of(workload)
    found: dict[tuple[int, bool], dict[Tile, float]] = {}
    for height, width in {*_squares(oh, ow), *_runs(oh, ow)}:
        patches, cost = _cost(workload, height, width)
        if patches <= _MOST_PATCHES:
            count = math.ceil(oh / height) * math.ceil(ow / width)
            boxed = height % SIDE == width % SIDE == 0
            found.setdefault((patches, boxed), {})[height, width] = count * cost
    kept = [sorted(found[key], key=lambda tile: (found[key][tile], tile))[:_KEPT] for key in sorted(found)]
    return tuple(tile for tiles in kept for tile in tiles)


def _cost(workload: Workload, height: int, width: int) -> tuple[int, float]:
    """Return the patches of a tile, and the pixels that are multiplied, with what copies cost."""
    down, across = windows(workload)
    line = width + (across.reach - 1) // across.stride
    boxed = height % SIDE == width % SIDE == 0
    patches = math.ceil((height * width if boxed else (height - 1) * line + width) / ROWS)
    copied = (height + (down.reach - 1) // down.stride) * line * down.stride * across.stride
    return patches, patches * ROWS + _COPIED * copied


def _squares(oh: int, ow: int) -> list[Tile]:
    """Return tiles of 8 x 8 pixels."""
    sides = range(SIDE, SIDE * _MOST_PATCHES + 1, SIDE)
    return [(h, w) for h in sides for w in sides if h < oh + SIDE and w < ow + SIDE]


def _runs(oh: int, ow: int) -> list[Tile]:
    """Return tiles of equal parts of the output's rows and columns."""
    widths = {math.ceil(ow / parts) for parts in range(1, ow + 1)}
    return [(h, w) for h in range(1, min(oh, ROWS) + 1) for w in widths if w <= 2 * ROWS]


def output_of(workload: Workload) -> tuple[int, int]:
    """Return the height and the width of the output, large ones where they are not known."""
    return output_size(with_sizes(workload))


def depths_for(workload: Workload) -> tuple[int, ...]:
    """Return how many channels may lie together: as many as divide all, or fewer where none does."""
    ci, groups = workload.dims("ci", "groups")
    whole = [depth for depth in (64, 32) if ci // groups % depth == 0]
    return tuple(whole[:1]) or (16, 32, 64)


def _is_aligned(channels: object, groups: int) -> bool:
    """Say whether a group's channels are known, and whole pieces of 16 bytes."""
    return isinstance(channels, int) and channels // groups % _ALIGNED == 0
