"""Rows of a for `stream_loose`: in shared memory, every eighth value side by side.

A warp multiplies every eighth row of b, hence every eighth value of a row of a. Where these lie
side by side, a lane loads those of its eight rows of b at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.column_sums import ROWS, load_piece
from tvmops.schedules.cuda.kernels.stream_loose_tiles import LoosePlace
from tvmops.schedules.cuda.pieces import PIECE, LastPieces
from tvmops.schedules.cuda.words import c_call, do, when

_TOGETHER = 8  # vectors that a thread reads at once

# An aligned vector of an array, if the array does not end within it.
_TAKE = """
__forceinline__ __device__ void take_vector(unsigned* out, const void* array, long long begin, long long size) {
  uint4 v = uint4{0, 0, 0, 0};
  if (begin + 8 <= size) v = *reinterpret_cast<const uint4*>(static_cast<const unsigned short*>(array) + begin);
  out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
}
"""
# Its eight elements, one a class, to where their classes lie: those that are among the `depth` of the block's
# part of a row, whose first they are `first` behind. From `end` on they are 0.
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


@dataclass(frozen=True)
class _Vector:
    """An aligned vector that holds some of a row."""

    number: Any  # among all of the block
    row: Any  # of the block
    first: Any  # of its elements, counted from the block's part of the row: negative, where it begins before
    begin: Any  # the same, counted from the beginning of a
    registers: Any


class LooseRows:
    """What a block needs of `a`, and `values`: what a lane multiplies now."""

    def __init__(self, a: Any, place: LoosePlace) -> None:
        self.a, self.place, self.tiles = a, place, place.tiles
        self.values = T.alloc_local((4 * self.tiles.parts,), "uint32")

    def store(self) -> None:
        """Write what the block needs of a to shared memory, by classes; beyond its ends it is 0."""
        t, place = self.tiles, self.place
        each = t.share(place.k) // PIECE + 1  # vectors of a row, which may begin within the first
        count = t.rows * each
        together = min(_TOGETHER, -(-count // t.threads))
        taken = T.alloc_local((together * 4,), "uint32")
        size = T.Bind(T.Cast("int64", place.m) * place.k)
        with T.serial(-(-count // (t.threads * together))) as turn:
            vectors, last = [], LastPieces(self.a.data, size)
            for i in range(together):
                number = T.Bind((turn * together + i) * t.threads + place.thread)
                vector = self._vector(number, each, T.address_of(taken[i * 4]))
                begin = vector.begin
                do(c_call("void", "take_vector", vector.registers, self.a.data, begin, size, source=_TAKE))
                last.add(tirx.And(begin < size, size < begin + PIECE), vector.registers, begin)
                vectors.append(vector)
            last.load()
            for vector in vectors:
                with when(vector.number < count):
                    self._put(vector)

    def _vector(self, number: Any, each: int, registers: Any) -> _Vector:
        """Find the `number`-th of a block's vectors, `each` a row."""
        place = self.place
        row = T.Bind(T.truncdiv(number, each))
        start = T.Cast("int64", place.row + row) * place.k + place.first  # of the block's part
        behind = T.Bind(T.Cast("int32", T.truncmod(start, PIECE)))
        first = T.Bind(T.truncmod(number, each) * PIECE - behind)
        return _Vector(number, row, first, T.Bind(start + first), registers)

    def _put(self, vector: _Vector) -> None:
        t, place = self.tiles, self.place
        to = place.memory.ptr_to([self._row_at(0, vector.row)])
        end = tirx.Select(place.row + vector.row < place.m, place.k - place.first, 0)
        apart = t.rows * t.pitch(place.k) // 2  # elements from a class to the next
        sizes = (end, t.share(place.k), apart)
        do(c_call("void", "put_vector", to, vector.registers, vector.first, *sizes, source=_PUT))

    def _row_at(self, own: Any, row: Any) -> Any:
        """Return the byte at which a class of a row begins."""
        return (own * self.tiles.rows + row) * self.tiles.pitch(self.place.k)

    def load(self, first: Any) -> None:
        """Load eight values of the warp's class, from its `first` on, of this lane's row in each product."""
        t, place = self.tiles, self.place
        for part in range(t.parts):
            row = tirx.min(part * ROWS + T.truncdiv(place.lane, 4), t.rows - 1)
            offset = self._row_at(place.own, row) + first * 2
            load_piece(self.values, part * 4, place.base + T.Cast("uint32", offset))
