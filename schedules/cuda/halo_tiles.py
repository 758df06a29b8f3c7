"""How `HaloConv` cuts a convolution into tiles, and how they lie in shared memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.conv_tiles import registers_of
from tvmops.schedules.cuda.gemm_tiles import PARTIAL_PAD
from tvmops.space import Config
from tvmops.targets import Target

ROWS = 64  # of a wgmma: pixels of a patch
SIDE = 8  # of those, neighbours that lie side by side
PAD = 8  # elements behind a row of results, so that rows start in different banks
_ATOM = 1024  # bytes: where a box that the copy engine swizzles may begin
_MOST_STAGES = 8
_MOST_WEIGHT_STAGES = 12
_RESERVED = 1024  # bytes of shared memory that the system takes of each block
_BARRIERS = 1024  # bytes, and what alignment takes
_PRODUCER_REGISTERS, _MEETING_REGISTERS = 32, 56


@dataclass(frozen=True)
class HaloTiles:
    tile_h: int  # rows of the output
    tile_w: int
    consumers: int  # warpgroups that multiply
    alternate: int  # whether each of them takes tiles of its own, in turn, or all share each tile's patches
    bn: int  # output channels
    depth: int  # channels that lie together
    beside: int  # blocks that share a multiprocessor
    multiprocessors: int
    shared_bytes: int  # of a multiprocessor, for one block

    @classmethod
    def of(cls, config: Config, target: Target) -> HaloTiles:
        assert target.gpu is not None
        knobs = {name: int(value) for name, value in config.items}
        return cls(**knobs, multiprocessors=target.cores, shared_bytes=target.gpu.shared_bytes)

    @property
    def sharers(self) -> int:
        """Warpgroups that multiply one tile."""
        return 1 if self.alternate else self.consumers

    @property
    def producer_registers(self) -> int:
        return _PRODUCER_REGISTERS

    @property
    def consumer_registers(self) -> int:
        return registers_of(self.consumers, self.beside, self.producer_registers)

    @property
    def row_bytes(self) -> int:
        """Bytes of a pixel's channels that lie together: what shared memory is swizzled by."""
        return 2 * self.depth

    @property
    def is_boxed(self) -> bool:
        """Whether patches are 8 x 8 pixels; else they are runs of neighbours, with what lies between rows."""
        return self.tile_h % SIDE == 0 and self.tile_w % SIDE == 0


@dataclass(frozen=True)
class Tap:
    """A place of the kernel: the plane that it sees, and how far from the plane's begin."""

    plane: int
    row: int
    column: int


