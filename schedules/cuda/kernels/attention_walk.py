"""Which tiles of queries a block of threads takes, and how many keys they see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, ceildiv, minimum
from tvmops.schedules.cuda.kernels.attention_tiles import IN_PAIRS
from tvmops.schedules.cuda.words import Scalar

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.attention_flash import FlashKernel


class Walk:
    """The tiles of queries that a block takes, one after the other, as one thread sees them.

    Causal tiles differ in length; blocks that stay must get equal shares. Either a block takes
    pairs of one head's tiles, a long and a short one; or tiles go longest first, `together`
    heads side by side, to the blocks in order and back again. Pairs keep few heads in L2;
    the other way divides few tiles better.
    """

    def __init__(self, kernel: FlashKernel) -> None:
        self.kernel = kernel
        self._index, self._q_tile, self._pair = Scalar(kernel.block), Scalar(0), Scalar(0)
        self._count = Scalar(0)
        if kernel.sizes.lengths:
            self._length = Scalar(0)
        blocks = kernel.tiles.blocks
        self.in_pairs = kernel.sizes.causal and kernel.tiles.together == IN_PAIRS
        if self.in_pairs:
            self._half = T.truncdiv(kernel.q_tiles + 1, 2)
            self._second = Scalar(0)
        elif kernel.sizes.causal:
            self._stride = Scalar(2 * blocks - 1 - 2 * kernel.block)

    @property
    def pair(self) -> Any:
        """The head, counted over the batch."""
        return self._pair()

    @property
    def length(self) -> Any:
        """How many keys this sequence has."""
        return self._length() if self.kernel.sizes.lengths else self.kernel.sizes.kv_len

    @property
    def offset(self) -> Any:
        """The last key that query 0 sees."""
        return self.kernel.sizes.offset(self.length)

    def queries(self, row: Any) -> tuple[Any, ...]:
        """Return where the queries from `row` on lie to the copy engine."""
        return self.results(row)

    def results(self, row: Any) -> tuple[Any, ...]:
        """Return where the results from `row` on lie to the copy engine."""
        return row, self.pair

    @property
    def first_row(self) -> Any:
        return self._q_tile() * self.kernel.tiles.bm

    def query(self, row: Any) -> Any:
        """Return which query of its sequence `row` is."""
        return row

    @property
    def count(self) -> Any:
        """How many tiles of keys these queries see; at least one is walked."""
        return self._count()

    def more(self) -> Any:
        tiles = self._half if self.in_pairs else self.kernel.q_tiles
        return self._index() < self.kernel.pairs * tiles

    def advance(self) -> None:
        blocks = self.kernel.tiles.blocks
        if not self.kernel.sizes.causal:
            self._index.set(self._index() + blocks)
        elif not self.in_pairs:
            self._index.set(self._index() + self._stride())
            self._stride.set(2 * blocks - self._stride())
        else:
            alone = T.truncmod(self._index(), self._half) * 2 + 1 == self.kernel.q_tiles
            with T.If(tirx.any(self._second() == 1, alone)):
                with T.Then():
                    self._second.set(0)
                    self._index.set(self._index() + blocks)
                with T.Else():
                    self._second.set(1)

    def locate(self) -> None:
        kernel = self.kernel
        if not kernel.sizes.causal:
            self._pair.set(T.truncdiv(self._index(), kernel.q_tiles))
            self._q_tile.set(T.truncmod(self._index(), kernel.q_tiles))
            self._find_length()
            self._find_count()
            return
        if self.in_pairs:
            near = T.truncmod(self._index(), self._half)
            self._pair.set(T.truncdiv(self._index(), self._half))
            self._q_tile.set(tirx.Select(self._second() == 1, near, kernel.q_tiles - 1 - near))
        else:
            self._locate_longest_first()
        self._find_length()
        self._find_count()

    def _find_count(self) -> None:
        sizes, tiles = self.kernel.sizes, self.kernel.tiles
        if sizes.causal:
            seen = minimum(self.first_row + tiles.bm + self.offset, self.length)
            self._count.set(tirx.max(T.truncdiv(seen + (tiles.bn - 1), tiles.bn), 1))
        else:
            count = ceildiv(self.length, tiles.bn)
            self._count.set(tirx.max(count, 1) if sizes.lengths else count)

    def _locate_longest_first(self) -> None:
        kernel, q_tiles, together = self.kernel, self.kernel.q_tiles, self.kernel.tiles.together
        party = T.truncdiv(self._index(), together * q_tiles)
        rest = T.truncmod(self._index(), together * q_tiles)
        size: Extent = together
        if not isinstance(kernel.pairs, int) or kernel.pairs % together:
            size = tirx.min(kernel.pairs - party * together, together)
        self._pair.set(party * together + T.truncmod(rest, size))
        self._q_tile.set(q_tiles - 1 - T.truncdiv(rest, size))

    def _find_length(self) -> None:
        kernel = self.kernel
        if kernel.sizes.lengths:
            length = kernel.lengths[T.truncdiv(self.pair, kernel.sizes.heads)]
            self._length.set(tirx.max(tirx.min(length, kernel.sizes.kv_len), 0))

    def whole(self) -> Any:
        """Count the tiles of keys that all these queries see whole."""
        seen = minimum(self.first_row + self.offset + 1, self.length)
        return tirx.max(T.truncdiv(seen, self.kernel.tiles.bn), 0)
