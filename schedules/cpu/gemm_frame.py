"""The knobs of a GEMM as numbers, and what all its loops refer to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tvmops.schedules.cpu.emit import ALL, Extent, branch, divides, minimum
from tvmops.schedules.cpu.gemm_operands import Operands, Product
from tvmops.space import Config


@dataclass(frozen=True)
class Blocking:
    """The knobs, as numbers."""

    mr: int
    nv: int
    kc: int
    nc: int
    mc: int
    ku: int
    pack_a: bool
    pack_b: bool
    split_m: int
    split_n: int
    split_k: int
    split_batch: int = 1
    ahead: bool = False

    @classmethod
    def of(cls, config: Config) -> Blocking:
        return cls(**config.as_dict())  # type: ignore[arg-type]

    def config(self) -> Config:
        return Config.of(**asdict(self))


@dataclass(frozen=True)
class Frame:
    """What the loops of one kernel share."""

    product: Product
    blocking: Blocking
    operands: Operands
    partial: Any  # sums of stretches of k: [part][m][n]; None where k is not split

    @property
    def nr(self) -> int:
        """Columns of a tile."""
        return self.blocking.nv * self.product.width

    def row(self, row: Extent) -> Extent:
        """Return `row`, or the last row of a where it lies beyond."""
        m = self.product.m
        return row if divides(self.blocking.mr, m) else minimum(row, m - 1)

    def at_columns(self, column: Extent, emit: Callable[[Extent | None], None]) -> None:
        """Call `emit(limit)` for the panel at `column`: None where it is full, n at the edge."""
        n = self.product.n
        if divides(self.nr, n):
            emit(None)
        else:
            branch(column + self.nr <= n, lambda: emit(None), lambda: emit(n))


def at_most(size: int, extent: Extent) -> int:
    """Return how large a chunk of `size` of `extent` can be."""
    if not isinstance(extent, int):
        assert size != ALL, "a buffer for all of an unknown extent has no size"
        return size
    return extent if size == ALL else min(size, extent)
