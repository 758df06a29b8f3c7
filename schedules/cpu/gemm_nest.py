"""The loops of a blocked GEMM. `tvmops.schedules.cpu.gemm` says what each knob means.

The loops are written out, not derived with schedule primitives: those can't keep a tile's
accumulators in registers while the sum over k is blocked outside of it.
"""

from __future__ import annotations

from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import (
    Extent,
    Span,
    branch,
    ceildiv,
    chunk,
    chunks,
    divides,
    load,
    share,
    store,
)
from tvmops.schedules.cpu.epilogue import activate
from tvmops.schedules.cpu.gemm_frame import Blocking, Frame
from tvmops.schedules.cpu.gemm_operands import Operands, Product
from tvmops.schedules.cpu.gemm_pack import pack_a, pack_b
from tvmops.schedules.cpu.gemm_tile import Ahead, Place, Tile, finished


class GemmNest:
    """c = activation(a @ b + bias + residual) for each matrix of a batch."""

    def __init__(self, product: Product, blocking: Blocking) -> None:
        self.product, self.blocking = product, blocking

    def module(self) -> IRModule:
        product, split_k = self.product, self.blocking.split_k
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                T.func_attr({"tirx.noalias": True})
                operands = Operands(product)
                sums = (split_k, product.m, product.n)
                partial = T.alloc_buffer(sums, product.dtype) if split_k > 1 else None
                self.frame = Frame(product, self.blocking, operands, partial)
                self._tasks()
        return IRModule({"main": builder.get()})

    def _tasks(self) -> None:
        """Give each task some matrices, a rectangle of c and a stretch of k."""
        blocking, product = self.blocking, self.product
        matrices, depth = Span(0, product.batch), Span(0, product.k)
        tiles, panels = Span(0, ceildiv(product.m, blocking.mr)), Span(0, ceildiv(product.n, self.frame.nr))
        split_m, split_n, split_k = blocking.split_m, blocking.split_n, blocking.split_k
        tasks = split_m * split_n * split_k * blocking.split_batch
        if tasks == 1:
            self._matrices(matrices, tiles, panels, depth, 0)
            return
        with T.parallel(tasks) as task:
            part, rectangle = task % split_k, task // split_k % (split_m * split_n)
            self._matrices(
                share(matrices, task // (split_k * split_m * split_n), blocking.split_batch),
                share(tiles, rectangle // split_n, split_m),
                share(panels, rectangle % split_n, split_n),
                share(depth, part, split_k),
                part,
            )
        if split_k > 1:
            self._add_parts()

    def _matrices(self, matrices: Span, tiles: Span, panels: Span, depth: Span, part: Extent) -> None:
        if not self.product.has_batch:
            self._task(0, tiles, panels, depth, part)
            return
        with T.serial(matrices.count) as matrix:
            self._task(matrices.start + matrix, tiles, panels, depth, part)

    def _task(self, matrix: Extent, tiles: Span, panels: Span, whole_k: Span, part: Extent) -> None:
        blocking, frame = self.blocking, self.frame
        with T.serial(chunks(panels, blocking.nc)) as column_block:
            block = chunk(panels, column_block, blocking.nc)
            k_blocks = chunks(whole_k, blocking.kc)
            if not isinstance(k_blocks, int):
                k_blocks = tirx.max(k_blocks, 1)  # a task whose stretch of k is empty stores zeros
            with T.serial(k_blocks) as k_block:
                depth = chunk(whole_k, k_block, blocking.kc)
                is_first = is_last = None
                if not isinstance(k_blocks, int) or k_blocks > 1:
                    is_first, is_last = k_block == 0, k_block == k_blocks - 1
                packed_b = pack_b(frame, matrix, block, depth) if blocking.pack_b else None
                ahead = self._ahead(whole_k, depth, is_last) if blocking.ahead else None
                with T.serial(chunks(tiles, blocking.mc)) as row_block:
                    rows = chunk(tiles, row_block, blocking.mc)
                    packed_a = pack_a(frame, matrix, rows, depth) if blocking.pack_a else None
                    with T.serial(block.count) as panel, T.serial(rows.count) as tile:
                        place = Place(matrix, rows, tile, block, panel, depth, part, is_first, is_last)
                        self._tile(place, packed_a, packed_b, ahead)

    def _tile(self, place: Place, packed_a: Any | None, packed_b: Any | None, ahead: Ahead | None) -> None:
        """Emit a tile. Where m is not known: one of mr rows, and one for the rows left, of half as many
        if that holds them, so that what is known of m saves as little as can be.
        """
        mr, m = self.blocking.mr, self.product.m

        def emit(rows: int, is_whole: bool) -> None:
            Tile(self.frame, place, rows, is_whole, packed_a, packed_b, ahead).emit()

        if isinstance(m, int) or mr == 1:
            emit(mr, divides(mr, m) or mr == 1)
            return
        left, half = m - (place.tiles.start + place.tile) * mr, ceildiv(mr, 2)

        def rest() -> None:
            if half == mr - 1:
                emit(half, mr == 2)
            else:
                branch(left <= half, lambda: emit(half, False), lambda: emit(mr - 1, False))

        branch(left >= mr, lambda: emit(mr, True), rest)

    def _ahead(self, whole_k: Span, depth: Span, is_last: tirx.Expr | None) -> Ahead:
        """Say where the block of b lies that is packed after this one: further down, or beside it."""
        if is_last is None:
            return Ahead(whole_k.start, self.blocking.nc)
        return Ahead(
            tirx.if_then_else(is_last, whole_k.start, depth.start + self.blocking.kc),
            tirx.if_then_else(is_last, self.blocking.nc, 0),
        )

    def _add_parts(self) -> None:
        """Add up what the tasks along k computed; few elements, so one thread does it."""
        frame, product = self.frame, self.product
        width, activation = product.width, product.epilogue.activation
        with T.serial(product.m) as i, T.serial(ceildiv(product.n, width)) as v:
            column = v * width

            def add(limit: Extent | None) -> None:
                total = load(frame.partial, [0, i], column, width, limit)
                for part in range(1, self.blocking.split_k):
                    total += load(frame.partial, [part, i], column, width, limit)
                total = finished(frame, total, 0, i, column, limit)
                if product.epilogue.is_long:
                    total = activate(activation, total, width)
                store(frame.operands.c, total, [i], column, width, limit)

            add(None if divides(width, product.n) else product.n)
