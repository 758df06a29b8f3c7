"""How `GroupedConv` cuts a convolution into tiles, and how they lie in shared memory, in bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvmops.schedules.cpu.conv2d import ConvShape

PIECE = 8  # elements: 16 bytes
PIECE_BYTES = 16
ROWS = 16  # pixels of an mma
_TAIL = 64  # bytes that the last row of weights is read beyond its end


@dataclass(frozen=True)
class GroupedTiles:
    tile_n: int  # images of a tile
    tile_h: int  # rows of the output
    tile_w: int
    units: int  # of channels, of a block; `GroupedLayout` says what that is
    bn: int  # output channels of a unit that a warp computes at once
    parts: int  # of 16 pixels that it does
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
    def rounds(self) -> int:
        """How often a warp takes `parts` parts."""
        return -(-self.pixels // (ROWS * self.parts * self.warps_m))

    @property
    def rows(self) -> int:
        """Pixels that warps compute, of which the last may be none."""
        return self.rounds * self.warps_m * self.parts * ROWS


def groups_of_unit(ci_each: int, co_each: int) -> int:
    """Return the fewest groups whose channels, before and after, are whole pieces."""
    return math.lcm(PIECE // math.gcd(PIECE, ci_each), PIECE // math.gcd(PIECE, co_each))


class GroupedLayout:
    """What a tile is made of: a unit is the fewest groups whose channels are whole pieces."""

    def __init__(self, shape: ConvShape, tiles: GroupedTiles) -> None:
        ci_each, co_each = int(shape.ci_each), int(shape.co_each)
        down, across = shape.down, shape.across
        self.groups = groups_of_unit(ci_each, co_each)
        self.ci, self.co = self.groups * ci_each, self.groups * co_each  # of a unit
        self.pieces = self.ci // PIECE
        self.chunks = down.size * across.size * self.pieces  # of 8 along k
        self.outputs = tiles.units * self.co  # of a block
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
        self.result_bytes = tiles.rows * self.result_pitch
        self.places = max(1, tiles.multiprocessors * tiles.beside // self.blocks_deep)

    def shared_bytes(self, tiles: GroupedTiles) -> int:
        return self.weight_bytes + tiles.stages * self.stage_bytes + self.result_bytes


def _odd(pieces: int) -> int:
    """Round up to an odd number of pieces: 8 neighbouring rows then lie in different banks."""
    return pieces | 1
