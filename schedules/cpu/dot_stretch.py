"""Stretches of a long k, one after the other, in a product of short values.

The words of b of a stretch stay in the L2 cache while all rows are multiplied by them; the sums
wait in memory for the next stretch. Meanwhile the words that come next are asked for: those
further down, or, at the end of k, those of the next columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.dot_sums import Accumulators
from tvmops.schedules.cpu.emit import Extent, Span, ceildiv, chunk, chunks, lanes, minimum
from tvmops.signatures.words import COLUMNS

if TYPE_CHECKING:
    from tvmops.schedules.cpu.dot_nest import DotNest

_READ_TO_L2 = tuple(tirx.const(value, "int32") for value in (0, 2, 1))  # of llvm.prefetch


@dataclass(frozen=True)
class Stretch:
    """Steps along k that are summed in one go."""

    steps: Span
    is_first: tirx.Expr | None  # None: it is all of k
    is_last: tirx.Expr | None

    @classmethod
    def of(cls, nest: DotNest, index: Extent) -> Stretch:
        whole, kc = Span(0, nest.steps), nest.blocking.kc
        if not kc:
            return cls(whole, None, None)
        return cls(chunk(whole, index, kc), index == 0, index == chunks(whole, kc) - 1)


@dataclass(frozen=True)
class Place:
    """Where a tile lies: in the product, and among the tiles and panels of its block."""

    first_row: Extent
    column: Extent
    tile: Extent
    panel: Extent


class Carried:
    """Sums of the tiles of a block, from one stretch to the next."""

    def __init__(self, nest: DotNest) -> None:
        blocking = nest.blocking
        self.nest = nest
        self.tiles = ceildiv(ceildiv(nest.m, blocking.mr), blocking.split_m)
        self.buffer = T.alloc_buffer((self.tiles, blocking.nc, blocking.mr, nest.nr), nest.dot.dtype)

    def load(self, sums: Accumulators, place: Place, stretch: Stretch) -> None:
        """Go on from what the stretches before came to."""
        with T.If(tirx.Not(stretch.is_first)), T.Then():
            for i, v, at in self._vectors(place):
                sums.set(i, v, self.buffer[tuple(at)])

    def store(self, sums: Accumulators, place: Place) -> None:
        for i, v, at in self._vectors(place):
            T.buffer_store(self.buffer, sums.row(i, v), at)

    def _vectors(self, place: Place) -> list[tuple[int, int, list[Extent]]]:
        blocking, width = self.nest.blocking, self.nest.width
        return [
            (i, v, [place.tile, place.panel, i, lanes(v * width, width)])
            for i in range(blocking.mr)
            for v in range(blocking.nv)
        ]

    def ask_ahead(self, place: Place, stretch: Stretch, step: Extent, ku: int) -> None:
        """Ask for a share of the words of the panel that lies where this one does in the next block.

        The tiles take even shares, a few cache lines each `ku` steps: memory is busy all the time.
        """
        nest = self.nest
        assert isinstance(self.tiles, int) and isinstance(nest.steps, int)
        kc, nv = min(nest.blocking.kc, nest.steps), nest.blocking.nv
        each = -(-ku * nv // self.tiles)
        first = (place.tile * (kc // ku) + step // ku) * each
        last = stretch.is_last
        start = tirx.if_then_else(last, 0, stretch.steps.start + kc)
        column = place.column + tirx.if_then_else(last, nest.blocking.nc * nest.nr, 0)
        for i in range(each):
            line = first + i
            panel = minimum((column + line // kc * nest.width) // COLUMNS, ceildiv(nest.n, COLUMNS) - 1)
            element = nest.b[panel, minimum(start + line % kc, nest.b_words - 1), 0]
            T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", tirx.address_of(element), *_READ_TO_L2))
