"""How `tvmops.schedules.cuda.kernels.stream` divides a product, and what that takes of a multiprocessor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.kernels.column_sums import SumsShape


@dataclass(frozen=True)
class StreamTiles:
    rows: int  # of x, that a block multiplies
    spans: int  # of columns, that a warp takes side by side
    warps_n: int
    warps_k: int
    splits: int  # blocks of a cluster, which share k
    depth: int  # units of k that a warp has on their way
    chained: int = 0  # 1: launched while the kernel before it ends, for whose results it waits by itself
    ahead: int = 0  # units that a warp asks for while it waits

    @property
    def warps(self) -> int:
        return self.warps_n * self.warps_k


class StreamProduct(Protocol):
    """What is multiplied: sizes, and the type of x and of the result."""

    @property
    def m(self) -> Extent: ...
    @property
    def n(self) -> Extent: ...
    @property
    def k(self) -> Extent: ...
    @property
    def dtype(self) -> str: ...


@dataclass(frozen=True)
class StreamForm:
    """What a warp takes of weights."""

    unit: int  # of k
    width: int  # neighbouring columns of a lane: 4 or 8
    slots: int  # pieces of a lane, of one span and unit

    @property
    def columns(self) -> int:
        """Columns of a span."""
        return 8 * self.width

    def sums(self, tiles: StreamTiles) -> SumsShape:
        return SumsShape(tiles.rows, tiles.spans, self.width, tiles.warps_n, tiles.warps_k, tiles.splits)

    def registers(self, tiles: StreamTiles) -> int:
        """Registers of a thread for what is on its way, and sums."""
        return 4 * tiles.spans * self.slots * tiles.depth + self.sums(tiles).registers

    def block_sums_at(self, tiles: StreamTiles) -> int:
        """Return where the sums of a block begin, behind the ring of x or, later, the sums of its warps."""
        return max(tiles.warps * tiles.depth * tiles.rows * self.unit * 2, self.sums(tiles).warp_bytes)

    def shared_bytes(self, tiles: StreamTiles) -> int:
        return self.block_sums_at(tiles) + self.sums(tiles).block_bytes
