"""The kernel of `attention_varlen` where keys and values lie in pages that `block_table` lists.

A tile of keys is copied in boxes, each of one page: its rows, or as many as a tile has. To the copy
engine a page is a sequence by itself, as long as it has keys (`attention_packed`), so that what
lies behind the last key, in its page or in pages that are none, is read as zeros. The threads of
the warp that loads copy a box each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.kernels.attention_packed import PackedKernel, PackedProducer
from tvmops.schedules.cuda.kernels.attention_sequences import rows_of_sequence
from tvmops.schedules.cuda.kernels.attention_tiles import COLUMNS, Heads, Tiles
from tvmops.schedules.cuda.words import Position, Scalar, do, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.attention_pool import PoolProducer


class PagedKernel(PackedKernel):
    """`main(q, k, v, cu_seqlens_q, lengths, block_table, scale, out)`."""

    def __init__(self, sizes: Heads, tiles: Tiles, total_q: Extent, pages: Extent, page_size: int) -> None:
        super().__init__(sizes, tiles, total_q, pages * page_size)
        self.pages, self.page_size = pages, page_size
        self.box = box_rows(page_size, tiles.bn)
        self.columns = tirx.Var("columns", "int32")
        self.sequences = tirx.Var("sequences", "int32")

    def registers(self) -> tuple[int, int]:
        return registers_with_pages(self.tiles)

    def _keys(self, name: str) -> Any:
        shape = (self.pages, self.page_size, self.sizes.kv_heads, self.sizes.head_dim)
        return T.arg(name, T.buffer(shape, self.sizes.dtype, align=16, buffer_name=name))

    def _ends_of_keys(self) -> None:
        self.lengths = T.arg("lengths", T.buffer((self.sequences,), "int32", buffer_name="lengths"))
        shape = (self.sequences, self.columns)
        self.table = T.arg("block_table", T.buffer(shape, "int32", buffer_name="block_table"))

    def _rows_of_box(self) -> int:
        return self.box

    def keys_for_finding(self) -> tuple[Any, int]:
        return self.lengths.data, 1

    def keys_of(self, sequence: Any) -> tuple[Any, Any]:
        return 0, tirx.min(self.lengths[sequence], self.columns * self.page_size)

    def rows_of_page(self, head: Any, page: Any, filled: Any, row: Any) -> tuple[Any, ...]:
        """Return where the rows of a page from `row` on lie to the copy engine; `filled` of them are keys."""
        return rows_of_sequence(head, page * self.page_size, filled, row)

    def _produce(self) -> None:
        with when(self.warp == 0):
            self.producer(PagedProducer).run()


class PagedProducer(PackedProducer):
    """A warp whose threads look up a page each, and copy from it."""

    kernel: PagedKernel

    def _load(self, name: str, at: Position, tile: Any) -> None:
        load_pages(self, name, at, tile)


def load_pages(producer: PagedProducer | PoolProducer, name: str, at: Position, tile: Any) -> None:
    """Have the threads of a warp copy a tile of keys or values."""
    kernel, walk = producer.kernel, producer.walk
    ring, memory = (kernel.k_ring, kernel.k) if name == "k" else (kernel.v_ring, kernel.v)
    key = Scalar(tile * kernel.tiles.bn + kernel.lane * kernel.box)
    column = tirx.min(T.truncdiv(key(), kernel.page_size), kernel.columns - 1)
    page = Scalar(kernel.table[walk.sequence, tirx.max(column, 0)])
    with when(kernel.lane == 0):
        ring.empty.wait(at.stage, at.phase ^ 1)
        ring.full.expect(at.stage, kernel.tiles.bn * kernel.blocks_of_columns * 2 * COLUMNS)
    do(T.cuda.warp_sync())
    with when(kernel.lane < kernel.tiles.bn // kernel.box):
        row = T.truncmod(key(), kernel.page_size)
        left = tirx.max(walk.length - key() + row, 0)
        place = kernel.rows_of_page(producer.kv_head, page(), tirx.min(left, kernel.page_size), row)
        producer.copy(name, memory, at.stage, place, ring.full.at(at.stage), kernel.lane * kernel.box)
    at.advance()


def registers_with_pages(tiles: Tiles) -> tuple[int, int]:
    """Count the registers of a thread of the producer, which looks up pages, and of a consumer."""
    return {2: (40, 232), 3: (56, 152)}[tiles.consumers]


def box_rows(page_size: int, bn: int) -> int:
    """Return how many rows are copied at once: of one page, and of one tile."""
    return min(page_size, bn)


__all__ = ["PagedKernel", "box_rows", "load_pages", "registers_with_pages"]
