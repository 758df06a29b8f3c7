"""Convolutions of 16-bit types in groups of few channels; `kernels.conv_grouped` says how."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import ClassVar

from tvm import IRModule

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.grouped_tiles import PIECE, ROWS, GroupedLayout, GroupedTiles, groups_of_unit
from tvmops.schedules.cuda.kernels.conv_grouped import GroupedKernel
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.signatures.layouts import PLAIN
from tvmops.signatures.windows import output_size
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_AMPERE = 80  # mma.sync of 16 bits with cp.async
_HOPPER = 90  # early launches
_MOST_CHANNELS = 64  # of a unit; with more, a group fills the tiles of other templates
_MOST_TAPS = 49
_MOST_INSTRUCTIONS = 1600  # of the products that are unrolled
_MOST_SUMS = 96  # registers
_OTHER_REGISTERS = 44
_RESERVED = 1024  # bytes of shared memory that the system takes of each block
_MOST_WIDTH = 64  # columns of a tile
_MOST_WARPS = 8
_MOST_UNITS = 16
# Of what the default is chosen from:
_MOST_PIXELS = 450  # of a tile
_WIDEST = 32  # channels of a warp at once
_NARROWEST, _BROADEST = 32, 128  # channels of a block
_MOST_WASTE = 1.5  # times the pixels of a tile that warps may compute


class GroupedConv(Template):
    """NHWC: as images and weights lie."""

    name = "cuda.conv_grouped"
    version = 1
    layout: ClassVar[str] = "NHWC"

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != "conv2d" or target.gpu is None or target.gpu.compute < _AMPERE:
            return False
        groups, ci, co = workload["groups"], workload["ci"], workload["co"]
        kh, kw = workload.dims("kh", "kw")
        assert isinstance(groups, int)
        return (
            workload["dtype"] in ("float16", "bfloat16")
            and workload["layout"] == self.layout
            and workload["packed"] == PLAIN
            and groups > 1
            and isinstance(ci, int)
            and isinstance(co, int)
            and groups % (unit := groups_of_unit(ci // groups, co // groups)) == 0
            and max(ci, co) // groups * unit <= _MOST_CHANNELS
            and kh * kw <= _MOST_TAPS
            and next(iter(self.space(workload, target)), None) is not None
        )

    def space(self, workload: Workload, target: Target) -> Space:
        assert target.gpu is not None
        oh, ow = _output(workload)
        shape = _shape(workload)
        ci_each, co_each = int(shape.ci_each), int(shape.co_each)
        channels = _unit_outputs(workload)
        knobs = (
            Knob("tile_n", (1, 2, 4)),
            Knob("tile_h", _cuts(oh)),
            Knob("tile_w", _cuts(ow)),
            Knob("units", _shares(int(shape.groups) // groups_of_unit(ci_each, co_each))),
            Knob("bn", tuple(n for n in range(PIECE, channels + 1, PIECE) if channels % n == 0)),
            Knob("parts", (1, 2, 4, 7)),
            Knob("warps_m", tuple(range(1, _MOST_WARPS + 1))),
            Knob("warps_n", tuple(range(1, _MOST_WARPS + 1))),
            Knob("stages", (1, 2)),
            Knob("beside", (1, 2, 3, 4, 6)),
            Knob("early", (0, 1) if target.gpu.compute >= _HOPPER else (0,)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        legal = [config for config in self.choices(workload, target) if is_legal(config, workload, target)]
        legal = legal or list(islice(self.space(workload, target), 1))
        return min(legal, key=lambda config: self.estimate(workload, target, config))

    def choices(self, workload: Workload, target: Target) -> Iterator[Config]:
        """Yield what the default is chosen from: much of a tile's work for each warp, and few idle."""
        knobs = {
            knob.name: [int(value) for value in knob.values] for knob in self.space(workload, target).knobs
        }
        co, (oh, ow) = _unit_outputs(workload), _output(workload)
        sizes = itertools.product(knobs["tile_n"], knobs["tile_h"], knobs["tile_w"])
        tiles = [
            (n, h, w) for n, h, w in sizes
            if n * h * w <= _MOST_PIXELS and _filled(oh, h) * _filled(ow, w) > 0.8
        ]  # fmt: skip
        for units, bn in itertools.product(knobs["units"], knobs["bn"]):
            if bn > _WIDEST or not (units == knobs["units"][-1] or units * co >= _NARROWEST):
                continue
            if units * co > _BROADEST and units > 1:
                continue
            jobs = units * co // bn
            warps_n = max(count for count in knobs["warps_n"] if jobs % count == 0)
            for (n, h, w), warps_m in itertools.product(tiles, knobs["warps_m"]):
                if not _MOST_WARPS // 2 <= warps_n * warps_m <= _MOST_WARPS:
                    continue
                fills = [-n * h * w % (ROWS * parts * warps_m) for parts in knobs["parts"]]
                fewest = max(n * h * w // 8, min(fills))
                parts = max(parts for parts, fill in zip(knobs["parts"], fills) if fill <= fewest)
                for stages, beside in itertools.product(knobs["stages"], knobs["beside"]):
                    values = (n, h, w, units, bn, parts, warps_m, warps_n, stages, beside, knobs["early"][-1])
                    yield Config.of(**dict(zip(knobs, values)))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []  # channels decide on what is unrolled

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: of each round of tiles what its blocks share, or the way of one through it."""
        assert target.gpu is not None
        tiles, shape, (oh, ow) = tiles_of(config, target), _shape(workload), _output(workload)
        layout = GroupedLayout(shape, tiles)
        sizes = ((known(workload, "n"), tiles.tile_n), (oh, tiles.tile_h), (ow, tiles.tile_w))
        count = math.prod(math.ceil(extent / size) for extent, size in sizes)
        places = min(count, layout.places)
        beside = math.ceil(places * layout.blocks_deep / target.cores)
        return 0.0

    def kernel_workload(self, workload: Workload) -> Workload:
        return workload.replace(**dict.fromkeys(("n", "h", "w"), ANY))

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        shape = ConvShape.of(self.kernel_workload(workload))
        return GroupedKernel(shape, str(workload["dtype"]), tiles_of(config, target)).module()


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    assert target.gpu is not None
    tiles, shape = tiles_of(config, target), _shape(workload)
    sums = tiles.parts * tiles.bn // 2
    if not 2 <= tiles.warps <= _MOST_WARPS or sums > _MOST_SUMS:
        return False
    if tiles.tile_w > _MOST_WIDTH or tiles.rows > max(ROWS, _MOST_WASTE * tiles.pixels):
        return False
    layout = GroupedLayout(shape, tiles)
    registers = sums + 2 * tiles.parts + (layout.kept or tiles.bn // 2) + _OTHER_REGISTERS
    whole = (tiles.tile_h, tiles.tile_w) == _output(workload) and known(workload, "n") > 1
    return (
        (tiles.tile_n == 1 or whole)
        and tiles.units * layout.co // tiles.bn % tiles.warps_n == 0
        and tiles.units * layout.groups < 2 * shape.groups
        and layout.chunks * tiles.parts * tiles.bn // 16 <= _MOST_INSTRUCTIONS
        and registers * 32 * tiles.warps * tiles.beside <= target.gpu.block_registers
        and (layout.shared_bytes(tiles) + _RESERVED) * tiles.beside <= target.gpu.shared_bytes + _RESERVED
    )


@lru_cache
def _shape(workload: Workload) -> ConvShape:
    return ConvShape.of(workload)


def tiles_of(config: Config, target: Target) -> GroupedTiles:
    return GroupedTiles(**{name: int(value) for name, value in config.items}, multiprocessors=target.cores)


def _output(workload: Workload) -> tuple[int, int]:
    h, w = known(workload, "h"), known(workload, "w")
    return output_size(workload.replace(h=h, w=w))


def _unit_outputs(workload: Workload) -> int:
    shape = _shape(workload)
    ci_each, co_each = int(shape.ci_each), int(shape.co_each)
    return groups_of_unit(ci_each, co_each) * co_each


def _filled(extent: int, size: int) -> float:
    """Return what of the tiles of `size` lies within `extent`."""
    return extent / (math.ceil(extent / size) * size)


def _cuts(extent: int) -> tuple[int, ...]:
    """Return sizes of equal parts of `extent`, and powers of two."""
    sizes = {math.ceil(extent / count) for count in range(1, 9)} | {1, 2, 4, 8, 16}
    return tuple(sorted(size for size in sizes if size <= extent))


def _shares(units: int) -> tuple[int, ...]:
    """Return how many of all units a block may take: equal shares, and powers of two."""
    sizes = {math.ceil(units / count) for count in range(1, 17)} | {1, 2, 4, 8, 16}
    return tuple(sorted(size for size in sizes if size <= min(units, _MOST_UNITS)))
