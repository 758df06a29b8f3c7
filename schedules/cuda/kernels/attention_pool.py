"""The kernel of `attention_pool`: that of `attention_flash`, on keys and values in pages.

Pages are copied as `attention_paged` does. Where the rows of a head follow each other in a page,
a page and head together are what is a page there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.kernels.attention_consumer import Consumer
from tvmops.schedules.cuda.kernels.attention_flash import FlashKernel
from tvmops.schedules.cuda.kernels.attention_load import Producer
from tvmops.schedules.cuda.kernels.attention_packed import rows_map
from tvmops.schedules.cuda.kernels.attention_paged import box_rows, load_pages, registers_with_pages
from tvmops.schedules.cuda.kernels.attention_sequences import rows_of_sequence
from tvmops.schedules.cuda.kernels.attention_tiles import COLUMNS, ROWS, Heads, Tiles
from tvmops.schedules.cuda.kernels.attention_walk import Walk
from tvmops.schedules.cuda.words import Position, tensor_map, when


class PoolKernel(FlashKernel):
    """`main(q, k, v, lengths, block_table, scale, out)`; of q, k and v heads are beside each other, or apart."""

    def __init__(self, sizes: Heads, tiles: Tiles, beside: bool, pages: Extent, page_size: int) -> None:
        self.columns = tirx.Var("columns", "int32")
        super().__init__(replace(sizes, kv_len=self.columns * page_size), tiles)
        self.beside, self.pages, self.page_size = beside, pages, page_size
        self.box = box_rows(page_size, tiles.bn)

    def _arguments(self) -> None:
        s, pages = self.sizes, self.pages
        self.arrays = {"q": self._rows("q", s.batch, s.heads, s.q_len)}
        self.arrays |= {name: self._rows(name, pages, s.kv_heads, self.page_size) for name in "kv"}
        self.lengths = T.arg("lengths", T.buffer((s.batch,), "int32", buffer_name="lengths"))
        table = T.buffer((s.batch, self.columns), "int32", buffer_name="block_table")
        self.table = T.arg("block_table", table)
        self.scale = T.arg("scale", T.float32())
        self._array("out", s.heads, s.q_len)
        rows, heads = pages * self.page_size, s.kv_heads
        if not self.beside:
            rows, heads = rows * heads, 1
        of_heads = ([s.q_len, s.batch * s.heads], [ROWS, 1])
        of_q = ([s.heads, s.q_len, s.batch], [1, ROWS, 1]) if self.beside else of_heads
        self.maps = {name: rows_map(self.arrays[name], s, heads, rows, self.box) for name in "kv"}
        self.maps |= {
            name: tensor_map(self.arrays[name], s.dtype, [s.head_dim, *sizes], [COLUMNS, *box])
            for name, (sizes, box) in (("q", of_q), ("out", of_heads))
        }

    def _rows(self, name: str, outer: Extent, heads: Extent, rows: Extent) -> Any:
        shape = (outer, *((rows, heads) if self.beside else (heads, rows)), self.sizes.head_dim)
        return T.arg(name, T.buffer(shape, self.sizes.dtype, align=16, buffer_name=name))

    def registers(self) -> tuple[int, int]:
        return registers_with_pages(self.tiles)

    def rows_of_page(self, head: Any, page: Any, filled: Any, row: Any) -> tuple[Any, ...]:
        """Return where the rows of a page from `row` on lie to the copy engine; `filled` of them are keys."""
        if self.beside:
            return rows_of_sequence(head, page * self.page_size, filled, row)
        return rows_of_sequence(0, (page * self.sizes.kv_heads + head) * self.page_size, filled, row)

    def _produce(self) -> None:
        with when(self.warp == 0):
            PoolProducer(self, PoolWalk(self)).run()

    def _consume(self) -> None:
        Consumer(self, PoolWalk(self)).run()


class PoolWalk(Walk):
    kernel: PoolKernel

    @property
    def sequence(self) -> Any:
        return T.truncdiv(self.pair, self.kernel.sizes.heads)

    def queries(self, row: Any) -> tuple[Any, ...]:
        if self.kernel.beside:
            return T.truncmod(self.pair, self.kernel.sizes.heads), row, self.sequence
        return self.results(row)


class PoolProducer(Producer):
    """A warp whose threads look up a page each, and copy from it; one of them copies queries."""

    kernel: PoolKernel
    walk: PoolWalk

    def _locate_keys(self) -> None:
        sizes = self.kernel.sizes
        head = T.truncmod(self.walk.pair, sizes.heads)
        self.kv_head = T.Bind(T.truncdiv(head, T.truncdiv(sizes.heads, sizes.kv_heads)))

    def _load(self, name: str, at: Position, tile: Any) -> None:
        load_pages(self, name, at, tile)

    def _load_q(self) -> None:
        with when(self.kernel.lane == 0):
            super()._load_q()


__all__ = ["PoolKernel", "PoolProducer"]
