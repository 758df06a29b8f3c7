"""Sums of `stream_loose`: those of all classes meet in shared memory, each shifted as its rows are.

A warp's window of columns begins before the block's, as far as the rows of its class begin
behind a multiple of 16 bytes. So a column of the result is a different one of each class's window.
Sums are added in a fixed order: of the warps of a block, then of the blocks of a cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.column_sums import ROWS, add_four, multiply, zeros
from tvmops.schedules.cuda.kernels.neighbours import FOUR
from tvmops.schedules.cuda.kernels.stream_loose_tiles import CLASSES, SPAN, LoosePlace
from tvmops.schedules.cuda.pieces import PIECE
from tvmops.schedules.cuda.words import Scalar, c_call, do, when

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


class ShiftedSums:
    """The sums of a warp, in registers, until `add_up`."""

    def __init__(self, place: LoosePlace) -> None:
        self.place, self.tiles = place, place.tiles
        self._totals = zeros(self.tiles.spans * self.tiles.parts * 16)

    def _register(self, span: int, part: int, tile: int) -> int:
        """Return the register at which the four sums of a product begin."""
        return ((span * self.tiles.parts + part) * 4 + tile) * 4

    def add(self, dtype: str, span: int, part: int, tile: int, columns: list[Any], rows: list[Any]) -> None:
        """Add a product."""
        multiply(dtype, self._totals, self._register(span, part, tile), columns, rows, False)

    def add_up(self, finish: Callable[[Any, Any, list[Any]], None]) -> None:
        """Call `finish(row, column, sums)` for four neighbours of the result each, on some thread."""
        do(T.cuda.cta_sync())  # all have read what lay where sums will
        self._share()
        do(T.cuda.cta_sync())
        self._add_classes()
        splits = self.tiles.splits
        do(T.cuda.cluster_sync() if splits > 1 else T.cuda.cta_sync())
        self._add_blocks(finish)
        if splits > 1:
            do(T.cuda.cluster_sync())  # no block leaves while its memory is read

    def _share(self) -> None:
        """Write the warp's sums to shared memory."""
        t, lane = self.tiles, self.place.lane
        for span in range(t.spans):
            for part in range(t.parts):
                for i in range(16):
                    tile, below, odd = i // 4, i // 2 % 2, i % 2  # as a product leaves its sums
                    row = part * ROWS + T.truncmod(lane, 4) * 2 + odd
                    column = span * SPAN + T.truncdiv(lane, 4) * PIECE + tile * 2 + below
                    with when(row < t.rows):
                        offset = self._row_at(self.place.warp, row) + column * 4
                        self._save(offset, self._totals[self._register(span, part, tile) + below * 2 + odd])

    def _add_classes(self) -> None:
        """Add up the sums of all warps, each as far shifted as its rows are."""
        t, place = self.tiles, self.place
        shifts = [T.Bind(place.shift(own)) for own in range(CLASSES)]
        count = t.rows * t.columns
        with T.serial(-(-count // t.threads)) as turn:
            at = T.Bind(turn * t.threads + place.thread)
            with when(at < count):
                row, column = T.truncdiv(at, t.columns), T.truncmod(at, t.columns)
                total = Scalar(0.0, "float32")
                for warp in range(t.warps):
                    offset = self._row_at(warp, row) + (column + shifts[warp % CLASSES]) * 4
                    memory = place.memory.ptr_to([0])
                    total.set(total() + c_call("float32", "float_at", memory, offset, source=_FLOAT_AT))
                self._save(t.totals_at(place.k) + at * 4, total())

    def _add_blocks(self, finish: Callable[[Any, Any, list[Any]], None]) -> None:
        """Add up the totals of the cluster's blocks, which do so in turn."""
        t, place = self.tiles, self.place
        fours = t.columns // FOUR
        threads, count = t.splits * t.threads, t.rows * fours
        with T.serial(-(-count // threads)) as turn:
            at = T.Bind(turn * threads + place.rank * t.threads + place.thread)
            row = T.Bind(place.row + T.truncdiv(at, fours))
            column = T.Bind(place.column + T.truncmod(at, fours) * FOUR)
            with when((at < count) & (row < place.m) & (column < place.n)):
                offset = t.totals_at(place.k) + at * (4 * FOUR)
                address = T.Bind(place.base + T.Cast("uint32", offset))
                places = [(address, rank) for rank in range(t.splits)] if t.splits > 1 else [(address,)]
                finish(row, column, add_four(places))

    def _row_at(self, warp: Any, row: Any) -> Any:
        """Return the byte at which a row of a warp's sums begins."""
        return (warp * self.tiles.rows + row) * self.tiles.sums_pitch

    def _save(self, offset: Any, value: Any) -> None:
        do(c_call("void", "save_float_at", self.place.memory.ptr_to([0]), offset, value, source=_SAVE))
