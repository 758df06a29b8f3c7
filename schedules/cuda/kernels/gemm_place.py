"""Where a block of a wgmma product stands in its cluster, and which of the others it works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from tvmops.schedules.cuda.gemm_tiles import Tiles


@dataclass(frozen=True)
class Place:
    """Blocks are numbered down a column of tiles, then across, then by their shares of k; sizes are powers of 2."""

    rank: Any
    tiles: Tiles

    @property
    def row(self) -> Any:
        """Its tile among those one above the other: the part of b that it loads for them."""
        if self.tiles.cluster == 1:
            return 0
        return T.bitwise_and(self.rank, self.tiles.cluster - 1)

    @property
    def column(self) -> Any:
        """Its tile among those side by side: the part of a that it loads for them."""
        if self.tiles.across == 1:
            return 0
        return T.bitwise_and(T.truncdiv(self.rank, self.tiles.cluster), self.tiles.across - 1)

    @property
    def share(self) -> Any:
        """Its stretch of k."""
        return T.truncdiv(self.rank, self.tiles.sharers) if self.tiles.split_k > 1 else 0

    @property
    def same_column(self) -> Any:
        """A bit for each block that shares its b."""
        first = T.bitwise_and(self.rank, -self.tiles.cluster)
        return T.Cast("uint16", T.shift_left((1 << self.tiles.cluster) - 1, first))

    @property
    def same_row(self) -> Any:
        """A bit for each block that shares its a."""
        bits = sum(1 << (self.tiles.cluster * i) for i in range(self.tiles.across))
        first = T.bitwise_and(self.rank, T.bitwise_not(self.tiles.cluster * (self.tiles.across - 1)))
        return T.Cast("uint16", T.shift_left(bits, first))

    def filler(self, number: Any) -> Any:
        """Return one of the blocks that fill this one's stages: those above and below, and beside."""
        down, across = self.tiles.cluster, self.tiles.across
        if down > 1 and across > 1:  # two and two: all but the one across the corner
            return T.bitwise_xor(self.rank, number)
        return T.bitwise_xor(self.rank, T.bitwise_and(number, max(down, across) - 1))

    def sharing(self, share: int) -> Any:
        """Return the block that has the `share`-th stretch of k of the same tile."""
        sharers = self.tiles.sharers
        return share * sharers + T.bitwise_and(self.rank, sharers - 1) if sharers > 1 else share
