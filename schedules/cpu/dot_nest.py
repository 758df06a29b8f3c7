"""The loops of a matrix product of short values, in words. `tvmops.schedules.cpu.gemm_dot` says more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import DataType, IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.dot import Dot, Value, constant, dtype_of, functions_of, lanes_of
from tvmops.schedules.cpu.emit import (
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
    load_or_zeros,
    minimum,
    registers,
    share,
    transpose,
    zeros,
)
from tvmops.signatures import ANY, SIGNATURES
from tvmops.signatures.dtypes import stored
from tvmops.signatures.words import COLUMNS
from tvmops.space import Config
from tvmops.workloads import Workload

_ONES = 0x01010101  # a word of four ones


@dataclass(frozen=True)
class DotBlocking:
    """The knobs, as numbers."""

    mr: int
    nv: int
    nc: int
    ku: int
    pack_b: bool
    split_m: int
    split_n: int
    split_batch: int = 1

    @classmethod
    def of(cls, config: Config) -> DotBlocking:
        return cls(**config.as_dict())  # type: ignore[arg-type]


@dataclass(frozen=True)
class Operands:
    """Sizes of a product, each a number or a symbol, and how a and b lie."""

    m: Extent
    n: Extent
    k: Extent
    batch: Extent
    shared: str
    trans_a: bool
    trans_b: bool

    @classmethod
    def of(cls, workload: Workload) -> Operands:
        """Return those of `workload`, whose op may have no batch, and no transposed operands."""
        fields = dict(workload.items)
        sizes = ((name, fields.get(name, 1)) for name in ("m", "n", "k", "batch"))
        extents = (size if isinstance(size, int) else tirx.Var(name, "int32") for name, size in sizes)
        turned = (fields.get(name) is True for name in ("trans_a", "trans_b"))
        m, n, k, batch = extents
        return cls(m, n, k, batch, str(fields.get("shared", "none")), *turned)

    @property
    def has_batch(self) -> bool:
        return self.batch != 1 if isinstance(self.batch, int) else True

    def of_batch(self, operand: str, *of_one: Extent, matrix: Extent | None = None) -> tuple[Extent, ...]:
        """Return the shape of an operand of a matrix each, or the index in it where `matrix` is given."""
        if not self.has_batch or self.shared == operand:
            return of_one
        return (self.batch if matrix is None else matrix, *of_one)


@dataclass(frozen=True)
class Sums:
    """What a nest computes of one row of a and a vector of columns of b."""

    products: Value
    columns: Value | None  # of b, where the nest has `with_sums`
    row: Value | None  # of a, with zeros beyond k as they are multiplied, where it has `with_row_sums`


class DotNest(ABC):
    """Sums over k of a[m, k] * b[k, n], for each matrix of a batch, each handed to `finish`."""

    a: Any
    b: Any

    def __init__(self, operands: Operands, dot: Dot, each: int, width: int, blocking: DotBlocking) -> None:
        self.operands = operands
        self.m, self.n, self.k = operands.m, operands.n, operands.k
        self.matrix: Extent = 0  # of the batch, the one at hand
        self.dot = dot
        self.each = each  # values in a word
        self.width = width  # words in a vector
        self.blocking = blocking
        self.nr = blocking.nv * width
        self.words = ceildiv(self.k, each)
        self.is_packed = False  # b, beforehand
        self.a_offset = 0  # added to each word of a, by exclusive or
        self.with_sums = False  # of the columns of b
        self.with_row_sums = False  # of the rows of a, as they are multiplied

    @abstractmethod
    def declare(self) -> None:
        """Declare the arguments of the function; set `a` and `b`."""

    @abstractmethod
    def finish(self, row: Extent, column: Extent, sums: Sums, limit: Extent | None) -> None:
        """Store what becomes of a vector of sums; columns from `limit` on are beyond the edge."""

    @staticmethod
    def dtypes(workload: Workload) -> dict[str, str]:
        """Return the dtypes in memory of the arrays of `workload`, by name, in calling order."""
        sized = workload.replace(**{name: 1 for name, value in workload.items if value == ANY})
        signature = SIGNATURES[workload.op]
        specs = (*signature.inputs(sized), *signature.outputs(sized))
        return {spec.name: stored(spec.dtype) for spec in specs}

    def b_shape(self) -> tuple[Extent, ...]:
        """Return the shape of b as it is given."""
        if self.is_packed:
            return ceildiv(self.n, COLUMNS), self.words + self.with_sums, COLUMNS * self.each
        return self.operands.of_batch("b", *((self.n, self.k) if self.operands.trans_b else (self.k, self.n)))

    def a_shape(self) -> tuple[Extent, ...]:
        """Return the shape of a as it is given."""
        return self.operands.of_batch("a", *((self.k, self.m) if self.operands.trans_a else (self.m, self.k)))

    def at(self, operand: str, *index: Extent) -> list[Extent]:
        """Return the indices of an element of the matrix at hand."""
        return list(self.operands.of_batch(operand, *index, matrix=self.matrix))

    def module(self) -> IRModule:
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                T.func_attr({"tirx.noalias": True})
                self.declare()
                with functions_of(self.dot):
                    self._tasks()
        return IRModule({"main": builder.get()})

    def _tasks(self) -> None:
        """Give each task a rectangle of c."""
        blocking = self.blocking
        tiles = Span(0, ceildiv(self.m, blocking.mr))
        panels = Span(0, ceildiv(self.n, self.nr))
        split_m, split_n, matrices = blocking.split_m, blocking.split_n, Span(0, self.operands.batch)
        tasks = split_m * split_n * blocking.split_batch
        if tasks == 1:
            self._matrices(matrices, tiles, panels)
            return
        with T.parallel(tasks) as task:
            rectangle = task % (split_m * split_n)
            self._matrices(
                share(matrices, task // (split_m * split_n), blocking.split_batch),
                share(tiles, rectangle // split_n, split_m),
                share(panels, rectangle % split_n, split_n),
            )

    def _matrices(self, matrices: Span, tiles: Span, panels: Span) -> None:
        if not self.operands.has_batch:
            self._task(tiles, panels)
            return
        with T.serial(matrices.count) as index:
            self.matrix = matrices.start + index
            self._task(tiles, panels)

    def _task(self, tiles: Span, panels: Span) -> None:
        blocking = self.blocking
        with T.serial(chunks(panels, blocking.nc)) as column_block:
            block = chunk(panels, column_block, blocking.nc)
            packed_b = self._pack_b(block) if blocking.pack_b else None
            with T.serial(tiles.count) as tile:
                first_row = (tiles.start + tile) * blocking.mr
                packed_a = self._pack_a(first_row)
                row_sums = self._sum_rows(packed_a) if self.with_row_sums else None
                with T.serial(block.count) as panel:
                    column = (block.start + panel) * self.nr
                    Tile(self, first_row, column, panel, packed_a, packed_b, row_sums).emit()

    def _pack_a(self, first_row: Extent) -> Any:
        """Copy the words of a tile's rows of a, split in parts, to [part][row][word].

        Rows lie a cache line apart from a multiple of their length: multiples of 4 KiB would
        fall into the same few cache lines.
        """
        width = self.width
        pitch = ceildiv(self.words, 16) * 16 + 16
        packed = T.alloc_buffer((self.dot.parts, self.blocking.mr, pitch), "int32")
        if self.operands.trans_a:  # neighbours in memory are rows
            with T.serial(self.words) as at, T.serial(self.blocking.mr) as i:
                self._store_parts(packed, i, at, self._last_word(self.row(first_row + i), at))
            return packed
        with T.serial(self.blocking.mr) as i:
            row = self.row(first_row + i)
            whole = self.k // (self.each * width)
            with T.serial(whole) as kv:
                place = self.at("a", row, lanes(kv * width * self.each, width * self.each))
                values = self.a[tuple(place)]
                self._store_parts(packed, i, kv * width, T.reinterpret(f"int32x{width}", values))
            if not divides(self.each * width, self.k):
                with T.serial(self.words - whole * width) as rest:
                    self._store_parts(
                        packed, i, whole * width + rest, self._last_word(row, whole * width + rest)
                    )
        return packed

    def _store_parts(self, packed: Any, i: Extent, at: Extent, word: Value) -> None:
        word = T.bind(word ^ constant(self.a_offset, word) if self.a_offset else word)
        for part in range(self.dot.parts):
            value = self.dot.left(word, part)
            T.buffer_store(packed, value, [part, i, lanes(at, lanes_of(word))])

    def _last_word(self, row: Extent, at: Extent) -> Value:
        """Return a word of a, zeros for its values beyond k."""
        word: Value = tirx.const(0, "int32")
        for j in range(self.each):
            kk = at * self.each + j
            inside = minimum(kk, self.k - 1)
            index = (inside, row) if self.operands.trans_a else (row, inside)
            value = _bits(self.a[tuple(self.at("a", *index))], 1)
            if not divides(self.each, self.k):
                value = tirx.if_then_else(kk < self.k, value, tirx.const(0, "int32"))
            word = word | (value << (32 // self.each * j))
        return word

    def _sum_rows(self, packed: Any) -> Any:
        """Return the sums of the values of each packed row."""
        row_sums = T.alloc_buffer((self.blocking.mr,), "int32")
        whole, every = self.words // self.width, lanes(0, self.width)

        def added(total: Value, i: Extent, word: Callable[[int], Value]) -> Value:
            ones = constant(_ONES, total)
            for part in range(self.dot.parts):
                total = self.dot.add(total, word(part), self.dot.right(ones, part))
            return total

        with T.serial(self.blocking.mr) as i:
            total = registers(
                (2, self.width), self.dot.dtype
            )  # of whole vectors, and of the rest in each lane
            for which in range(2):
                T.buffer_store(total, zeros(self.dot.dtype, self.width), [which, every])
            with T.serial(whole) as kv:
                at = lanes(kv * self.width, self.width)
                value = added(total[0, every], i, lambda part: packed[part, i, at])
                T.buffer_store(total, value, [0, every])
            with T.serial(self.words - whole * self.width) as rest:
                at = whole * self.width + rest
                value = added(total[1, every], i, lambda part: broadcast(packed[part, i, at], self.width))
                T.buffer_store(total, value, [1, every])
            value = total[1, 0]
            for lane in range(self.width):
                value = value + total[0, lane]
            T.buffer_store(row_sums, value, [i])
        return row_sums

    def row(self, row: Extent) -> Extent:
        """Return `row`, or the last row of a where it lies beyond."""
        return row if divides(self.blocking.mr, self.m) else minimum(row, self.m - 1)

    def _pack_b(self, panels: Span) -> Any:
        """Copy the words of these panels of b to [panel][word][nr], and behind them the columns' sums."""
        blocking = self.blocking
        most: Extent = ceildiv(ceildiv(self.n, self.nr), blocking.split_n)
        most = minimum(blocking.nc, most) if blocking.nc else most
        deepest: Extent = self.words + 1
        if self.operands.trans_b:
            deepest = ceildiv(self.words, self.width) * self.width + 1
        packed = T.alloc_buffer((most, deepest, self.nr), "int32")
        if self.operands.trans_b:
            self._turn_b(panels, packed)
        else:
            self._copy_b(panels, packed)
        if self.with_sums:
            with T.serial(panels.count) as panel:
                self._sum_columns(packed, panel)
        return packed

    def _copy_b(self, panels: Span, packed: Any) -> None:
        blocking = self.blocking

        def copy(kk: Extent, panel: Extent, is_last: bool) -> None:
            column = (panels.start + panel) * self.nr

            def vectors(limit: Extent | None) -> None:
                for v in range(blocking.nv):
                    word = self.plain_word(kk, column + v * self.width, limit, is_last)
                    T.buffer_store(packed, word, [panel, kk, self.lanes(v)])

            self.at_columns(column, vectors)

        with T.serial(self.k // self.each) as kk, T.serial(panels.count) as panel:
            copy(kk, panel, is_last=False)
        if not divides(self.each, self.k):
            with T.serial(self.words - self.k // self.each), T.serial(panels.count) as panel:
                copy(self.words - 1, panel, is_last=True)

    def _turn_b(self, panels: Span, packed: Any) -> None:
        """Transpose squares of words of a b that is given as (n, k)."""
        width, count = self.width, self.width * self.each
        with T.serial(panels.count) as panel, T.serial(self.blocking.nv) as v:
            column = (panels.start + panel) * self.nr + v * width
            columns = [minimum(column + i, self.n - 1) for i in range(width)]

            def turn(kk: Extent, is_last: bool) -> None:
                start = kk * self.each
                rows = []
                for each in columns:
                    at = self.at("b", each)
                    values = (
                        load_or_zeros(self.b, at, start, count, self.k)
                        if is_last
                        else load(self.b, at, start, count, None)
                    )
                    rows.append(T.reinterpret(f"int32x{width}", values))
                for i, word in enumerate(transpose(rows, "int32")):
                    T.buffer_store(packed, word, [panel, kk + i, lanes(v * width, width)])

            whole = self.k // count
            with T.serial(whole) as kv:
                turn(kv * width, is_last=False)
            if not divides(count, self.k):
                with T.If(whole * count < self.k), T.Then():
                    turn(whole * width, is_last=True)

    def _sum_columns(self, packed: Any, panel: Extent) -> None:
        sums = registers((self.nr,), self.dot.dtype)
        for v in range(self.blocking.nv):
            T.buffer_store(sums, zeros(self.dot.dtype, self.width), [self.lanes(v)])
        with T.serial(self.words) as kk:
            for v in range(self.blocking.nv):
                word = T.bind(packed[panel, kk, self.lanes(v)])
                T.buffer_store(sums, self.add_column(sums[self.lanes(v)], word), [self.lanes(v)])
        for v in range(self.blocking.nv):
            T.buffer_store(packed, sums[self.lanes(v)], [panel, self.words, self.lanes(v)])

    def add_column(self, total: Value, word: Value) -> Value:
        """Return `total` + the sum of the values in `word`, lane by lane."""
        ones = tirx.const(_ONES, "int32")
        for part in range(self.dot.parts):
            left = broadcast(self.dot.left(ones, part), self.width)
            total = self.dot.add(total, left, self.dot.right(word, part))
        return total

    def plain_word(self, kk: Extent, column: Extent, limit: Extent | None, is_last: bool) -> Value:
        """Return the words of b[each * kk and after, column and after], zeros beyond k."""
        word: Value | None = None
        for j in range(self.each):
            row = kk * self.each + j
            inside = not is_last or (isinstance(row, int) and isinstance(self.k, int) and row < self.k)
            if is_last and not inside and isinstance(row, int) and isinstance(self.k, int):
                continue
            at = self.at("b", row if inside else minimum(row, self.k - 1))
            values = load(self.b, at, column, self.width, limit)
            bits = _bits(values, self.width)
            if not inside:
                bits = bits & broadcast(tirx.Select(row < self.k, tirx.const(-1), tirx.const(0)), self.width)
            bits = bits << constant(32 // self.each * j, bits) if j else bits
            word = bits if word is None else word | bits
        assert word is not None
        return word

    def at_columns(self, column: Extent, emit: Any) -> None:
        """Call `emit(limit)` for the panel at `column`: None where it is full, n at the edge."""
        if divides(self.nr, self.n):
            emit(None)
        else:
            branch(column + self.nr <= self.n, lambda: emit(None), lambda: emit(self.n))

    def lanes(self, v: int) -> tirx.Expr:
        return lanes(v * self.width, self.width)


class Tile:
    """One mr x nr tile of c, summed over k in registers."""

    def __init__(
        self,
        nest: DotNest,
        first_row: Extent,
        column: Extent,
        panel: Extent,
        packed_a: Any,
        packed_b: Any | None,
        row_sums: Any | None,
    ) -> None:
        self.nest, self.row_sums = nest, row_sums
        self.first_row, self.column, self.panel = first_row, column, panel
        self.packed_a, self.packed_b = packed_a, packed_b
        # where b is read once, as it lies, its columns' sums are one more row of the tile
        self.sums_here = nest.with_sums and packed_b is None and not nest.is_packed
        self.rows = nest.blocking.mr + self.sums_here

    def emit(self) -> None:
        nest = self.nest
        if self.packed_b is None and not nest.is_packed:
            nest.at_columns(self.column, lambda limit: self._finish(self._sum(limit), limit))
        else:  # what was packed is full; the edge shows only when c is stored
            accumulators = self._sum(None)
            nest.at_columns(self.column, lambda limit: self._finish(accumulators, limit))

    def _sum(self, limit: Extent | None) -> Any:
        nest, ku = self.nest, self.nest.blocking.ku
        accumulators = registers((self.rows, nest.nr), nest.dot.dtype)
        for i in range(self.rows):
            for v in range(nest.blocking.nv):
                T.buffer_store(accumulators, zeros(nest.dot.dtype, nest.width), [i, nest.lanes(v)])
        full = nest.words if self._is_padded else nest.k // nest.each
        with T.serial(full // ku) as block:
            for u in range(ku):
                self._step(accumulators, block * ku + u, limit, is_last=False)
        if not divides(ku, full):
            with T.serial(full % ku) as rest:
                self._step(accumulators, full // ku * ku + rest, limit, is_last=False)
        if not self._is_padded and not divides(nest.each, nest.k):
            with T.serial(nest.words - full):
                self._step(accumulators, full, limit, is_last=True)
        return accumulators

    @property
    def _is_padded(self) -> bool:
        return self.packed_b is not None or self.nest.is_packed

    def _step(self, accumulators: Any, kk: Extent, limit: Extent | None, is_last: bool) -> None:
        """Add the products of one word of each row of a and one word of each column of b."""
        nest, dot = self.nest, self.nest.dot
        words = [T.bind(self._word(kk, v, limit, is_last)) for v in range(nest.blocking.nv)]
        for part in range(dot.parts):
            columns = [T.bind(dot.right(word, part)) if dot.parts > 1 else word for word in words]
            for i in range(nest.blocking.mr):
                row = broadcast(self.packed_a[part, i, kk], nest.width)
                for v, column in enumerate(columns):
                    total = dot.add(accumulators[i, nest.lanes(v)], row, column)
                    T.buffer_store(accumulators, total, [i, nest.lanes(v)])
        if self.sums_here:
            for v, word in enumerate(words):
                at = [nest.blocking.mr, nest.lanes(v)]
                T.buffer_store(accumulators, nest.add_column(accumulators[tuple(at)], word), at)

    def _word(self, kk: Extent, v: int, limit: Extent | None, is_last: bool) -> Value:
        nest = self.nest
        if self.packed_b is not None:
            return self.packed_b[self.panel, kk, nest.lanes(v)]
        if nest.is_packed:
            return self._prepacked(kk, v)
        return nest.plain_word(kk, self.column + v * nest.width, limit, is_last)

    def _prepacked(self, kk: Extent, v: int) -> Value:
        """Return words of a b that was packed beforehand, in panels of 16 columns."""
        nest = self.nest
        at = self.column + v * nest.width
        panel = minimum(at // COLUMNS, ceildiv(nest.n, COLUMNS) - 1)  # the last tile may be wider than b
        count = nest.width * nest.each
        values = nest.b[panel, kk, lanes(at % COLUMNS * nest.each, count)]
        return T.reinterpret(f"int32x{nest.width}", values)

    def _sums(self, accumulators: Any, v: int) -> Value | None:
        nest = self.nest
        if not nest.with_sums:
            return None
        if self.sums_here:
            return accumulators[nest.blocking.mr, nest.lanes(v)]
        if self.packed_b is not None:
            return self.packed_b[self.panel, nest.words, nest.lanes(v)]
        return self._prepacked(nest.words, v)

    def _finish(self, accumulators: Any, limit: Extent | None) -> None:
        nest = self.nest
        for i in range(nest.blocking.mr):
            row = self.first_row + i
            if divides(nest.blocking.mr, nest.m):
                self._finish_row(accumulators, i, row, limit)
            else:
                with T.If(row < nest.m), T.Then():
                    self._finish_row(accumulators, i, row, limit)

    def _finish_row(self, accumulators: Any, i: int, row: Extent, limit: Extent | None) -> None:
        nest = self.nest
        for v in range(nest.blocking.nv):
            column = self.column + v * nest.width
            rows = None if self.row_sums is None else self.row_sums[i]
            sums = Sums(accumulators[i, nest.lanes(v)], self._sums(accumulators, v), rows)
            nest.finish(row, column, sums, limit)


def _bits(values: Value, width: int) -> Value:
    """Return short values as int32, their bits in its lowest."""
    short = DataType(dtype_of(values))
    unsigned = T.reinterpret(str(DataType(f"uint{short.bits}").with_lanes(width)), values)
    return T.Cast(f"int32x{width}" if width > 1 else "int32", unsigned)
