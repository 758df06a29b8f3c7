"""How `stream_loose` divides a product: among blocks, warps and lanes, and in shared memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.column_sums import ROWS
from tvmops.schedules.cuda.pieces import PIECE

CLASSES = 8  # of rows of b, by their numbers modulo 8: those of a class begin equally far behind 16 bytes
UNIT = 32  # rows of a class that a warp reads at once: eight each of four lanes
SPAN = 64  # columns, a piece each of eight lanes
LANE_ROWS = 8  # of a unit, that a lane reads
_PAD = 4  # floats behind a row of sums, so that rows start in different banks


@dataclass(frozen=True)
class LooseTiles:
    """The knobs. A block has a tile of the result; blocks of a cluster share its k."""

    rows: int  # of a, that a block multiplies
    spans: int  # of 64 columns, that a warp reads side by side
    turns: int  # warps that share a class of rows
    splits: int  # blocks of a cluster, which share k
    depth: int  # units that a warp has on their way
    chained: int = 0  # 1: launched while the kernel before it ends, for whose results it waits by itself
    ahead: int = 0  # units that a warp asks for while it waits

    @property
    def warps(self) -> int:
        return CLASSES * self.turns

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def window(self) -> int:
        """Columns that are read."""
        return SPAN * self.spans

    @property
    def columns(self) -> int:
        """Columns of the result: a vector fewer than are read, since reading begins up to one before them."""
        return self.window - PIECE

    @property
    def parts(self) -> int:
        """Products side by side along the rows."""
        return -(-self.rows // ROWS)

    @property
    def registers(self) -> int:
        """Registers of a thread for what is on its way, and sums."""
        return self.spans * (32 * self.depth + 16 * self.parts)

    def units(self, k: int) -> int:
        """Return the units of a block, of each class."""
        return -(-k // (CLASSES * UNIT * self.splits))

    def share(self, k: int) -> int:
        """Return how many rows of b are a block's, of all classes; of the last block's, some may not exist."""
        return CLASSES * UNIT * self.units(k)

    # Shared memory: rows of a, by classes; later, in their place, the sums of all warps; behind both, totals.

    def pitch(self, k: int) -> int:
        """Return the bytes from a row of a to the next: an odd multiple of 64, so that banks differ."""
        return (self.units(k) | 1) * 2 * UNIT

    @property
    def sums_pitch(self) -> int:
        """Bytes from a row of a warp's sums to the next."""
        return (self.window + _PAD) * 4

    def totals_at(self, k: int) -> int:
        """Return the byte at which the totals of a block begin."""
        return max(CLASSES * self.rows * self.pitch(k), self.warps * self.rows * self.sums_pitch)

    def shared_bytes(self, k: int) -> int:
        return self.totals_at(k) + self.rows * self.columns * 4


@dataclass(frozen=True)
class LoosePlace:
    """Where a thread stands, and the shared memory of its block."""

    tiles: LooseTiles
    m: Any
    n: Any
    k: int
    rank: Any  # of the block in the cluster
    warp: Any
    lane: Any
    row: Any  # of the result, the block's first
    column: Any
    memory: Any
    base: Any  # the address of `memory` in 32 bits
    own: Any  # the class whose rows the warp reads
    turn: Any  # of the warp among those of its class
    first: Any  # of the rows of b that are the block's

    @property
    def thread(self) -> Any:
        return self.warp * 32 + self.lane

    def shift(self, own: Any) -> Any:
        """Return how many elements behind a multiple of 16 bytes rows of a class begin."""
        return T.truncmod(own * T.truncmod(self.n, PIECE), PIECE)