class HaloLayout:
    """What a tile is made of. Rows and columns that a stride skips are planes of their own."""

    def __init__(self, shape: ConvShape, tiles: HaloTiles) -> None:
        self.tiles, t = tiles, tiles
        self.down, self.across = shape.down, shape.across
        self.chunks = -(-int(shape.ci_each) // t.depth)
        self.columns = -(-int(shape.co_each) // t.bn)
        self.jobs = self.columns * shape.groups  # of which a block has one
        self.blocks = max(1, t.multiprocessors * t.beside // self.jobs) * self.jobs
        self.h = t.tile_h + max(tap.row for tap in self.taps)  # of a plane
        self.w = t.tile_w + max(tap.column for tap in self.taps)
        whole = t.tile_h * t.tile_w if t.is_boxed else (t.tile_h - 1) * self.w + t.tile_w
        self.patches = -(-whole // (ROWS * t.sharers))  # of a warpgroup
        self.plane_bytes = -(-self.h * self.w * t.row_bytes // _ATOM) * _ATOM
        planes = self.chunks_at_once * len(self.phases)  # of a stage
        self.loaded_bytes = planes * self.h * self.w * t.row_bytes
        self.stage_bytes = planes * self.plane_bytes
        self.weight_bytes = len(self.taps) * self.chunks * t.bn * t.row_bytes
        self.result_pitch = t.bn + PAD
        self.result_bytes = 2 * t.consumers * self.patches * ROWS * self.result_pitch

    @property
    def chunks_at_once(self) -> int:
        """Parts of the channels that a stage has."""
        return self.chunks

    @property
    def room(self) -> int:
        """Bytes of shared memory that a block may divide."""
        t = self.tiles
        return (t.shared_bytes + _RESERVED) // t.beside - _RESERVED - _BARRIERS

    @cached_property
    def phases(self) -> list[tuple[int, int]]:
        """The first row and column of each plane."""
        rows, columns = (
            sorted({i * each.dilation % each.stride for i in range(each.size)})
            for each in (self.down, self.across)
        )
        return [(row, column) for row in rows for column in columns]

    @cached_property
    def taps(self) -> list[Tap]:
        """The places of the kernel, in the order of its weights."""
        found = []
        for r in range(self.down.size):
            for c in range(self.across.size):
                y, x = r * self.down.dilation, c * self.across.dilation
                plane = self.phases.index((y % self.down.stride, x % self.across.stride))
                found.append(Tap(plane, y // self.down.stride, x // self.across.stride))
        return found

    def seen_by(self, tap: Tap) -> int:
        """Return how far from a stage's begin, in bytes, lies what a tap sees of the first pixel."""
        return tap.plane * self.plane_bytes + (tap.row * self.w + tap.column) * self.tiles.row_bytes

    @property
    def groups_apart(self) -> int:
        """Pixels from 8 neighbours of a patch to the next 8."""
        return self.w if self.tiles.is_boxed else SIDE

    @property
    def stages(self) -> int:
        """Tiles of the image in shared memory: as many as there is room for.

        Warpgroups that take tiles in turn must meet their own stages alone: copies may come out of order,
        and a barrier tells a round from the next, but not from the one after it.
        """
        room = self.room - self.weight_bytes - self.result_bytes
        most, own = min(room // self.stage_bytes, _MOST_STAGES), self.tiles.consumers // self.tiles.sharers
        return most // own * own

    @property
    def products(self) -> int:
        """Products of a warpgroup for a tile: instructions."""
        return len(self.taps) * self.chunks * (self.tiles.depth // 16) * self.patches

    def count(self, n: int, oh: int, ow: int) -> int:
        """Count the tiles of images of which the output is `oh` x `ow`."""
        return n * math.ceil(oh / self.tiles.tile_h) * math.ceil(ow / self.tiles.tile_w)


@dataclass(frozen=True)
class StreamedTiles(HaloTiles):
    split_k: int  # blocks that share the sum of a tile

    @classmethod
    def of(cls, config: Config, target: Target) -> StreamedTiles:
        assert target.gpu is not None
        knobs = {name: int(value) for name, value in config.items}
        return cls(**knobs, alternate=0, multiprocessors=target.cores, shared_bytes=target.gpu.shared_bytes)

    @property
    def producer_registers(self) -> int:
        """More where all threads meet once more when the sums are there."""
        return _PRODUCER_REGISTERS if self.split_k == 1 else _MEETING_REGISTERS

    @property
    def blocks(self) -> int:
        """Blocks that stay on the machine."""
        return self.multiprocessors * self.beside


class StreamedLayout(HaloLayout):
    """The same of weights that are no longer there: a stage has what a tile sees of some channels."""

    tiles: StreamedTiles

    @property
    def stages(self) -> int:
        return 2

    def __init__(self, shape: ConvShape, tiles: StreamedTiles) -> None:
        super().__init__(shape, tiles)
        self.weight_stage_bytes = tiles.bn * tiles.row_bytes
        self.all_patches = self.patches * tiles.sharers
        self.partial_bytes = 0
        if tiles.split_k > 1:  # they take the place of what is copied
            self.result_bytes = 0
            self.partial_bytes = 4 * (tiles.bn + PARTIAL_PAD) * ROWS * self.all_patches

    @property
    def chunks_at_once(self) -> int:
        return 1

    @property
    def weight_stages(self) -> int:
        """Taps whose weights are in shared memory: as many as there is room for."""
        room = self.room - self.result_bytes - self.stages * self.stage_bytes
        return min(room // self.weight_stage_bytes, _MOST_WEIGHT_STAGES)

    @property
    def ring_bytes(self) -> int:
        return self.stages * self.stage_bytes + self.weight_stages * self.weight_stage_bytes
