"""Where the tiles of a Winograd convolution lie: in blocks of neighbours, image by image."""

from __future__ import annotations

from dataclasses import dataclass

from tvmops.schedules.cpu.emit import Extent, Span, chunk
from tvmops.signatures.windows import output_size, windows
from tvmops.workloads import Workload


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
    n: int
    down: int
    across: int
    rows: int
    columns: int
    top: int  # zeros above and left of the image
    left: int

    @classmethod
    def of(cls, workload: Workload, m: int, rows: int, columns: int) -> Grid:
        """Return the grid over the outputs of `workload`; blocks of ALL rows or columns have them all."""
        height, width = output_size(workload)
        down, across = -(-height // m), -(-width // m)
        vertical, horizontal = windows(workload)
        (n,) = workload.dims("n")
        rows, columns = min(rows or down, down), min(columns or across, across)
        return cls(m, n, down, across, rows, columns, vertical.before, horizontal.before)

    @property
    def blocks(self) -> int:
        return self.n * self._blocks_down * self._blocks_across

    @property
    def _blocks_down(self) -> int:
        return -(-self.down // self.rows)

    @property
    def _blocks_across(self) -> int:
        return -(-self.across // self.columns)

    def block(self, index: Extent) -> Block:
        """Return the `index`-th block, counted row by row."""
        down, across = self._blocks_down, self._blocks_across
        rows = chunk(Span(0, self.down), index // across % down, self.rows)
        columns = chunk(Span(0, self.across), index % across, self.columns)
        return Block(index // (down * across) if self.n > 1 else 0, rows, columns)

    @property
    def tiles(self) -> int:
        """Of a full block."""
        return self.rows * self.columns

    @property
    def span(self) -> tuple[int, int]:
        """Rows and columns of the image under a full block."""
        return self.rows * self.m + 2, self.columns * self.m + 2
