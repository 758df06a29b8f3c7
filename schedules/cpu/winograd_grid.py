"""Where the tiles of a Winograd convolution lie: in blocks of neighbours, image by image."""

from __future__ import annotations

from dataclasses import dataclass

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cpu.emit import Extent, Span, ceildiv, chunk

MANY = 8  # rows or columns of tiles of a block, where ALL are meant and their number is unknown


@dataclass(frozen=True)
class Block:
    """A rectangle of tiles of one image."""

    image: Extent
    rows: Span
    columns: Span

    @property
    def tiles(self) -> Extent:
        return self.rows.count * self.columns.count

    def place(self, row: Extent, column: Extent) -> Extent:
        """Return the number, within the block, of the tile at `row` and `column` of the block."""
        return row * self.columns.count + column


@dataclass(frozen=True)
class Grid:
    """Tiles of `m` x `m` outputs, of n images; a block has up to `rows` x `columns` of them."""

    m: int
    n: Extent
    down: Extent
    across: Extent
    rows: int
    columns: int
    top: int  # zeros above and left of the image
    left: int

    @classmethod
    def of(cls, shape: ConvShape, m: int, rows: int, columns: int) -> Grid:
        """Return the grid over the outputs of `shape`; blocks of ALL rows or columns have them all.

        Where it is unknown how many there are, those have `MANY`.
        """
        down, across = ceildiv(shape.oh, m), ceildiv(shape.ow, m)
        rows, columns = _within(down, rows), _within(across, columns)
        return cls(m, shape.n, down, across, rows, columns, shape.down.before, shape.across.before)

    @property
    def blocks(self) -> Extent:
        return self.n * self._blocks_down * self._blocks_across

    @property
    def _blocks_down(self) -> Extent:
        return ceildiv(self.down, self.rows)

    @property
    def _blocks_across(self) -> Extent:
        return ceildiv(self.across, self.columns)

    def block(self, index: Extent) -> Block:
        """Return the `index`-th block, counted row by row."""
        down, across = self._blocks_down, self._blocks_across
        rows = chunk(Span(0, self.down), index // across % down, self.rows)
        columns = chunk(Span(0, self.across), index % across, self.columns)
        is_alone = isinstance(self.n, int) and self.n == 1
        return Block(0 if is_alone else index // (down * across), rows, columns)

    @property
    def tiles(self) -> int:
        """Of a full block."""
        return self.rows * self.columns

    @property
    def span(self) -> tuple[int, int]:
        """Rows and columns of the image under a full block."""
        return self.rows * self.m + 2, self.columns * self.m + 2


def _within(extent: Extent, size: int) -> int:
    """Return `size`, or all of `extent` where that is less."""
    return min(size or extent, extent) if isinstance(extent, int) else size or MANY
