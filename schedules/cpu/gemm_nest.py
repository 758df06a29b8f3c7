"""The loops of a blocked GEMM. `tvmops.schedules.cpu.gemm` says what each knob means.

The loops are written out, not derived with schedule primitives: those can't keep a tile's
accumulators in registers while the sum over k is blocked outside of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import (
    ALL,
    Extent,
    Span,
    branch,
    broadcast,
    ceildiv,
    chunk,
    chunks,
    divides,
    lanes,
    load,
    minimum,
    refuse_overlap,
    registers,
    share,
    store,
    zeros,
)
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

    @classmethod
    def of(cls, config: Config) -> Blocking:
        return cls(**config.as_dict())  # type: ignore[arg-type]


class GemmNest:
    """c = a @ b for row-major tensors of `m`, `n`, `k`, each a number or a symbol."""

    def __init__(self, m: Extent, n: Extent, k: Extent, dtype: str, width: int, blocking: Blocking) -> None:
        self.m, self.n, self.k = m, n, k
        self.dtype = dtype
        self.width = width  # lanes of one vector
        self.nr = blocking.nv * width
        self.blocking = blocking

    def module(self) -> IRModule:
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                T.func_attr({"tirx.noalias": True})
                a, b, c = (T.arg(name, T.handle()) for name in ("a", "b", "c"))
                # align=4: a caller's array may start at any element
                self.a = T.match_buffer(a, (self.m, self.k), self.dtype, align=4)
                self.b = T.match_buffer(b, (self.k, self.n), self.dtype, align=4)
                self.c = T.match_buffer(c, (self.m, self.n), self.dtype, align=4)
                refuse_overlap(self.c, {"a": self.a, "b": self.b})
                self._tasks()
        return IRModule({"main": builder.get()})

    def _tasks(self) -> None:
        """Give each task a rectangle of c and a stretch of k."""
        blocking = self.blocking
        tiles = Span(0, ceildiv(self.m, blocking.mr))
        panels = Span(0, ceildiv(self.n, self.nr))
        depth = Span(0, self.k)
        split_m, split_n, split_k = blocking.split_m, blocking.split_n, blocking.split_k
        if split_k > 1:
            self.partial = T.alloc_buffer((split_k, self.m, self.n), self.dtype)
        if split_m * split_n * split_k == 1:
            self._task(tiles, panels, depth, 0)
            return
        with T.parallel(split_m * split_n * split_k) as task:
            part, rectangle = task % split_k, task // split_k
            self._task(
                share(tiles, rectangle // split_n, split_m),
                share(panels, rectangle % split_n, split_n),
                share(depth, part, split_k),
                part,
            )
        if split_k > 1:
            self._add_parts()

    def _task(self, tiles: Span, panels: Span, whole_k: Span, part: Extent) -> None:
        blocking = self.blocking
        with T.serial(chunks(panels, blocking.nc)) as column_block:
            block = chunk(panels, column_block, blocking.nc)
            k_blocks = chunks(whole_k, blocking.kc)
            if not isinstance(k_blocks, int):
                k_blocks = tirx.max(k_blocks, 1)  # a task whose stretch of k is empty stores zeros
            with T.serial(k_blocks) as k_block:
                depth = chunk(whole_k, k_block, blocking.kc)
                # later blocks of k add to what earlier ones stored
                adds = None if isinstance(k_blocks, int) and k_blocks == 1 else k_block > 0
                packed_b = self._pack_b(block, depth) if blocking.pack_b else None
                with T.serial(chunks(tiles, blocking.mc)) as row_block:
                    rows = chunk(tiles, row_block, blocking.mc)
                    packed_a = self._pack_a(rows, depth) if blocking.pack_a else None
                    with T.serial(block.count) as panel, T.serial(rows.count) as tile:
                        Tile(self, rows, tile, block, panel, depth, packed_a, packed_b, part, adds).emit()

    def _add_parts(self) -> None:
        """Add up what the tasks along k computed; few elements, so one thread does it."""
        with T.serial(self.m) as i, T.serial(ceildiv(self.n, self.width)) as v:
            column = v * self.width

            def add(limit: Extent | None) -> None:
                total = load(self.partial, [0, i], column, self.width, limit)
                for part in range(1, self.blocking.split_k):
                    total += load(self.partial, [part, i], column, self.width, limit)
                store(self.c, total, [i], column, self.width, limit)

            add(None if divides(self.width, self.n) else self.n)

    def _pack_b(self, panels: Span, depth: Span) -> Any:
        """Copy b[depth, panels] to [panel][k][nr]; columns beyond n become whatever loads give."""
        blocking = self.blocking
        most = _at_most(blocking.nc, ceildiv(ceildiv(self.n, self.nr), blocking.split_n))
        packed = T.alloc_buffer((most, _at_most(blocking.kc, self.k), self.nr), self.dtype)
        with T.serial(depth.count) as kk, T.serial(panels.count) as panel:
            column = (panels.start + panel) * self.nr

            def copy(limit: Extent | None) -> None:
                for v in range(blocking.nv):
                    at = v * self.width
                    value = load(self.b, [depth.start + kk], column + at, self.width, limit)
                    T.buffer_store(packed, value, [panel, kk, lanes(at, self.width)])

            self.at_columns(column, copy)
        return packed

    def _pack_a(self, tiles: Span, depth: Span) -> Any:
        """Copy a[tiles, depth] to rows of their own, a cache line apart from a power of two.

        Rows of a that are a multiple of 4 KiB apart fall into the same few cache lines.
        """
        blocking = self.blocking
        deepest = _at_most(blocking.kc, self.k)
        pitch = -(-deepest // self.width) * self.width + 16
        most = _at_most(blocking.mc, ceildiv(ceildiv(self.m, blocking.mr), blocking.split_m))
        packed = T.alloc_buffer((most * blocking.mr, pitch), self.dtype)
        with T.serial(tiles.count * blocking.mr) as i:
            row = self.row(tiles.start * blocking.mr + i)
            with T.serial(depth.count // self.width) as kv:
                value = load(self.a, [row], depth.start + kv * self.width, self.width, None)
                T.buffer_store(packed, value, [i, lanes(kv * self.width, self.width)])
            if not divides(self.width, depth.count):
                whole = depth.count // self.width * self.width
                with T.serial(depth.count % self.width) as kk:
                    T.buffer_store(packed, self.a[row, depth.start + whole + kk], [i, whole + kk])
        return packed

    def row(self, row: Extent) -> Extent:
        """Return `row`, or the last row of a where it lies beyond."""
        return row if divides(self.blocking.mr, self.m) else minimum(row, self.m - 1)

    def at_columns(self, column: Extent, emit: Any) -> None:
        """Call `emit(limit)` for the panel at `column`: None where it is full, n at the edge."""
        if divides(self.nr, self.n):
            emit(None)
        else:
            branch(column + self.nr <= self.n, lambda: emit(None), lambda: emit(self.n))


class Tile:
    """One mr x nr tile of c, summed over one block of k in registers."""

    def __init__(
        self,
        nest: GemmNest,
        tiles: Span,
        tile: Extent,
        panels: Span,
        panel: Extent,
        depth: Span,
        packed_a: Any | None,
        packed_b: Any | None,
        part: Extent,
        adds: tirx.Expr | None,
    ) -> None:
        self.nest = nest
        self.part, self.adds = part, adds
        self.panel, self.depth = panel, depth
        self.packed_a, self.packed_b = packed_a, packed_b
        mr = nest.blocking.mr
        self.packed_row = tile * mr
        self.first_row = (tiles.start + tile) * mr
        self.rows = [nest.row(self.first_row + i) for i in range(mr)]
        self.column = (panels.start + panel) * nest.nr

    def emit(self) -> None:
        if self.packed_b is None:
            self.nest.at_columns(self.column, lambda limit: self._finish(self._sum(limit), limit))
        else:  # a packed panel is full; the edge shows only when c is stored
            accumulators = self._sum(None)
            self.nest.at_columns(self.column, lambda limit: self._finish(accumulators, limit))

    def _sum(self, limit: Extent | None) -> Any:
        nest, blocking = self.nest, self.nest.blocking
        accumulators = registers((blocking.mr, nest.nr), nest.dtype)
        for i in range(blocking.mr):
            for v in range(blocking.nv):
                T.buffer_store(accumulators, zeros(nest.dtype, nest.width), [i, self._lanes(v)])
        unrolled = self.depth.count // blocking.ku
        with T.serial(unrolled) as ku:
            for u in range(blocking.ku):
                self._step(accumulators, ku * blocking.ku + u, limit)
        if not divides(blocking.ku, self.depth.count):
            with T.serial(self.depth.count % blocking.ku) as kk:
                self._step(accumulators, unrolled * blocking.ku + kk, limit)
        return accumulators

    def _step(self, accumulators: Any, kk: Extent, limit: Extent | None) -> None:
        """Add the outer product of one column of a and one row of b."""
        nest = self.nest
        row_of_b = [self._load_b(kk, v, limit) for v in range(nest.blocking.nv)]
        for i in range(nest.blocking.mr):
            a = broadcast(self._load_a(i, kk), nest.width)
            for v, b in enumerate(row_of_b):
                total = accumulators[i, self._lanes(v)] + a * b
                T.buffer_store(accumulators, total, [i, self._lanes(v)])

    def _load_a(self, i: int, kk: Extent) -> tirx.Expr:
        if self.packed_a is not None:
            return self.packed_a[self.packed_row + i, kk]
        return self.nest.a[self.rows[i], self.depth.start + kk]

    def _load_b(self, kk: Extent, v: int, limit: Extent | None) -> tirx.Expr:
        if self.packed_b is not None:
            return self.packed_b[self.panel, kk, self._lanes(v)]
        at = self.column + v * self.nest.width
        return load(self.nest.b, [self.depth.start + kk], at, self.nest.width, limit)

    def _finish(self, accumulators: Any, limit: Extent | None) -> None:
        for i in range(self.nest.blocking.mr):
            if divides(self.nest.blocking.mr, self.nest.m):
                self._store_row(accumulators, i, limit)
            else:
                with T.If(self.first_row + i < self.nest.m), T.Then():
                    self._store_row(accumulators, i, limit)

    def _store_row(self, accumulators: Any, i: int, limit: Extent | None) -> None:
        nest = self.nest
        split = nest.blocking.split_k > 1
        buffer, indices = (nest.partial, [self.part, self.rows[i]]) if split else (nest.c, [self.rows[i]])
        for v in range(nest.blocking.nv):
            at = self.column + v * nest.width
            total = accumulators[i, self._lanes(v)]
            if self.adds is not None:
                earlier = load(buffer, indices, at, nest.width, limit)
                total += tirx.if_then_else(self.adds, earlier, zeros(nest.dtype, nest.width))
            store(buffer, total, indices, at, nest.width, limit)

    def _lanes(self, v: int) -> tirx.Expr:
        return lanes(v * self.nest.width, self.nest.width)


def _at_most(size: int, extent: Extent) -> int:
    """Return how large a chunk of `size` of `extent` can be."""
    if not isinstance(extent, int):
        assert size != ALL, "a buffer for all of an unknown extent has no size"
        return size
    return extent if size == ALL else min(size, extent)
