"""The frame of kernels for few rows of x: weights pass from memory through registers, once.

A warp takes a stretch of columns and every so-manieth unit of k. It reads the weights of a unit
right into registers, as its lanes will multiply them, `depth` units ahead: nothing is shared and
nobody waits for another until the end. The products are m16n8k16 with weights as their rows
and x as their columns; the order of k within them is that in which weights lie. The warp copies
its own small part of x to shared memory by cp.async, as far ahead. Warps of a block, and blocks
of a cluster, that share columns add up their sums in a fixed order: through shared memory, and
through that of the cluster.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, ceildiv
from tvmops.schedules.cuda.pieces import PIECE, copy_piece
from tvmops.schedules.cuda.words import PTX_TYPES, Scalar, c_call, do, pack, ptx, when

ROWS = 8  # of x, in a product
_LANES = 512  # bytes: a piece of each lane

_LOAD_STREAMED = """
__forceinline__ __device__ void load_streamed(unsigned* out, const void* memory) {
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.b32 {%0, %1, %2, %3}, [%4];" :
               "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "l"(memory));
}
"""
# The same, or zeros.
_LOAD_STREAMED_IF = """
__forceinline__ __device__ void load_streamed_if(unsigned* out, const void* memory, int there) {
  asm volatile("{ .reg .pred p; setp.ne.s32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0; "
               "@p ld.global.nc.L1::no_allocate.L2::256B.v4.b32 {%0, %1, %2, %3}, [%4]; }" :
               "=&r"(out[0]), "=&r"(out[1]), "=&r"(out[2]), "=&r"(out[3]) : "l"(memory), "r"(there));
}
"""
_STREAM_AT = """
__forceinline__ __device__ const void* stream_at(const void* array, int row, int pitch, int offset) {
  return static_cast<const char*>(array) + static_cast<long long>(row) * pitch + offset;
}
"""
_LOAD_PIECE = """
__forceinline__ __device__ void load_piece(unsigned* out, unsigned from) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" :
               "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(from) : "memory");
}
"""
_SAVE_PIECE = """
__forceinline__ __device__ void save_piece(unsigned to, float a, float b, float c, float d) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" :: "r"(to), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}
"""
_ADD_PIECE = """
__forceinline__ __device__ void add_piece(float* sums, unsigned from) {
  float a, b, c, d;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" :
               "=f"(a), "=f"(b), "=f"(c), "=f"(d) : "r"(from) : "memory");
  sums[0] += a;
  sums[1] += b;
  sums[2] += c;
  sums[3] += d;
}
"""
_ADD_PIECE_OF_BLOCK = """
__forceinline__ __device__ void add_piece_of_block(float* sums, unsigned from, int rank) {
  unsigned remote;
  float a, b, c, d;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(from), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];" :
               "=f"(a), "=f"(b), "=f"(c), "=f"(d) : "r"(remote) : "memory");
  sums[0] += a;
  sums[1] += b;
  sums[2] += c;
  sums[3] += d;
}
"""
_STORE_FOUR = """
__forceinline__ __device__ void store_four(void* memory, unsigned low, unsigned high) {
  *static_cast<uint2*>(memory) = uint2{low, high};
}
"""


@dataclass(frozen=True)
class StreamTiles:
    rows: int  # of x, that a block multiplies
    spans: int  # of columns, that a warp takes side by side
    warps_n: int
    warps_k: int
    splits: int  # blocks of a cluster, which share k
    depth: int  # units of k that a warp has on their way

    @property
    def warps(self) -> int:
        return self.warps_n * self.warps_k

    @property
    def parts(self) -> int:
        """Products side by side along the rows of x."""
        return -(-self.rows // ROWS)


class StreamProduct(Protocol):
    """What is multiplied: sizes, and the type of x and of the result."""

    @property
    def m(self) -> Extent: ...
    @property
    def n(self) -> Extent: ...
    @property
    def k(self) -> Extent: ...
    @property
    def dtype(self) -> str: ...


@dataclass(frozen=True)
class StreamForm:
    """What a warp takes of weights."""

    unit: int  # of k
    width: int  # neighbouring columns of a lane: 4 or 8
    slots: int  # pieces of a lane, of one span and unit

    @property
    def columns(self) -> int:
        """Columns of a span."""
        return 8 * self.width

    def registers(self, tiles: StreamTiles) -> int:
        """Registers of a thread for what is on its way, and sums."""
        return tiles.spans * (4 * self.slots * tiles.depth + 2 * self.width * tiles.parts)

    def shared_bytes(self, tiles: StreamTiles) -> int:
        blocks = (tiles.splits > 1) * tiles.warps_n * len(self.pieces(tiles)) * _LANES
        return self.block_sums_at(tiles) + blocks

    def block_sums_at(self, tiles: StreamTiles) -> int:
        """Return where the sums of a block begin, behind the ring of x or, later, the sums of its warps."""
        ring = tiles.warps * tiles.depth * tiles.rows * self.unit * 2
        return max(ring, (tiles.warps_k > 1) * tiles.warps * len(self.pieces(tiles)) * _LANES)

    def pieces(self, tiles: StreamTiles) -> list[tuple[int, int, int, int]]:
        """Return what a lane has of the result, four neighbours each: span, part, odd row, which four."""
        counts = (tiles.spans, tiles.parts, min(2, tiles.rows), self.width // 4)
        spans, parts, odds, quads = (range(count) for count in counts)
        return [(s, p, o, q) for s in spans for p in parts for o in odds for q in quads]


class StreamKernel(ABC):
    """`main(x, weights, ..., c)`; what weights are, a subclass says."""

    form: StreamForm
    operands: ClassVar[tuple[str, str]]  # names of x and of the weights

    def __init__(self, product: StreamProduct, tiles: StreamTiles) -> None:
        self.product, self.tiles = product, tiles

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
        """Add the products of a unit, which is there, to `self.totals`."""

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
        return IRModule({"main": builder.get().with_attr("global_symbol", "main")})

    def _body(self) -> None:
        p, t, form = self.product, self.tiles, self.form
        bn = form.columns * t.spans * t.warps_n
        block = T.cta_id([ceildiv(p.m, t.rows) * ceildiv(p.n, bn) * t.splits])
        self.rank = T.cta_id_in_cluster([t.splits]) if t.splits > 1 else 0
        self.warp, self.lane = T.warp_id([t.warps]), T.lane_id([32])
        # Through variables, lest what the launch computes becomes arguments of the kernel.
        across = T.Bind(T.truncdiv(Scalar(p.n)() + (bn - 1), bn))
        self.units = T.Bind(T.truncdiv(Scalar(p.k)() + (form.unit - 1), form.unit))
        tile, row = Scalar(T.truncdiv(block, t.splits)), Scalar(0)
        with T.While(tile() >= across):  # seldom once: a division takes longer
            tile.set(tile() - across)
            row.set(row() + t.rows)
        self.row = T.Bind(row())
        self.part, self.place = T.truncdiv(self.warp, t.warps_n), T.truncmod(self.warp, t.warps_n)
        own = self.place * (t.spans * form.columns)
        self.column = T.Bind(tile() * bn + own + T.truncdiv(self.lane, 4) * form.width)
        pool = SMEMPool()
        memory = pool.alloc((form.shared_bytes(t),), "uint8", align=128)
        pool.commit()
        self.base = Scalar(T.cuda.cvta_generic_to_shared(memory.ptr_to([0])), "uint32")()
        self.totals = self._zeros(2 * form.width * t.parts * t.spans)
        self.weights = T.alloc_local((t.depth * t.spans * form.slots * 4,), "uint32")
        self.xs = T.alloc_local((4 * t.parts,), "uint32")
        self.k = T.Bind(Scalar(p.k)())
        own_row = self.row + T.truncdiv(self.lane, form.unit // PIECE)
        self.x_row = T.Bind(stream_at(self.x.data, own_row, self.k * 2, 0))
        self._begin()
        self._stream()
        self._add_up()

    def _zeros(self, count: int) -> Any:
        registers = T.alloc_local((count,), "float32")
        for index in range(count):
            T.buffer_store(registers, T.float32(0), [index])
        return registers

    # The way through k.

    def _stream(self) -> None:
        t = self.tiles
        stride = t.splits * t.warps_k
        first = T.Bind(self.rank * t.warps_k + self.part)
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

    def _fetch(self, slot: int, unit: Any) -> None:
        with when(unit < self.units):
            self._load(slot, unit)
            self._copy_x(slot, unit * self.form.unit)
        ptx("cp.async.commit_group")

    def _read(self, slot: int, span: int, number: int, pointer: Any, there: Any = None) -> None:
        """Begin to read a piece of weights; where it is not `there`, to be 0."""
        out = T.address_of(self.weights[self._weight(slot, span, number)])
        if there is None:
            do(c_call("void", "load_streamed", out, pointer, source=_LOAD_STREAMED))
        else:
            do(c_call("void", "load_streamed_if", out, pointer, there, source=_LOAD_STREAMED_IF))

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
            with when(tirx.And(self.row + row < self.product.m, at < t.rows * pieces)):
                first = stream_at(self.x_row, begin // pieces, self.k * 2, 0)
                column = k + piece * PIECE
                do(copy_piece(PIECE, self._x_at(slot, row, piece), first, 0, 0, column, self.k - column))

    def _load_x(self, slot: int, step: int) -> None:
        """Load eight values of k of this lane's row of x in each product."""
        for part in range(self.tiles.parts):
            own = part * ROWS + T.truncdiv(self.lane, 4)
            row = tirx.min(own, self.tiles.rows - 1) if self.tiles.rows % ROWS else own
            address = self._x_at(slot, row, step * 4 + T.truncmod(self.lane, 4))
            registers = T.address_of(self.xs[part * 4])
            do(c_call("void", "load_piece", registers, address, source=_LOAD_PIECE))

    def _product(self, sums: Any, at: int, weights: list[Any], half: int, begins: bool = False) -> None:
        """Multiply 16 columns, two of this lane, by each part of x; `at` is where sums of part 0 lie."""
        kind = PTX_TYPES[self.product.dtype]
        for part in range(self.tiles.parts):
            first = at + part * 2 * self.form.width
            own = [sums[first + i] for i in range(4)]
            before = [T.float32(0)] * 4 if begins else own
            x = [self.xs[part * 4 + half * 2 + i] for i in range(2)]
            ptx(f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32", *own, *weights, *x, *before)

    def _sums_at(self, span: int, tile: int, part: int = 0) -> int:
        return ((span * self.tiles.parts + part) * (self.form.width // 2) + tile) * 4

    # The end. A lane holds, for two rows of x of each part, neighbouring columns.

    def _add_up(self) -> None:
        t, pieces = self.tiles, self.form.pieces(self.tiles)
        if t.warps_k > 1:
            do(T.cuda.cta_sync())
        for number, piece in enumerate(pieces):
            values = [self.totals[at] for at in self._four(piece)]
            if t.warps_k > 1:
                self._save(self._meeting_place(self.warp, number), values)
            else:
                self._pass_on(number, piece, values)
        if t.warps_k > 1:
            do(T.cuda.cta_sync())
            for number, piece in enumerate(pieces):
                with when(self.part == number % t.warps_k):
                    warps = [part * t.warps_n + self.place for part in range(t.warps_k)]
                    self._pass_on(
                        number, piece, self._sum([(self._meeting_place(w, number),) for w in warps])
                    )
        if t.splits > 1:
            self._add_blocks()

    def _pass_on(self, number: int, piece: tuple[int, int, int, int], values: list[Any]) -> None:
        """Finish the sums of a block; or leave them where the cluster's blocks find them."""
        if self.tiles.splits == 1:
            self._finish(piece, values)
        else:
            self._save(self._block_place(number), values)

    def _add_blocks(self) -> None:
        t = self.tiles
        do(T.cuda.cluster_sync())
        for number, piece in enumerate(self.form.pieces(t)):
            turn = number % (t.warps_k * t.splits)
            with when(tirx.And(self.part == turn % t.warps_k, self.rank == turn // t.warps_k)):
                place = self._block_place(number)
                self._finish(piece, self._sum([(place, rank) for rank in range(t.splits)]))
        do(T.cuda.cluster_sync())  # no block leaves while its memory is read

    def _sum(self, places: list[tuple[Any, ...]]) -> list[Any]:
        """Return four sums of what lies at `places`: addresses, or addresses in a block of the cluster."""
        four = self._zeros(4)
        for place in places:
            name, source = (
                ("add_piece", _ADD_PIECE) if len(place) == 1 else ("add_piece_of_block", _ADD_PIECE_OF_BLOCK)
            )
            do(c_call("void", name, T.address_of(four[0]), *place, source=source))
        return [four[i] for i in range(4)]

    def _save(self, to: Any, values: list[Any]) -> None:
        do(c_call("void", "save_piece", to, *values, source=_SAVE_PIECE))

    def _four(self, piece: tuple[int, int, int, int]) -> list[int]:
        span, part, odd, quad = piece
        tiles = (quad * 2, quad * 2 + 1)
        return [self._sums_at(span, tile, part) + below * 2 + odd for tile in tiles for below in range(2)]

    def _meeting_place(self, warp: Any, number: int) -> Any:
        count = len(self.form.pieces(self.tiles))
        return self.base + T.Cast("uint32", (warp * count + number) * _LANES + self.lane * 16)

    def _block_place(self, number: int) -> Any:
        count = len(self.form.pieces(self.tiles))
        begin = self.form.block_sums_at(self.tiles)
        return self.base + T.Cast("uint32", begin + (self.place * count + number) * _LANES + self.lane * 16)

    def _finish(self, piece: tuple[int, int, int, int], values: list[Any]) -> None:
        """Store four neighbours of a row."""
        p, (span, part, odd, quad) = self.product, piece
        own = part * ROWS + T.truncmod(self.lane, 4) * 2 + odd
        row, column = self.row + own, self.column + span * self.form.columns + quad * 4
        with when(tirx.And(own < self.tiles.rows, tirx.And(row < p.m, column < p.n))):
            columns = [column + i if i == 0 else tirx.min(column + i, p.n - 1) for i in range(4)]
            done = [Scalar(self._finished(v, row, c), "float32")() for v, c in zip(values, columns)]
            with T.If(T.truncmod(p.n, 4) == 0):
                with T.Then():
                    halves = [pack(p.dtype, *done[i : i + 2]) for i in (0, 2)]
                    to = self.c.ptr_to([row, column])
                    do(c_call("void", "store_four", to, *halves, source=_STORE_FOUR))
                with T.Else():
                    for i in range(4):
                        with when(column + i < p.n):
                            T.buffer_store(self.c, T.Cast(p.dtype, done[i]), [row, column + i])


def stream_at(array: Any, row: Any, pitch: Any, offset: Any) -> Any:
    """Return the address of byte `offset` of a row of `pitch` bytes."""
    return c_call("handle", "stream_at", array, row, pitch, offset, source=_STREAM_AT)
