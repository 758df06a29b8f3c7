"""How `GroupedConv` cuts a convolution into tiles, and how they lie in shared memory, in bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvmops.schedules.cpu.conv2d import ConvShape

PIECE = 8  # elements: 16 bytes
PIECE_BYTES = 16
ROWS = 16  # pixels of an mma
_TAIL = 64  # bytes that the last row of weights is read beyond its end
_MOST_KEPT = 72  # registers of a thread for weights that stay


@dataclass(frozen=True)
class GroupedTiles:
    tile_n: int  # images of a tile
    tile_h: int  # rows of the output
    tile_w: int
    units: int  # of channels, of a block
    bn: int  # output channels of a unit that a warp computes at once
    parts: int  # rows of the output, one above the other, of which it computes 16 pixels
    warps_m: int  # warps that share the pixels
    warps_n: int  # and the channels
    stages: int  # tiles of the image in shared memory
    beside: int  # blocks that share a multiprocessor
    early: int  # whether blocks are launched while the last kernel ends
    multiprocessors: int

    @property
    def pixels(self) -> int:
        return self.tile_n * self.tile_h * self.tile_w

    @property
    def warps(self) -> int:
        return self.warps_m * self.warps_n

    @property
    def columns(self) -> int:
        """Groups of 16 of the pixels that rows of the same number have."""
        return -(-self.tile_n * self.tile_w // ROWS)

    @property
    def rounds(self) -> int:
        """How often a warp takes `parts` rows of 16 pixels."""
        return -(-self.columns * (self.tile_h // self.parts) // self.warps_m)


@dataclass(frozen=True)
class Step:
    """A product of 8 or 16 along k: bytes from where a row of a window begins to the first 8 channels."""

    offset: int
    apart: int  # bytes from there to the other 8
    chunks: int


@dataclass(frozen=True)
class Unit:
    """The fewest groups whose channels, before and after, are whole pieces."""

    groups: int
    ci: int
    co: int

    @classmethod
    def of(cls, ci_each: int, co_each: int) -> Unit:
        groups = math.lcm(PIECE // math.gcd(PIECE, ci_each), PIECE // math.gcd(PIECE, co_each))
        return cls(groups, groups * ci_each, groups * co_each)

    def divides(self, groups: int) -> bool:
        return groups % self.groups == 0


class GroupedLayout:
    """What a tile is made of."""

    def __init__(self, shape: ConvShape, tiles: GroupedTiles) -> None:
        unit, down, across = Unit.of(int(shape.ci_each), int(shape.co_each)), shape.down, shape.across
        self.down, self.across = down, across
        self.groups, self.ci, self.co = unit.groups, unit.ci, unit.co  # of a unit
        self.pieces = self.ci // PIECE
        self.run = across.size * self.pieces  # pieces along k of a row of the kernel
        self.padded = -(-self.run // 2) * 2
        self.chunks = down.size * self.padded
        self.outputs = tiles.units * self.co  # of a block
        self.jobs = tiles.units * (self.co // tiles.bn)  # what warps share of a tile's channels
        self.blocks_deep = -(-shape.groups // (self.groups * tiles.units))
        self.h = (tiles.tile_h - 1) * down.stride + down.reach  # what a tile sees of an image
        self.w = (tiles.tile_w - 1) * across.stride + across.reach
        self.column = -(-self.w // across.stride)  # neighbours for the output lie side by side
        self.line = self.column * across.stride
        self.weight_pitch = _odd(self.chunks) * PIECE_BYTES
        self.pitch = _odd(tiles.units * self.pieces) * PIECE_BYTES
        self.result_pitch = _odd(self.outputs // PIECE) * PIECE_BYTES
        self.weight_bytes = self.outputs * self.weight_pitch + _TAIL
        self.stage_bytes = tiles.tile_n * self.h * self.line * self.pitch
        self.result_bytes = tiles.pixels * self.result_pitch
        self.table_bytes = 4 * (
            2 * ROWS * tiles.columns + self.outputs
        )  # where windows begin, results lie, and the bias
        self.places = max(1, tiles.multiprocessors * tiles.beside // self.blocks_deep)
        # Weights that a warp needs at every tile, in registers of a thread.
        kept = -(-self.chunks // 4) * 4 * (tiles.bn // 8)
        self.kept = kept if self.jobs == tiles.warps_n and kept <= _MOST_KEPT else 0

    def shared_bytes(self, tiles: GroupedTiles) -> int:
        fixed = self.weight_bytes + self.result_bytes + self.table_bytes
        return fixed + tiles.stages * self.stage_bytes

    def steps(self) -> list[Step]:
        """Return the products along k of a row of the kernel; neighbours along k are pieces of neighbours."""
        offsets = [self.offset(c, piece) for c in range(self.across.size) for piece in range(self.pieces)]
        pairs = [offsets[at : at + 2] for at in range(0, self.run, 2)]
        return [Step(pair[0], pair[-1] - pair[0], len(pair)) for pair in pairs]

    def offset(self, c: int, piece: int) -> int:
        """Return how far from a row's begin lies what a column of the kernel sees."""
        column, stride = c * self.across.dilation, self.across.stride
        place = column % stride * self.column + column // stride
        return place * self.pitch + piece * PIECE_BYTES


def _odd(pieces: int) -> int:
    """Round up to an odd number of pieces: 8 neighbouring rows then lie in different banks."""
    return pieces | 1
