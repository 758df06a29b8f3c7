"""How `NarrowConv` cuts a convolution into tiles, and how they lie in shared memory."""

from __future__ import annotations

from dataclasses import dataclass

from tvmops.schedules.cpu.conv2d import ConvShape

PAD = 8  # elements behind a row of weights or results, so that rows start in different banks
PIECE = 8  # elements of 16 bytes


@dataclass(frozen=True)
class NarrowTiles:
    tile_h: int  # rows of the output that a block computes at once
    tile_w: int
    warps: int  # each takes as many of the tile's pixels
    bn: int  # output channels
    beside: int  # blocks that share a multiprocessor
    multiprocessors: int

    @property
    def pixels(self) -> int:
        return self.tile_h * self.tile_w

    @property
    def parts(self) -> int:
        """Parts of 16 pixels of a warp."""
        return self.pixels // (16 * self.warps)


class NarrowLayout:
    """How a tile lies in shared memory, in elements."""

    def __init__(self, shape: ConvShape, tiles: NarrowTiles) -> None:
        ci, co = int(shape.ci), int(shape.co)
        down, across = shape.down, shape.across
        self.run = across.size * ci
        self.padded = -(-self.run // PIECE) * PIECE
        self.depth = -(-down.size * self.padded // 16) * 16
        self.rows = (tiles.tile_h - 1) * down.stride + down.reach
        self.width = ((tiles.tile_w - 1) * across.stride + across.size) * ci
        self.pitch = (self.width + self.padded - self.run + 3) // 2 * 2
        self.copies = 1 if across.stride * ci % 2 == 0 else 2  # whether all pixels begin at even elements
        self.steps = -(-self.rows * self.width // (32 * tiles.warps))  # elements of a thread
        self.copy = self.rows * self.pitch
        self.results = tiles.pixels * (tiles.bn + PAD)
        if not shape.channels_last:
            self.results = tiles.warps * tiles.bn * (16 * tiles.parts + PAD)
        self.columns = -(-co // tiles.bn)
        self.blocks = max(1, tiles.multiprocessors * tiles.beside // self.columns) * self.columns

    def shared_bytes(self, tiles: NarrowTiles) -> int:
        elements = tiles.bn * (self.depth + PAD) + self.copies * self.copy + self.results
        return 2 * elements + 64
