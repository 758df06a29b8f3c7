"""Few rows of a by a 16-bit b whose rows begin anywhere, at the speed of memory.

Every eighth row of b begins as far behind a multiple of 16 bytes. So a warp takes every eighth
row: in the aligned vectors that it reads, a column of all its rows lies in the same place, and
nothing has to be shifted but its sums, once, at the end. Weights pass right into registers and are
multiplied as in `stream_floats`; what a block needs of a lies in shared memory, every eighth value
side by side. Stretches of columns overlap by a vector, lest sums of one are in another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import ceildiv
from tvmops.schedules.cuda.kernels.column_sums import ROWS, STORE_FOUR, add_four, load_piece, multiply, zeros
from tvmops.schedules.cuda.kernels.product import Product, finished
from tvmops.schedules.cuda.kernels.stream import ask_for, read_streamed
from tvmops.schedules.cuda.kernels.stream_floats import woven
from tvmops.schedules.cuda.pieces import PIECE, load_last
from tvmops.schedules.cuda.words import (
    PROGRAMMATIC_LAUNCH,
    Scalar,
    c_call,
    do,
    let_next_kernel_begin,
    pack,
    ptx,
    when,
)

CLASSES = 8  # of rows, by where they begin
_UNIT = 32  # rows of a class that a warp reads at once
_SPAN = 64  # columns, a piece each of eight lanes
_FOUR = 4  # neighbours of a result
_PAD = 4  # floats behind a row of sums, so that rows start in different banks
_TOGETHER = 8  # vectors of a that a thread reads at once

_PIECE_FROM = """
__forceinline__ __device__ const void* piece_from(const void* array, long long at) {
  return static_cast<const unsigned short*>(array) + at;
}
"""
# An aligned vector of a matrix, of which eight elements, one a class, go where their classes lie; those that
# are not in the block's part of a row do not, and those behind the row's end are 0.
_TAKE = """
__forceinline__ __device__ void take_vector(unsigned* out, const void* array, long long begin, long long size) {
  uint4 v = uint4{0, 0, 0, 0};
  if (begin + 8 <= size) v = *reinterpret_cast<const uint4*>(static_cast<const unsigned short*>(array) + begin);
  out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
}
"""
_PUT = """
__forceinline__ __device__ void put_vector(void* memory, const unsigned* v, int first, int end, int depth, int pitch) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int at = first + i;
    unsigned short* to = static_cast<unsigned short*>(memory) + at % 8 * pitch + at / 8;
    if (at >= 0 && at < depth) *to = at < end ? v[i / 2] >> 16 * (i % 2) : 0;
  }
}
"""
_SAVE = """
__forceinline__ __device__ void save_float_at(void* memory, int offset, float value) {
  *reinterpret_cast<float*>(static_cast<char*>(memory) + offset) = value;
}
"""
_FLOAT_AT = """
__forceinline__ __device__ float float_at(const void* memory, int offset) {
  return *reinterpret_cast<const float*>(static_cast<const char*>(memory) + offset);
}
"""


@dataclass(frozen=True)
class LooseTiles:
    rows: int  # of a, that a block multiplies
    spans: int  # of 64 columns, that a warp reads side by side
    turns: int  # warps that share a class of rows
    splits: int  # blocks of a cluster, which share k
    depth: int  # units that a warp has on their way
    chained: int = 0  # 1: launched while the kernel before it ends, for whose results it waits by itself
    ahead: int = 0  # units that a warp asks for while it waits

    @property
    def warps(self) -> int:
        return CLASSES * self.turns

    @property
    def window(self) -> int:
        """Columns that are read."""
        return _SPAN * self.spans

    @property
    def columns(self) -> int:
        """Columns of the result."""
        return self.window - PIECE

    @property
    def parts(self) -> int:
        """Products side by side along the rows."""
        return -(-self.rows // ROWS)

    @property
    def registers(self) -> int:
        """Registers of a thread for what is on its way, and sums."""
        return self.spans * (32 * self.depth + 16 * self.parts)

    def units(self, k: int) -> int:
        """Return the units of a block, of each class."""
        return -(-k // (CLASSES * _UNIT * self.splits))

    def pitch(self, k: int) -> int:
        """Return the bytes from a row of a to the next: an odd multiple of 64."""
        return (self.units(k) | 1) * 2 * _UNIT

    def shared_bytes(self, k: int) -> int:
        return max(CLASSES * self.rows * self.pitch(k), self.sums_bytes) + self.rows * self.columns * 4

    @property
    def sums_bytes(self) -> int:
        return self.warps * self.rows * (self.window + _PAD) * 4


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
        p, t = self.product, self.tiles
        block = T.cta_id([ceildiv(p.m, t.rows) * ceildiv(p.n, t.columns) * t.splits])
        self.rank = T.cta_id_in_cluster([t.splits]) if t.splits > 1 else 0
        self.warp, self.lane = T.warp_id([t.warps]), T.lane_id([32])
        self.thread = self.warp * 32 + self.lane
        # Through variables, lest what the launch computes becomes arguments of the kernel.
        across = T.Bind(T.truncdiv(Scalar(p.n)() + (t.columns - 1), t.columns))
        tile = T.Bind(T.truncdiv(block, t.splits))
        self.row = T.Bind(T.truncdiv(tile, across) * t.rows)
        self.column = T.Bind(T.truncmod(tile, across) * t.columns)
        self.m, self.n = T.Bind(Scalar(p.m)()), T.Bind(Scalar(p.n)())
        pool = SMEMPool()
        self.memory = pool.alloc((t.shared_bytes(self.k),), "uint8", align=128)
        pool.commit()
        self.base = Scalar(T.cuda.cvta_generic_to_shared(self.memory.ptr_to([0])), "uint32")()
        self._find()
        self.weights = T.alloc_local((t.depth * t.spans * 32,), "uint32")
        self.values = T.alloc_local((4 * t.parts,), "uint32")
        self.sums = zeros(t.spans * t.parts * 16)
        if t.chained:
            for number in range(t.ahead):
                self._ask(self.turn + number * t.turns)
            ptx("griddepcontrol.wait")
        for slot in range(t.depth):
            self._fetch(slot, self.turn + slot * t.turns)
        self._place_a()
        do(T.cuda.cta_sync())
        self._stream()
        if t.chained:
            let_next_kernel_begin()
        do(T.cuda.cta_sync())  # all have read their a
        self._share()
        do(T.cuda.cta_sync())
        self._add_classes()
        do(T.cuda.cluster_sync() if t.splits > 1 else T.cuda.cta_sync())
        self._finish()
        if t.splits > 1:
            do(T.cuda.cluster_sync())  # no block leaves while its memory is read

    def _find(self) -> None:
        """Find the rows and columns of this lane's first piece, and where it lies in b."""
        self.own, self.turn = T.Bind(self.warp % CLASSES), T.Bind(T.truncdiv(self.warp, CLASSES))
        share = CLASSES * _UNIT * self.tiles.units(self.k)
        self.first = T.Bind(self.rank * share) if self.tiles.splits > 1 else 0  # of k, of the block
        shift = T.Bind(self._shift(self.own))
        self.piece = T.Bind(self.column + T.truncdiv(self.lane, 4) * PIECE - shift)
        self.depth = T.Bind(T.truncmod(self.lane, 4) * PIECE)  # of a unit
        self.size = T.Bind(T.Cast("int64", self.n) * self.k)

    def _shift(self, own: Any) -> Any:
        """Return how far behind a multiple of 16 bytes rows of a class begin."""
        return T.truncmod(own * T.truncmod(self.n, PIECE), PIECE)

    # The way through k.

    def _fetch(self, slot: int, unit: Any) -> None:
        """Begin to read a unit, if there is one."""
        t = self.tiles
        with when(unit < t.units(self.k)):
            row = T.Bind(self.first + (unit * _UNIT + self.depth) * CLASSES + self.own)
            begin = T.Bind(T.Cast("int64", row) * self.n + self.piece)
            last = self.first + (unit * _UNIT + _UNIT) * CLASSES  # behind the unit
            with T.If(last + CLASSES <= self.k):  # the rows that follow are longer than a window, together
                with T.Then():
                    self._each_piece(slot, begin, None)
                with T.Else():
                    self._each_piece(slot, begin, row)

    def _ask(self, unit: Any) -> None:
        """Have a unit brought to the L2, if it is whole: what it holds is read later."""
        with when(self.first + (unit * _UNIT + _UNIT + 1) * CLASSES <= self.k):
            row = self.first + (unit * _UNIT + self.depth) * CLASSES + self.own
            begin = T.Bind(T.Cast("int64", row) * self.n + self.piece)
            for span in range(self.tiles.spans):
                inside = T.Cast("int32", self.piece + span * _SPAN < self.n)
                for i in range(8):
                    ask_for(self._pointer(begin, span, i), inside)

    def _pointer(self, begin: Any, span: int, number: int) -> Any:
        at = begin + (T.Cast("int64", self.n) * (number * CLASSES) + span * _SPAN)
        return c_call("handle", "piece_from", self.b.data, at, source=_PIECE_FROM)

    def _each_piece(self, slot: int, begin: Any, row: Any) -> None:
        """Begin to read a lane's pieces; `row` is given where the end of b may be among them."""
        last = []  # read when all others are on their way
        for span in range(self.tiles.spans):
            inside = self.piece + span * _SPAN < self.n
            for i in range(8):
                out = T.address_of(self.weights[self._weight(slot, span, i)])
                pointer, there = self._pointer(begin, span, i), inside
                if row is not None:
                    at = begin + (T.Cast("int64", self.n) * (i * CLASSES) + span * _SPAN)
                    there = T.Bind(tirx.And(inside, row + i * CLASSES < self.k))
                    whole = T.Bind(at + PIECE <= self.size)
                    last.append((tirx.And(there, tirx.Not(whole)), out, at))
                    there = tirx.And(there, whole)
                read_streamed(out, pointer, bool(self.tiles.chained), T.Cast("int32", there))
        for ends_within, out, at in last:
            with when(ends_within):
                load_last(out, self.b.data, at, self.size)

    def _weight(self, slot: int, span: int, number: int) -> int:
        """Return which register a piece begins at."""
        return ((slot * self.tiles.spans + span) * 8 + number) * 4

    def _place_a(self) -> None:
        """Write what the block needs of a to shared memory, by classes; beyond its ends it is 0."""
        t = self.tiles
        depth = CLASSES * _UNIT * t.units(self.k)
        each = depth // PIECE + 1  # vectors of a row
        count, threads = t.rows * each, 32 * t.warps
        together = min(_TOGETHER, -(-count // threads))
        taken = T.alloc_local((together * 4,), "uint32")
        size = T.Bind(T.Cast("int64", self.m) * self.k)
        with T.serial(-(-count // (threads * together))) as turn:
            places = []
            for i in range(together):
                at = T.Bind((turn * together + i) * threads + self.thread)
                row = T.Bind(T.truncdiv(at, each))
                start = T.Cast("int64", self.row + row) * self.k + self.first  # of the block's part
                behind = T.Bind(T.Cast("int32", T.truncmod(start, PIECE)))
                first = T.Bind(T.truncmod(at, each) * PIECE - behind)
                out = T.address_of(taken[i * 4])
                begin = T.Bind(start + first)
                do(c_call("void", "take_vector", out, self.a.data, begin, size, source=_TAKE))
                places.append((at, row, first, out, begin))
            for *_, out, begin in places:
                with when(tirx.And(begin < size, size < begin + PIECE)):
                    load_last(out, self.a.data, begin, size)
            for at, row, first, out, _ in places:
                to = self.memory.ptr_to([self._row_of_a(0, row)])
                end = tirx.Select(self.row + row < self.m, self.k - self.first, 0)
                pitch = t.rows * t.pitch(self.k) // 2
                with when(at < count):
                    do(c_call("void", "put_vector", to, out, first, end, depth, pitch, source=_PUT))

    def _row_of_a(self, own: Any, row: Any) -> Any:
        """Return the byte at which a class of a row begins."""
        return (own * self.tiles.rows + row) * self.tiles.pitch(self.k)

    def _stream(self) -> None:
        t = self.tiles
        units, stride = t.units(self.k), t.turns * t.depth
        with T.serial(-(-units // stride)) as turn:
            for slot in range(t.depth):
                unit = T.Bind(self.turn + turn * stride + slot * t.turns)
                with when(unit < units):
                    self._multiply(slot, unit)
                    self._fetch(slot, unit + stride)

    def _multiply(self, slot: int, unit: Any) -> None:
        t = self.tiles
        for part in range(t.parts):
            row = tirx.min(part * ROWS + T.truncdiv(self.lane, 4), t.rows - 1)
            offset = self._row_of_a(self.own, row) + (unit * _UNIT + self.depth) * 2
            load_piece(self.values, part * 4, self.base + T.Cast("uint32", offset))
        for span in range(t.spans):
            for half in range(2):  # of the eight values of k
                for tile in range(4):
                    pieces = [self._weight(slot, span, half * 4 + i) + tile for i in range(4)]
                    pairs = [
                        pair
                        for two in (pieces[:2], pieces[2:])
                        for pair in woven(*(self.weights[at] for at in two))
                    ]
                    for part in range(t.parts):
                        values = [self.values[part * 4 + half * 2 + i] for i in range(2)]
                        at = ((span * t.parts + part) * 4 + tile) * 4
                        multiply(self.product.dtype, self.sums, at, pairs, values, False)

    # The sums meet.

    def _share(self) -> None:
        t = self.tiles
        for span in range(t.spans):
            for part in range(t.parts):
                for i in range(16):
                    tile, below, odd = i // 4, i // 2 % 2, i % 2
                    row = part * ROWS + T.truncmod(self.lane, 4) * 2 + odd
                    column = span * _SPAN + T.truncdiv(self.lane, 4) * PIECE + tile * 2 + below
                    with when(row < t.rows):
                        offset = self._sums_of(self.warp, row) + column * 4
                        value = self.sums[((span * t.parts + part) * 4 + tile) * 4 + below * 2 + odd]
                        self._save(offset, value)

    def _sums_of(self, warp: Any, row: Any) -> Any:
        return (warp * self.tiles.rows + row) * ((self.tiles.window + _PAD) * 4)

    def _save(self, offset: Any, value: Any) -> None:
        do(c_call("void", "save_float_at", self.memory.ptr_to([0]), offset, value, source=_SAVE))

    def _add_classes(self) -> None:
        """Add up the sums of all warps, each as far shifted as its rows are."""
        t = self.tiles
        shifts = [T.Bind(self._shift(own)) for own in range(CLASSES)]
        count, threads = t.rows * t.columns, 32 * t.warps
        with T.serial(-(-count // threads)) as turn:
            at = T.Bind(turn * threads + self.thread)
            with when(at < count):
                row, column = T.truncdiv(at, t.columns), T.truncmod(at, t.columns)
                total = Scalar(0.0, "float32")
                for warp in range(t.warps):
                    offset = self._sums_of(warp, row) + (column + shifts[warp % CLASSES]) * 4
                    memory = self.memory.ptr_to([0])
                    total.set(total() + c_call("float32", "float_at", memory, offset, source=_FLOAT_AT))
                self._save(self._totals_at + at * 4, total())

    @property
    def _totals_at(self) -> int:
        t = self.tiles
        return t.shared_bytes(self.k) - t.rows * t.columns * 4

    def _finish(self) -> None:
        """Add up what the cluster's blocks have, and write it: four neighbours at a time, blocks in turn."""
        t = self.tiles
        fours = t.columns // _FOUR
        threads = t.splits * 32 * t.warps
        count = t.rows * fours
        with T.serial(-(-count // threads)) as turn:
            at = T.Bind(turn * threads + self.rank * (32 * t.warps) + self.thread)
            row = T.Bind(self.row + T.truncdiv(at, fours))
            column = T.Bind(self.column + T.truncmod(at, fours) * _FOUR)
            with when((at < count) & (row < self.m) & (column < self.n)):
                address = T.Bind(self.base + T.Cast("uint32", self._totals_at + at * 16))
                places = [(address, rank) for rank in range(t.splits)] if t.splits > 1 else [(address,)]
                self._store(row, column, add_four(places))

    def _store(self, row: Any, column: Any, sums: list[Any]) -> None:
        p, n = self.product, self.n
        columns = [tirx.min(column + i, n - 1) for i in range(_FOUR)]
        done = [
            Scalar(finished(p, self.bias, self.residual, value, [row], at), "float32")()
            for value, at in zip(sums, columns)
        ]
        with T.If(T.truncmod(n, _FOUR) == 0):
            with T.Then():
                halves = [pack(p.dtype, *done[i : i + 2]) for i in (0, 2)]
                do(c_call("void", "store_four", self.c.ptr_to([row, column]), *halves, source=STORE_FOUR))
            with T.Else():
                for i in range(_FOUR):
                    with when(column + i < n):
                        T.buffer_store(self.c, T.Cast(p.dtype, done[i]), [row, column + i])
