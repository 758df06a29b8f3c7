"""Weights for `stream_loose`: aligned vectors of b, from memory right into registers.

A lane reads a vector of eight columns from each of eight rows of its warp's class. It begins up to
seven columns before the block's, as far as the rows of the class begin behind a multiple of 16 bytes;
never before b, since only rows that have others before them are shifted.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.stream import ask_for, read_streamed
from tvmops.schedules.cuda.kernels.stream_floats import woven
from tvmops.schedules.cuda.kernels.stream_loose_tiles import CLASSES, LANE_ROWS, SPAN, UNIT, LoosePlace
from tvmops.schedules.cuda.pieces import PIECE, LastPieces
from tvmops.schedules.cuda.words import c_call, when

_PIECE_FROM = """
__forceinline__ __device__ const void* piece_from(const void* array, long long at) {
  return static_cast<const unsigned short*>(array) + at;
}
"""


class LooseWeights:
    """What a warp reads of `b`: units of its class, of which `depth` are on their way."""

    def __init__(self, b: Any, place: LoosePlace) -> None:
        self.b, self.place, self.tiles = b, place, place.tiles
        shift = T.Bind(place.shift(place.own))
        self._column = T.Bind(place.column + T.truncdiv(place.lane, 4) * PIECE - shift)
        self._row = T.Bind(T.truncmod(place.lane, 4) * LANE_ROWS)  # of a unit, the lane's first
        self._size = T.Bind(T.Cast("int64", place.n) * place.k)
        self._registers = T.alloc_local((self.tiles.depth * self.tiles.spans * LANE_ROWS * 4,), "uint32")

    def ask(self, unit: Any) -> None:
        """Have a unit brought to the L2, if it is whole: what it holds is read later."""
        place = self.place
        with when(place.first + (unit * UNIT + UNIT + 1) * CLASSES <= place.k):
            begin = self._begin(self._row_of_b(unit))
            for span in range(self.tiles.spans):
                inside = T.Cast("int32", self._is_inside(span))
                for i in range(LANE_ROWS):
                    ask_for(self._pointer(begin, span, i), inside)

    def fetch(self, slot: int, unit: Any) -> None:
        """Begin to read a unit, if there is one."""
        place = self.place
        with when(unit < self.tiles.units(place.k)):
            row = T.Bind(self._row_of_b(unit))
            begin = self._begin(row)
            last = place.first + (unit * UNIT + UNIT) * CLASSES  # behind the unit
            # A vector reaches up to seven elements behind its row: eight rows that follow have as many.
            with T.If(last + CLASSES <= place.k):
                with T.Then():
                    self._fetch_whole(slot, begin)
                with T.Else():
                    self._fetch_last(slot, begin, row)

    def _fetch_whole(self, slot: int, begin: Any) -> None:
        for span in range(self.tiles.spans):
            for i in range(LANE_ROWS):
                self._fetch_piece(slot, span, i, begin, self._is_inside(span))

    def _fetch_last(self, slot: int, begin: Any, row: Any) -> None:
        """Begin to read pieces among which b may end: what is left of it in the last is loaded by element."""
        last = LastPieces(self.b.data, self._size)
        for span in range(self.tiles.spans):
            for i in range(LANE_ROWS):
                at = self._element(begin, span, i)
                there = T.Bind(tirx.And(self._is_inside(span), row + i * CLASSES < self.place.k))
                whole = T.Bind(at + PIECE <= self._size)
                last.add(tirx.And(there, tirx.Not(whole)), self._address(slot, span, i), at)
                self._fetch_piece(slot, span, i, begin, tirx.And(there, whole))
        last.load()

    def _fetch_piece(self, slot: int, span: int, number: int, begin: Any, there: Any) -> None:
        out, pointer = self._address(slot, span, number), self._pointer(begin, span, number)
        read_streamed(out, pointer, bool(self.tiles.chained), T.Cast("int32", there))

    def row_of_class(self, unit: Any) -> Any:
        """Return the lane's first row of a unit, counted within the class and the block's part of k."""
        return unit * UNIT + self._row

    def _row_of_b(self, unit: Any) -> Any:
        return self.place.first + self.row_of_class(unit) * CLASSES + self.place.own

    def _begin(self, row: Any) -> Any:
        """Return the element at which the lane's first piece of a row begins."""
        return T.Bind(T.Cast("int64", row) * self.place.n + self._column)

    def _is_inside(self, span: int) -> Any:
        return self._column + span * SPAN < self.place.n

    def _element(self, begin: Any, span: int, number: int) -> Any:
        """Return where the piece of the lane's `number`-th row begins, if that of its first does at `begin`."""
        return begin + (T.Cast("int64", self.place.n) * (number * CLASSES) + span * SPAN)

    def _pointer(self, begin: Any, span: int, number: int) -> Any:
        at = self._element(begin, span, number)
        return c_call("handle", "piece_from", self.b.data, at, source=_PIECE_FROM)

    def _register(self, slot: int, span: int, number: int) -> int:
        """Return which register a piece begins at."""
        return ((slot * self.tiles.spans + span) * LANE_ROWS + number) * 4

    def _address(self, slot: int, span: int, number: int) -> Any:
        return T.address_of(self._registers[self._register(slot, span, number)])

    def pairs(self, slot: int, span: int, half: int, tile: int) -> list[Any]:
        """Return, of `half` of the lane's rows, two pairs of rows of two columns, as a product takes them."""
        rows = [self._register(slot, span, half * 4 + i) + tile for i in range(4)]
        twos = (rows[:2], rows[2:])
        return [pair for two in twos for pair in woven(*(self._registers[at] for at in two))]
