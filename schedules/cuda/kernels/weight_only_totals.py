"""The end of a product with integer weights on wgmma: its totals meet, and become results.

A thread has two neighbouring columns of the result, of two rows of each eight.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.kernels.column_sums import add_four
from tvmops.schedules.cuda.kernels.gemm_mma import STORE_PAIR
from tvmops.schedules.cuda.kernels.neighbours import FOUR, store_four
from tvmops.schedules.cuda.kernels.weight_fragments import COLUMNS
from tvmops.schedules.cuda.weight_only_product import WeightOnlyProduct
from tvmops.schedules.cuda.weight_only_tiles import WeightOnlyWgmmaTiles
from tvmops.schedules.cuda.words import Scalar, c_call, do, pack, ptx, shared_address, when

_ALL = 3  # the named barrier of all that multiply


class Totals:
    """Where totals of a block's threads go: results `c` of `sizes`, m and n."""

    def __init__(
        self,
        product: WeightOnlyProduct,
        tiles: WeightOnlyWgmmaTiles,
        arrays: tuple[Any, Any],
        sizes: tuple[Any, Any],
        warp: Any,
        lane: Any,
    ) -> None:
        self.product, self.tiles = product, tiles
        self.bias, self.c = arrays
        self.m, self.n = sizes
        self.warp, self.lane = warp, lane

    def _own(self, part: int, e: int) -> tuple[Any, Any, int]:
        """Return row and column of one of a thread's pairs in the tile, and where its first total is."""
        column = self.warp * COLUMNS + T.truncdiv(self.lane, 4) * 2
        return part * 8 + T.truncmod(self.lane, 4) * 2 + e, column, part * 4 + e

    def _pairs(self) -> list[tuple[Any, Any, int]]:
        return [self._own(part, e) for part in range(self.tiles.rows // 8) for e in range(2)]

    def leave(self, totals: Any, memory: Any) -> None:
        """Leave totals where the other blocks of the cluster find them."""
        ptx("bar.sync", T.uint32(_ALL), T.uint32(128 * self.tiles.groups))  # others may still read the ring
        for row, column, first in self._pairs():
            for half in range(2):
                T.buffer_store(memory, totals[first + half * 2], [row, column + half])

    def store(self, totals: Any, top: Any, left: Any) -> None:
        """Store results of a tile, a pair of neighbours at a time."""
        biases: list[Any] = []
        if self.bias is not None:
            _, own, _ = self._own(0, 0)
            columns = [tirx.min(left + own + i, self.n - 1) for i in range(2)]
            biases = [Scalar(T.Cast("float32", self.bias[column]), "float32")() for column in columns]
        for row, column, first in self._pairs():
            place, at = top + row, left + column
            with when((place < self.m) & (at < self.n)):
                values = [totals[first + half * 2] for half in range(2)]
                if biases:
                    values = [value + bias for value, bias in zip(values, biases)]
                self._store_pair(place, at, [activate(self.product.activation, value) for value in values])

    def _store_pair(self, row: Any, column: Any, values: list[Any]) -> None:
        with T.If(T.truncmod(self.n, 2) == 0):
            with T.Then():
                to, pair = self.c.ptr_to([row, column]), pack(self.product.dtype, *values)
                do(c_call("void", "store_pair", to, pair, source=STORE_PAIR))
            with T.Else():
                for i, value in enumerate(values):
                    with when(column + i < self.n):
                        T.buffer_store(self.c, T.Cast(self.product.dtype, value), [row, column + i])

    def add_up(self, memory: Any, top: Any, left: Any, rank: Any) -> None:
        """Add up what the cluster's blocks left, and store it: four neighbours at a time, blocks in turn."""
        t = self.tiles
        fours, consumers = t.bn // FOUR, 128 * t.groups
        present = T.Bind(tirx.min(self.m - top, t.rows))
        first = rank * consumers + self.warp * 32 + self.lane
        threads = t.splits * consumers
        with T.serial(-(-t.rows * fours // threads)) as turn:
            at = T.Bind(first + turn * threads)
            row, inside = T.truncdiv(at, fours), T.truncmod(at, fours) * FOUR
            column = T.Bind(left + inside)
            with when((row < present) & (column < self.n)):
                address = T.Bind(shared_address(memory, row, inside))
                sums = add_four([(address, block) for block in range(t.splits)])
                columns = [tirx.min(column + i, self.n - 1) for i in range(FOUR)]
                done = [Scalar(self._finished(value, at), "float32")() for value, at in zip(sums, columns)]
                store_four(self.c, self.n, top + row, column, done)

    def _finished(self, value: Any, column: Any) -> Any:
        if self.bias is not None:
            value = value + T.Cast("float32", self.bias[column])
        return activate(self.product.activation, value)
