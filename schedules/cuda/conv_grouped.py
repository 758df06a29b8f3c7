"""Convolutions of 16-bit types in groups of few channels; `kernels.conv_grouped` says how."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import islice
from typing import ClassVar

from tvm import IRModule

from tvmops.ops import op_of
from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.grouped_guess import seconds, worthwhile
from tvmops.schedules.cuda.grouped_tiles import PIECE, GroupedLayout, GroupedTiles, Unit
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
_MOST_CHANNELS = 32  # of a unit; sums of more take registers that are not there
_MOST_TAPS = 49
_LARGE_TAPS, _LARGE_OUTPUT = 25, 1 << 20  # of depthwise convolutions that gain by it
_MOST_INSTRUCTIONS = 1600  # of the products that are unrolled
_MOST_SUMS = 112  # registers
_OTHER_REGISTERS = 72
_RESERVED = 1024  # bytes of shared memory that the system takes of each block
_MOST_WIDTH = 64  # columns of a tile
_MOST_WARPS = 16
_MOST_UNITS = 16


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
            and (unit := Unit.of(ci // groups, co // groups)).divides(groups)
            and max(unit.ci, unit.co) <= _MOST_CHANNELS
            and kh * kw <= _MOST_TAPS
            and (unit.groups < PIECE or groups != co or _is_large_depthwise(workload))
            and next(iter(self.space(workload, target)), None) is not None
        )

    def space(self, workload: Workload, target: Target) -> Space:
        assert target.gpu is not None
        (oh, ow), unit = _output(workload), _unit(workload)
        (groups,) = workload.dims("groups")
        knobs = (
            Knob("tile_n", (1, 2, 4)),
            Knob("tile_h", _cuts(oh)),
            Knob("tile_w", _cuts(ow)),
            Knob("units", _shares(groups // unit.groups)),
            Knob("bn", tuple(n for n in range(PIECE, unit.co + 1, PIECE) if unit.co % n == 0)),
            Knob("parts", (1, 2, 3, 4, 5, 6, 7, 8)),
            Knob("warps_m", tuple(range(1, _MOST_WARPS + 1))),
            Knob("warps_n", tuple(range(1, _MOST_WARPS + 1))),
            Knob("stages", (1, 2)),
            Knob("beside", (1, 2, 3, 4, 6)),
            Knob("early", (0, 1) if target.gpu.compute >= _HOPPER else (0,)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        legal = self.choices(workload, target) or islice(self.space(workload, target), 1)
        return min(legal, key=lambda config: self.estimate(workload, target, config))

    def choices(self, workload: Workload, target: Target) -> list[Config]:
        """Return what the default is chosen from, each with as many blocks as there is room for."""
        knobs = {
            knob.name: [int(value) for value in knob.values] for knob in self.space(workload, target).knobs
        }
        unit = _unit(workload)
        found = []
        for chosen in worthwhile(knobs, _output(workload), unit.co):
            config = Config.of(**chosen, beside=1, early=knobs["early"][-1])
            if is_legal(config, workload, target):
                tiles = tiles_of(config, target)
                room = _room(GroupedLayout(_shape(workload), tiles), tiles, target)
                found.append(config.replace(beside=max(each for each in knobs["beside"] if each <= room)))
        return found

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []  # channels decide on what is unrolled

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        assert target.gpu is not None
        tiles, (oh, ow), n = tiles_of(config, target), _output(workload), known(workload, "n")
        layout = GroupedLayout(_shape(workload), tiles)
        sizes = ((n, tiles.tile_n), (oh, tiles.tile_h), (ow, tiles.tile_w))
        count = math.prod(math.ceil(extent / size) for extent, size in sizes)
        nbytes = op_of(workload).nbytes(_known(workload))
        return seconds(layout, tiles, count, nbytes, target.gpu, target.cores)

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
    if tiles.tile_w > _MOST_WIDTH or tiles.tile_h % tiles.parts:
        return False
    layout = GroupedLayout(shape, tiles)
    whole = (tiles.tile_h, tiles.tile_w) == _output(workload) and known(workload, "n") > 1
    return (
        (tiles.tile_n == 1 or whole)
        and layout.jobs % tiles.warps_n == 0
        and tiles.units * layout.groups < 2 * shape.groups
        and layout.chunks * tiles.parts * tiles.bn // 16 <= _MOST_INSTRUCTIONS
        and tiles.beside <= _room(layout, tiles, target)
    )


def _room(layout: GroupedLayout, tiles: GroupedTiles, target: Target) -> int:
    """Return how many blocks a multiprocessor has room for."""
    assert target.gpu is not None
    sums = tiles.parts * tiles.bn // 2
    registers = sums + (layout.kept or tiles.bn // 2) + _OTHER_REGISTERS
    shared = (target.gpu.shared_bytes + _RESERVED) // (layout.shared_bytes(tiles) + _RESERVED)
    return min(target.gpu.block_registers // (registers * 32 * tiles.warps), shared)


@lru_cache
def _shape(workload: Workload) -> ConvShape:
    return ConvShape.of(workload)


def _unit(workload: Workload) -> Unit:
    shape = _shape(workload)
    return Unit.of(int(shape.ci_each), int(shape.co_each))


def tiles_of(config: Config, target: Target) -> GroupedTiles:
    return GroupedTiles(**{name: int(value) for name, value in config.items}, multiprocessors=target.cores)


def _is_large_depthwise(workload: Workload) -> bool:
    """Say whether products with zeros are worth their while for groups of one channel."""
    (oh, ow), (kh, kw, co) = _output(workload), workload.dims("kh", "kw", "co")
    return kh * kw >= _LARGE_TAPS and known(workload, "n") * oh * ow * co >= _LARGE_OUTPUT


def _known(workload: Workload) -> Workload:
    """Return `workload` with sizes where it has none."""
    return workload.replace(**{name: known(workload, name) for name in ("n", "h", "w")})


def _output(workload: Workload) -> tuple[int, int]:
    return output_size(_known(workload))


def _cuts(extent: int) -> tuple[int, ...]:
    """Return sizes of equal parts of `extent`, and powers of two."""
    sizes = {math.ceil(extent / count) for count in range(1, 9)} | {1, 2, 4, 8, 16}
    return tuple(sorted(size for size in sizes if size <= extent))


def _shares(units: int) -> tuple[int, ...]:
    """Return how many of all units a block may take: equal shares, and powers of two."""
    sizes = {math.ceil(units / count) for count in range(1, 17)} | {1, 2, 4, 8, 16}
    return tuple(sorted(size for size in sizes if size <= min(units, _MOST_UNITS)))
