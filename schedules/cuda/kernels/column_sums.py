"""Sums of products m16n8k16 whose rows are columns of the result, and whose columns are its rows.

A lane holds of each product two columns of the result and two rows; its columns over a few products
are neighbours. Warps of a block, and blocks of a cluster, that share columns add up their sums in
a fixed order: through shared memory, and through that of the cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.kernels.neighbours import store_four
from tvmops.schedules.cuda.words import PTX_TYPES, Scalar, c_call, do, ptx, when

ROWS = 8  # of the result, in a product
LANES = 512  # bytes: a piece of each lane

Piece: TypeAlias = "tuple[int, int, int, int]"  # of the result: span, part, odd row, which four columns

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


@dataclass(frozen=True)
class SumsShape:
    """The sums of a warp, and who shares its columns."""

    rows: int  # of the result
    spans: int  # of columns, side by side
    width: int  # neighbouring columns of a lane in a span: 4 or 8
    warps_n: int
    warps_k: int
    splits: int = 1  # blocks of a cluster

    @property
    def parts(self) -> int:
        """Products side by side along the rows."""
        return -(-self.rows // ROWS)

    @property
    def columns(self) -> int:
        """Columns of a span."""
        return 8 * self.width

    @property
    def registers(self) -> int:
        return 2 * self.width * self.parts * self.spans

    @property
    def pieces(self) -> list[Piece]:
        """Return what a lane has of the result, four neighbours each."""
        counts = (self.spans, self.parts, min(2, self.rows), self.width // 4)
        spans, parts, odds, quads = (range(count) for count in counts)
        return [(s, p, o, q) for s in spans for p in parts for o in odds for q in quads]

    @property
    def warp_bytes(self) -> int:
        """Bytes in which sums of warps meet."""
        return (self.warps_k > 1) * self.warps_n * self.warps_k * len(self.pieces) * LANES

    @property
    def block_bytes(self) -> int:
        """Bytes in which sums of a block wait for the cluster's others."""
        return (self.splits > 1) * self.warps_n * len(self.pieces) * LANES

    def at(self, span: int, tile: int, part: int = 0) -> int:
        """Return the register at which the four sums of a product begin."""
        return ((span * self.parts + part) * (self.width // 2) + tile) * 4

    def four(self, piece: Piece) -> list[int]:
        span, part, odd, quad = piece
        tiles = (quad * 2, quad * 2 + 1)
        return [self.at(span, tile, part) + below * 2 + odd for tile in tiles for below in range(2)]


@dataclass(frozen=True)
class Place:
    """Where a thread stands."""

    lane: Any
    warp: Any  # in the block: its place along the columns runs fastest
    part: Any  # of k, within the block
    place: Any  # of the warp's columns, within the block
    rank: Any  # of the block in the cluster
    row: Any  # of the result, the block's first
    column: Any  # the lane's first


class ColumnSums:
    """Adds up `totals`; `base` is where shared memory is free, `of_blocks` where it stays so."""

    def __init__(self, shape: SumsShape, place: Place, base: Any, of_blocks: Any) -> None:
        self.shape, self.place = shape, place
        self._base, self._of_blocks = base, of_blocks
        self.totals = zeros(shape.registers)

    def add_up(self, finish: Callable[[Piece, list[Any]], None]) -> None:
        """Call `finish` with the four sums of each piece, on the lanes that have them."""
        s, own = self.shape, self.place
        if s.warps_k > 1:
            do(T.cuda.cta_sync())
        for number, piece in enumerate(s.pieces):
            values = [self.totals[at] for at in s.four(piece)]
            if s.warps_k > 1:
                _save(self._of_warp(own.warp, number), values)
            else:
                self._pass_on(number, piece, values, finish)
        if s.warps_k > 1:
            do(T.cuda.cta_sync())
            for number, piece in enumerate(s.pieces):
                with when(own.part == number % s.warps_k):
                    warps = [part * s.warps_n + own.place for part in range(s.warps_k)]
                    values = add_four([(self._of_warp(warp, number),) for warp in warps])
                    self._pass_on(number, piece, values, finish)
        if s.splits > 1:
            self._add_blocks(finish)

    def _pass_on(self, number: int, piece: Piece, values: list[Any], finish: Callable[..., None]) -> None:
        """Finish the sums of a block; or leave them where the cluster's blocks find them."""
        if self.shape.splits == 1:
            finish(piece, values)
        else:
            _save(self._of_block(number), values)

    def _add_blocks(self, finish: Callable[[Piece, list[Any]], None]) -> None:
        s, own = self.shape, self.place
        do(T.cuda.cluster_sync())
        for number, piece in enumerate(s.pieces):
            turn = number % (s.warps_k * s.splits)
            with when(tirx.And(own.part == turn % s.warps_k, own.rank == turn // s.warps_k)):
                finish(piece, add_four([(self._of_block(number), rank) for rank in range(s.splits)]))
        do(T.cuda.cluster_sync())  # no block leaves while its memory is read

    def _of_warp(self, warp: Any, number: int) -> Any:
        return self._piece_at(self._base, warp * len(self.shape.pieces) + number)

    def _of_block(self, number: int) -> Any:
        return self._piece_at(self._of_blocks, self.place.place * len(self.shape.pieces) + number)

    def _piece_at(self, base: Any, number: Any) -> Any:
        return base + T.Cast("uint32", number * LANES + self.place.lane * 16)

    def store(
        self, c: Any, m: Extent, n: Extent, piece: Piece, values: list[Any], finished: Callable[..., Any]
    ) -> None:
        """Store four neighbours of a row of c, as `finished(value, row, column)` leaves them."""
        s, own, (span, part, odd, quad) = self.shape, self.place, piece
        inside = part * ROWS + T.truncmod(own.lane, 4) * 2 + odd
        row, column = own.row + inside, own.column + span * s.columns + quad * 4
        with when(tirx.And(inside < s.rows, tirx.And(row < m, column < n))):
            columns = [column + i if i == 0 else tirx.min(column + i, n - 1) for i in range(4)]
            done = [Scalar(finished(v, row, at), "float32")() for v, at in zip(values, columns)]
            store_four(c, n, row, column, done)


def zeros(count: int) -> Any:
    """Return as many float registers that are 0."""
    registers = T.alloc_local((count,), "float32")
    for index in range(count):
        T.buffer_store(registers, T.float32(0), [index])
    return registers


def load_piece(registers: Any, at: int, address: Any) -> None:
    """Load 16 bytes of shared memory to `registers[at:]`."""
    do(c_call("void", "load_piece", T.address_of(registers[at]), address, source=_LOAD_PIECE))


def multiply(dtype: str, sums: Any, at: int, columns: list[Any], rows: list[Any], begins: bool) -> None:
    """Add a product to the four sums at `at`, or begin with it."""
    own = [sums[at + i] for i in range(4)]
    before = [T.float32(0)] * 4 if begins else own
    kind = PTX_TYPES[dtype]
    ptx(f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32", *own, *columns, *rows, *before)


def _save(to: Any, values: list[Any]) -> None:
    do(c_call("void", "save_piece", to, *values, source=_SAVE_PIECE))


def add_four(places: list[tuple[Any, ...]]) -> list[Any]:
    """Return four sums of what lies at `places`: addresses, or addresses and a block of the cluster."""
    four = zeros(4)
    for place in places:
        add_piece(four, place)
    return [four[i] for i in range(4)]


def add_piece(sums: Any, place: tuple[Any, ...]) -> None:
    """Add to four sums what lies at `place`: an address, or one and a block of the cluster."""
    remote = len(place) > 1
    name, source = ("add_piece_of_block", _ADD_PIECE_OF_BLOCK) if remote else ("add_piece", _ADD_PIECE)
    do(c_call("void", name, T.address_of(sums[0]), *place, source=source))
