"""Few rows of a by a 16-bit b whose rows begin anywhere, at the speed of memory.

Every eighth row of b begins as far behind a multiple of 16 bytes: these are a class. So a warp takes the
rows of a class: in the aligned vectors that it reads, a column of all its rows lies in the same place,
and nothing has to be shifted but its sums, once, at the end (`stream_loose_sums`). Weights pass right into
registers (`stream_loose_weights`) and are multiplied as in `stream_floats`; what a block needs of a lies in
shared memory, by classes (`stream_loose_rows`). What blocks read overlaps by a vector, so that each has
all columns of its result, however far the rows of a class are shifted.
"""

from __future__ import annotations

from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import ceildiv
from tvmops.schedules.cuda.kernels.neighbours import FOUR, store_four
from tvmops.schedules.cuda.kernels.product import Product, finished
from tvmops.schedules.cuda.kernels.stream_loose_rows import LooseRows
from tvmops.schedules.cuda.kernels.stream_loose_sums import ShiftedSums
from tvmops.schedules.cuda.kernels.stream_loose_tiles import CLASSES, LoosePlace, LooseTiles
from tvmops.schedules.cuda.kernels.stream_loose_weights import LooseWeights
from tvmops.schedules.cuda.words import PROGRAMMATIC_LAUNCH, Scalar, do, let_next_kernel_begin, ptx, when


class LooseStream:
    """`main(a, b, [bias], [residual], c)` of two dimensions each; k is known."""

    def __init__(self, product: Product, tiles: LooseTiles) -> None:
        self.product, self.tiles = product, tiles
        self.k = int(product.k)

    def module(self) -> IRModule:
        p = self.product
        with IRBuilder() as builder, T.prim_func():
            T.func_name("main")
            self.a = self._array("a", p.m, p.k)
            self.b = self._array("b", p.k, p.n)
            self.bias = self._array("bias", p.n) if p.bias else None
            self.residual = self._array("residual", p.m, p.n) if p.residual else None
            self.c = self._array("c", p.m, p.n)
            T.device_entry()
            with T.attr({"tirx.launch_bounds_min_blocks_per_sm": 1}):
                self._body()
        function = builder.get().with_attr("global_symbol", "main")
        chained = bool(self.tiles.chained)
        return IRModule({"main": function.with_attr(*PROGRAMMATIC_LAUNCH) if chained else function})

    def _array(self, name: str, *shape: Any) -> Any:
        return T.arg(name, T.buffer(shape, self.product.dtype, align=16, buffer_name=name))

    def _body(self) -> None:
        t = self.tiles
        self.place = self._find()
        self.weights = LooseWeights(self.b, self.place)
        self.rows = LooseRows(self.a, self.place)
        self.sums = ShiftedSums(self.place)
        if t.chained:
            for number in range(t.ahead):
                self.weights.ask(self.place.turn + number * t.turns)
            ptx("griddepcontrol.wait")
        for slot in range(t.depth):
            self.weights.fetch(slot, self.place.turn + slot * t.turns)
        self.rows.store()
        do(T.cuda.cta_sync())
        self._stream()
        if t.chained:
            let_next_kernel_begin()
        self.sums.add_up(self._finish)

    def _find(self) -> LoosePlace:
        """Find where this thread stands."""
        p, t, k = self.product, self.tiles, self.k
        block = T.cta_id([ceildiv(p.m, t.rows) * ceildiv(p.n, t.columns) * t.splits])
        rank = T.cta_id_in_cluster([t.splits]) if t.splits > 1 else 0
        warp, lane = T.warp_id([t.warps]), T.lane_id([32])
        # Through variables, lest what the launch computes becomes arguments of the kernel.
        across = T.Bind(T.truncdiv(Scalar(p.n)() + (t.columns - 1), t.columns))
        tile = T.Bind(T.truncdiv(block, t.splits))
        row = T.Bind(T.truncdiv(tile, across) * t.rows)
        column = T.Bind(T.truncmod(tile, across) * t.columns)
        m, n = T.Bind(Scalar(p.m)()), T.Bind(Scalar(p.n)())
        pool = SMEMPool()
        memory = pool.alloc((t.shared_bytes(k),), "uint8", align=128)
        pool.commit()
        base = Scalar(T.cuda.cvta_generic_to_shared(memory.ptr_to([0])), "uint32")()
        own, turn = T.Bind(warp % CLASSES), T.Bind(T.truncdiv(warp, CLASSES))
        first = T.Bind(rank * t.share(k)) if t.splits > 1 else 0
        return LoosePlace(t, m, n, k, rank, warp, lane, row, column, memory, base, own, turn, first)

    def _stream(self) -> None:
        """Go through the units of the warp, each of which is multiplied and makes room for a later one."""
        t = self.tiles
        units, stride = t.units(self.k), t.turns * t.depth
        with T.serial(-(-units // stride)) as turn:
            for slot in range(t.depth):
                unit = T.Bind(self.place.turn + turn * stride + slot * t.turns)
                with when(unit < units):
                    self._multiply(slot, unit)
                    self.weights.fetch(slot, unit + stride)

    def _multiply(self, slot: int, unit: Any) -> None:
        t = self.tiles
        self.rows.load(self.weights.row_of_class(unit))
        for span in range(t.spans):
            for half in range(2):  # of the eight values of k
                for tile in range(4):
                    pairs = self.weights.pairs(slot, span, half, tile)
                    for part in range(t.parts):
                        values = [self.rows.values[part * 4 + half * 2 + i] for i in range(2)]
                        self.sums.add(self.product.dtype, span, part, tile, pairs, values)

    def _finish(self, row: Any, column: Any, sums: list[Any]) -> None:
        p, n = self.product, self.place.n
        columns = [tirx.min(column + i, n - 1) for i in range(FOUR)]
        done = [
            Scalar(finished(p, self.bias, self.residual, value, [row], at), "float32")()
            for value, at in zip(sums, columns)
        ]
        store_four(self.c, n, row, column, done)
