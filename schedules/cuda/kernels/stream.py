"""The frame of kernels for few rows of x: weights pass from memory through registers, once.

A warp takes a stretch of columns and every so-manieth unit of k. It reads the weights of a unit
right into registers, as its lanes will multiply them, `depth` units ahead: nothing is shared and
nobody waits for another until the end. The products are m16n8k16 with weights as their rows
and x as their columns; the order of k within them is that in which weights lie. The warp copies
its own small part of x to shared memory by cp.async, as far ahead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import ceildiv
from tvmops.schedules.cuda.kernels.column_sums import (
    ROWS,
    ColumnSums,
    Piece,
    Place,
    load_piece,
    multiply,
)
from tvmops.schedules.cuda.kernels.stream_tiles import StreamForm, StreamProduct, StreamTiles
from tvmops.schedules.cuda.pieces import PIECE, copy_piece
from tvmops.schedules.cuda.words import (
    PROGRAMMATIC_LAUNCH,
    Scalar,
    c_call,
    do,
    ptx,
    wait_for_kernels_before,
    when,
)

_LOAD_STREAMED = """
__forceinline__ __device__ void load_streamed(unsigned* out, const void* memory) {{
  asm volatile("ld.global{how}.L1::no_allocate.L2::256B.v4.b32 {{%0, %1, %2, %3}}, [%4];" :
               "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "l"(memory));
}}
"""
# The same, or zeros.
_LOAD_STREAMED_IF = """
__forceinline__ __device__ void load_streamed_if(unsigned* out, const void* memory, int there) {{
  asm volatile("{{ .reg .pred p; setp.ne.s32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0; "
               "@p ld.global{how}.L1::no_allocate.L2::256B.v4.b32 {{%0, %1, %2, %3}}, [%4]; }}" :
               "=&r"(out[0]), "=&r"(out[1]), "=&r"(out[2]), "=&r"(out[3]) : "l"(memory), "r"(there));
}}
"""
# To the L2, where all that a kernel before this one may still write comes by.
_ASK_FOR = """
__forceinline__ __device__ void ask_for(const void* memory, int there) {
  if (there) asm volatile("prefetch.global.L2 [%0];" :: "l"(memory));
}
"""
_STREAM_AT = """
__forceinline__ __device__ const void* stream_at(const void* array, int row, int pitch, int offset) {
  return static_cast<const char*>(array) + static_cast<long long>(row) * pitch + offset;
}
"""


class StreamKernel(ABC):
    """`main(x, weights, ..., c)`; what weights are, a subclass says."""

    form: StreamForm
    operands: ClassVar[tuple[str, str]]  # names of x and of the weights

    def __init__(self, product: StreamProduct, tiles: StreamTiles) -> None:
        self.product, self.tiles = product, tiles
        self.asks = False  # pieces are asked for, not read

    @abstractmethod
    def _declare(self) -> None:
        """Declare the arguments between x and c."""

    @abstractmethod
    def _begin(self) -> None:
        """Find what stays the same, and take further registers."""

    @abstractmethod
    def _load(self, slot: int, unit: Any) -> None:
        """Begin to read the weights of a unit, which is there, to `self.weights`."""

    @abstractmethod
    def _multiply(self, slot: int, unit: Any) -> None:
        """Add the products of a unit, which is there, to `self.sums.totals`."""

    @abstractmethod
    def _finished(self, value: Any, row: Any, column: Any) -> Any:
        """Return what becomes of a sum."""

    def module(self) -> IRModule:
        p = self.product
        with IRBuilder() as builder, T.prim_func():
            T.func_name("main")
            name = self.operands[0]
            self.x = T.arg(name, T.buffer((p.m, p.k), p.dtype, align=16, buffer_name=name))
            self._declare()
            self.c = T.arg("c", T.buffer((p.m, p.n), p.dtype, align=16, buffer_name="c"))
            T.device_entry()
            with T.attr({"tirx.launch_bounds_min_blocks_per_sm": 1}):
                self._body()
        function = builder.get().with_attr("global_symbol", "main")
        chained = bool(self.tiles.chained)
        return IRModule({"main": function.with_attr(*PROGRAMMATIC_LAUNCH) if chained else function})

    def _body(self) -> None:
        p, t, form = self.product, self.tiles, self.form
        bn = form.columns * t.spans * t.warps_n
        block = T.cta_id([ceildiv(p.m, t.rows) * ceildiv(p.n, bn) * t.splits])
        rank = T.cta_id_in_cluster([t.splits]) if t.splits > 1 else 0
        self.warp, self.lane = T.warp_id([t.warps]), T.lane_id([32])
        # Through variables, lest what the launch computes becomes arguments of the kernel.
        across = T.Bind(T.truncdiv(Scalar(p.n)() + (bn - 1), bn))
        self.units = T.Bind(T.truncdiv(Scalar(p.k)() + (form.unit - 1), form.unit))
        tile, row = Scalar(T.truncdiv(block, t.splits)), Scalar(0)
        with T.While(tile() >= across):  # seldom once: a division takes longer
            tile.set(tile() - across)
            row.set(row() + t.rows)
        part, place = T.truncdiv(self.warp, t.warps_n), T.truncmod(self.warp, t.warps_n)
        self.span = T.Bind(tile() * bn + place * (t.spans * form.columns))  # column of the warp's first
        column = T.Bind(self.span + T.truncdiv(self.lane, 4) * form.width)
        pool = SMEMPool()
        memory = pool.alloc((form.shared_bytes(t),), "uint8", align=128)
        pool.commit()
        self.base = Scalar(T.cuda.cvta_generic_to_shared(memory.ptr_to([0])), "uint32")()
        self.place = Place(self.lane, self.warp, part, place, rank, T.Bind(row()), column)
        self.shape = form.sums(t)
        of_blocks = self.base + T.uint32(form.block_sums_at(t))
        self.sums = ColumnSums(self.shape, self.place, self.base, of_blocks)
        self.weights = T.alloc_local((t.depth * t.spans * form.slots * 4,), "uint32")
        self.xs = T.alloc_local((4 * self.shape.parts,), "uint32")
        self.k = T.Bind(Scalar(p.k)())
        own_row = self.place.row + T.truncdiv(self.lane, form.unit // PIECE)
        self.x_row = T.Bind(stream_at(self.x.data, own_row, self.k * 2, 0))
        self._begin()
        self.first, self.stride = T.Bind(rank * t.warps_k + part), t.splits * t.warps_k
        if t.chained:
            self._ask_ahead()
            wait_for_kernels_before()
        self._stream()
        self.sums.add_up(self._finish)

    # The way through k.

    def _stream(self) -> None:
        t = self.tiles
        first, stride = self.first, self.stride
        for slot in range(t.depth):
            self._fetch(slot, first + slot * stride)
        round_trip = stride * t.depth
        with T.serial(T.truncdiv(self.units + (round_trip - 1), round_trip)) as turn:
            for slot in range(t.depth):
                unit = T.Bind(first + turn * round_trip + slot * stride)
                ptx("cp.async.wait_group", t.depth - 1)
                do(T.cuda.warp_sync())
                with when(unit < self.units):
                    self._multiply(slot, unit)
                do(T.cuda.warp_sync())  # all have read their x
                self._fetch(slot, unit + round_trip)
        ptx("cp.async.wait_group", 0)

    def _ask_ahead(self) -> None:
        """Have the first units brought to the L2: what they hold is read later."""
        self.asks = True
        for number in range(self.tiles.ahead):
            unit = self.first + number * self.stride
            with when(unit < self.units):
                self._load(0, unit)
        self.asks = False

    def _fetch(self, slot: int, unit: Any) -> None:
        with when(unit < self.units):
            self._load(slot, unit)
            self._copy_x(slot, unit * self.form.unit)
        ptx("cp.async.commit_group")

    def _read(self, slot: int, span: int, number: int, pointer: Any, there: Any = None) -> None:
        """Begin to read a piece of weights, or ask for it; where it is not `there`, to be 0."""
        out = T.address_of(self.weights[self._weight(slot, span, number)])
        if self.asks:
            ask_for(pointer, 1 if there is None else there)
            return
        read_streamed(out, pointer, bool(self.tiles.chained), there)

    def _weight(self, slot: int, span: int, number: int) -> int:
        """Return which register a piece begins at."""
        return ((slot * self.tiles.spans + span) * self.form.slots + number) * 4

    def _x_at(self, slot: int, row: Any, piece: Any) -> Any:
        """Return where a piece of x lies; those of two neighbouring rows lie in different banks."""
        t, pieces = self.tiles, self.form.unit // PIECE
        turned = piece ^ (row % 2 * 4) if pieces > 4 else piece
        first = (self.warp * t.depth + slot) * t.rows
        return self.base + T.Cast("uint32", ((first + row) * pieces + turned) * 16)

    def _copy_x(self, slot: int, k: Any) -> None:
        t, pieces = self.tiles, self.form.unit // PIECE
        for begin in range(0, t.rows * pieces, 32):
            at = begin + self.lane
            row, piece = T.truncdiv(at, pieces), T.truncmod(at, pieces)
            with when(tirx.And(self.place.row + row < self.product.m, at < t.rows * pieces)):
                first = stream_at(self.x_row, begin // pieces, self.k * 2, 0)
                column = k + piece * PIECE
                to, shared = self._x_at(slot, row, piece), t.warps_n > 1
                do(copy_piece(PIECE, to, first, 0, 0, column, self.k - column, near=shared))

    def _load_x(self, slot: int, step: int) -> None:
        """Load eight values of k of this lane's row of x in each product."""
        for part in range(self.shape.parts):
            own = part * ROWS + T.truncdiv(self.lane, 4)
            row = tirx.min(own, self.tiles.rows - 1) if self.tiles.rows % ROWS else own
            load_piece(self.xs, part * 4, self._x_at(slot, row, step * 4 + T.truncmod(self.lane, 4)))

    def _product(
        self, sums: Any, span: int, tile: int, columns: list[Any], half: int, begins: bool = False
    ) -> None:
        """Multiply two of this lane's columns by each part of x; `half` of its eight values of k."""
        for part in range(self.shape.parts):
            rows = [self.xs[part * 4 + half * 2 + i] for i in range(2)]
            multiply(self.product.dtype, sums, self.shape.at(span, tile, part), columns, rows, begins)

    def _finish(self, piece: Piece, values: list[Any]) -> None:
        self.sums.store(self.c, self.product.m, self.product.n, piece, values, self._finished)


def ask_for(pointer: Any, there: Any) -> None:
    """Have what a pointer points to brought to the L2, if it is there."""
    do(c_call("void", "ask_for", pointer, there, source=_ASK_FOR))


def read_streamed(out: Any, pointer: Any, chained: bool, there: Any = None) -> None:
    """Begin to read a piece of weights to four registers; where it is not `there`, they are to be 0."""
    # .nc: nothing writes the weights while this kernel runs; one before it may, where they are chained
    how = "" if chained else ".nc"
    if there is None:
        do(c_call("void", "load_streamed", out, pointer, source=_LOAD_STREAMED.format(how=how)))
    else:
        source = _LOAD_STREAMED_IF.format(how=how)
        do(c_call("void", "load_streamed_if", out, pointer, there, source=source))


def stream_at(array: Any, row: Any, pitch: Any, offset: Any) -> Any:
    """Return the address of byte `offset` of a row of `pitch` bytes."""
    return c_call("handle", "stream_at", array, row, pitch, offset, source=_STREAM_AT)
