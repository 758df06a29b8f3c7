"""The loops of a matrix product of short values, in words. `tvmops.schedules.cpu.gemm_dot` says more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.dot import Dot, functions_of
from tvmops.schedules.cpu.dot_pack_a import PackedA
from tvmops.schedules.cpu.dot_pack_b import GivenB, PackedB
from tvmops.schedules.cpu.dot_stretch import Carried, Place, Stretch
from tvmops.schedules.cpu.dot_sums import Sums
from tvmops.schedules.cpu.dot_tile import Tile
from tvmops.schedules.cpu.emit import (
    ALL,
    Extent,
    Span,
    branch,
    ceildiv,
    chunk,
    chunks,
    divides,
    minimum,
    share,
)
from tvmops.signatures import ANY, SIGNATURES
from tvmops.signatures.dtypes import stored
from tvmops.signatures.words import COLUMNS
from tvmops.space import Config
from tvmops.workloads import Workload


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
    dot: str = ""  # its name, where the target has several
    kc: int = ALL
    ahead: bool = False

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
        self.b_words = ceildiv(self.k, each)  # of a column
        self.steps = ceildiv(self.b_words, dot.side) if dot.side > 1 else self.b_words
        self.words = self.steps * dot.side if dot.side > 1 else self.steps  # that are multiplied
        self.given_b = GivenB(self)
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
            return ceildiv(self.n, COLUMNS), self.b_words + self.with_sums, COLUMNS * self.each
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
            packed_b = PackedB(self, block) if blocking.pack_b else None
            carried = Carried(self) if blocking.kc else None
            with T.serial(chunks(Span(0, self.steps), blocking.kc)) as index:
                stretch = Stretch.of(self, index)
                with T.serial(tiles.count) as tile:
                    first_row = (tiles.start + tile) * blocking.mr
                    packed_a = PackedA(self, first_row, stretch)
                    row_sums = packed_a.sums() if self.with_row_sums else None
                    with T.serial(block.count) as panel:
                        column = (block.start + panel) * self.nr
                        place = Place(first_row, column, tile, panel)
                        Tile(self, place, stretch, packed_a, packed_b, row_sums, carried).emit()

    def row(self, row: Extent) -> Extent:
        """Return `row`, or the last row of a where it lies beyond."""
        return row if divides(self.blocking.mr, self.m) else minimum(row, self.m - 1)

    def at_columns(self, column: Extent, emit: Any) -> None:
        """Call `emit(limit)` for the panel at `column`: None where it is full, n at the edge."""
        if divides(self.nr, self.n):
            emit(None)
        else:
            branch(column + self.nr <= self.n, lambda: emit(None), lambda: emit(self.n))
