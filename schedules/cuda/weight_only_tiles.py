"""How `WeightOnlyWgmma` cuts a product into tiles, and what these take of the machine."""

from __future__ import annotations

from dataclasses import dataclass

from tvmops.schedules.cuda.kernels.weight_fragments import COLUMNS, ROW_BYTES, PackedStage
from tvmops.schedules.cuda.weight_only_product import BK, WeightOnlyProduct

GROUP_COLUMNS = 64  # of a warpgroup
PAD = 4  # floats behind a row of sums, so that rows start in different banks
_REGISTERS = 65_536  # of a multiprocessor
_MOST_REGISTERS = 232  # of a thread that multiplies
PRODUCER_REGISTERS = 40  # of one that loads


@dataclass(frozen=True)
class WeightOnlyWgmmaTiles:
    rows: int  # of x, a multiple of 8, at most 128, or 256 of rounded weights
    groups: int  # warpgroups that multiply, 64 columns each
    stages: int
    splits: int  # blocks of a cluster, which share k
    beside: int  # blocks that share a multiprocessor
    chained: int  # 1: launched while the kernel before it ends; 2: as late as that pays
    multiprocessors: int
    rounded: int = 0  # 1: weights are scaled, and rounded, before they are multiplied

    @property
    def bn(self) -> int:
        return self.groups * GROUP_COLUMNS

    @property
    def panels(self) -> int:
        """Panels of packed weights."""
        return self.bn // COLUMNS

    @property
    def consumer_registers(self) -> int:
        """Registers of a thread that multiplies, when those that load have given theirs away."""
        threads = 128 * (self.groups + 1)
        pool = _REGISTERS // self.beside // threads // 8 * 8 * threads
        return min((pool - 128 * PRODUCER_REGISTERS) // (128 * self.groups) // 8 * 8, _MOST_REGISTERS)

    @property
    def sums(self) -> int:
        """Sums of a thread: of all groups, and of one unless that is scaled beforehand."""
        return self.rows // 2 if self.rounded else self.rows

    @property
    def x_bytes(self) -> int:
        return self.rows * BK * 2


def shared_bytes(product: WeightOnlyProduct, tiles: WeightOnlyWgmmaTiles) -> int:
    stage = tiles.x_bytes + tiles.panels * PackedStage.of(product).rows * ROW_BYTES
    sums = tiles.rows * (tiles.bn + PAD) * 4 if tiles.splits > 1 else 0
    return max(tiles.stages * (stage + 16), sums)
