"""A factor of a small product by wgmma: chunks in shared memory as it reads them, 128-byte swizzled.

cp.async puts them there, as wide as rows allow: the copy engine takes none whose rows begin at less than
multiples of 16 bytes. Rows that begin anywhere come as they lie, aligned, and are shifted into panels.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.shifted_operand import COPY_AROUND, Around
from tvmops.schedules.cuda.kernels.whole_operand import STEP, WholeOperand
from tvmops.schedules.cuda.pieces import PIECE
from tvmops.schedules.cuda.words import c_call, do, swizzled, when

PANEL, ROW_BYTES = 64, 128  # elements of a row of the swizzle


class SwizzledOperand(WholeOperand):
    """A chunk as panels of rows of 64 elements."""

    @property
    def stage_bytes(self) -> int:
        return self.rows * -(-self.line // PANEL) * ROW_BYTES

    def part_address(self, stage: Any, row: Any, column: Any) -> Any:
        piece = T.truncdiv(T.truncmod(column, PANEL), PIECE) ^ T.truncmod(row, 8)
        inside = row * ROW_BYTES + piece * 16 + T.truncmod(column, PIECE) * 2
        panel = T.truncdiv(column, PANEL) * (self.rows * ROW_BYTES)
        return self.base + T.Cast("uint32", stage * self.stage_bytes + panel + inside)

    def view(self, stage: int, step: int, group: Any = 0) -> Any:
        """Return wgmma's view of 16 along k, of the `group`-th 64 rows."""
        if self.k_inner:
            inside = group * (PANEL * ROW_BYTES) + (step // 4 * self.rows * ROW_BYTES + step % 4 * 32)
        else:
            inside = group * (self.bk * ROW_BYTES) + step * (STEP * ROW_BYTES)
        address = self.base + T.Cast("uint32", (stage * self.stage_bytes if stage else 0) + inside)
        return swizzled(address, leading=1 if self.k_inner else self.bk * 8)


# Pieces of rows that begin anywhere, to rows of panels that wgmma reads. Rows lie one behind the other as in the
# array, or `pitch` pieces apart, from the piece on that holds their first element. From the `filled`-th row
# on, and from the `valid`-th element of each, there are zeros. Rows of a warp are 8 apart, so that all are
# shifted as far.
_SHIFT_TO_PANELS = """
__forceinline__ __device__ uint4 shifted_by(uint4 x, uint4 y, int words, int bits) {
  uint4 v = x;
  unsigned next = y.x;
  switch (words) {
    case 1: v = uint4{x.y, x.z, x.w, y.x}, next = y.y; break;
    case 2: v = uint4{x.z, x.w, y.x, y.y}, next = y.z; break;
    case 3: v = uint4{x.w, y.x, y.y, y.z}, next = y.w;
  }
  v.x = __funnelshift_r(v.x, v.y, bits), v.y = __funnelshift_r(v.y, v.z, bits);
  v.z = __funnelshift_r(v.z, v.w, bits), v.w = __funnelshift_r(v.w, next, bits);
  return v;
}
__forceinline__ __device__ void shift_to_panels(void* panels, const void* raw, int rows, int pieces, int pitch,
                                                int first, int length, int filled, int valid, int rows_of_panel,
                                                int warp, int warps, int lane) {
  const int side = 32 / pieces, own = lane / pieces, piece = lane % pieces, left = valid - 8 * piece;
  char* to = static_cast<char*>(panels) + piece / 8 * (rows_of_panel * 128);
  for (int step = warp; step < (rows + 8 * side - 1) / (8 * side) * 8; step += warps) {
    const int begin = step / 8 * (8 * side) + step % 8, row = begin + 8 * own, shift = first + begin * length & 7;
    if (own >= side || row >= rows) continue;
    const int at = pitch ? row * pitch + piece : (first & 7) + row * length + 8 * piece >> 3;
    const uint4* from = static_cast<const uint4*>(raw) + at;
    uint4 v = shifted_by(from[0], from[1], shift >> 1, 16 * (shift & 1));
    if (left < 8) {
      v.x = left > 1 ? v.x : left > 0 ? v.x & 0xFFFF : 0, v.y = left > 3 ? v.y : left > 2 ? v.y & 0xFFFF : 0;
      v.z = left > 5 ? v.z : left > 4 ? v.z & 0xFFFF : 0, v.w = left > 7 ? v.w : left > 6 ? v.w & 0xFFFF : 0;
    }
    if (row >= filled) v = uint4{0, 0, 0, 0};
    *reinterpret_cast<uint4*>(to + row * 128 + (piece % 8 ^ row % 8) * 16) = v;
  }
}
"""


class PanelsOfShifted(Around, SwizzledOperand):
    """The same of rows that begin anywhere: panels of one chunk, and behind them a ring of aligned copies."""

    shifts = True

    @property
    def is_flat(self) -> bool:
        """Whether the rows of a chunk are whole, and so one stretch of the array."""
        return not self.k_inner and int(self.extent) <= self.block

    @property
    def panel_bytes(self) -> int:
        return super().stage_bytes

    @property
    def stage_bytes(self) -> int:
        if self.is_flat:
            return -(-(PIECE + self.bk * int(self.extent)) // PIECE) * 16 + 16
        return self.rows * self.pitch

    def nbytes(self, stages: int) -> int:
        return self.panel_bytes + stages * self.stage_bytes

    def part_address(self, stage: Any, row: Any, column: Any) -> Any:
        inside = self.panel_bytes + stage * self.stage_bytes + row * self.pitch + column * 2
        return self.base + T.Cast("uint32", inside)

    def copy(self, stage: Any, origin: Any, k_origin: int) -> None:
        if not self.is_flat:
            super().copy(stage, origin, k_origin)
            return
        length = int(self.extent)
        count = min(self.bk, int(self.k) - k_origin) * length
        first = self.lead + k_origin * length
        for begin in range(0, -(-(count + PIECE - 1) // PIECE), self.threads):
            piece = begin + self.thread
            to = self.base + T.Cast("uint32", self.panel_bytes + stage * self.stage_bytes + piece * 16)
            with when(piece * PIECE < T.truncmod(first, PIECE) + count):
                at = first + piece * PIECE
                do(c_call("void", "copy_around", to, self.start, at, self.rest, 1, source=COPY_AROUND))

    def shift(self, stage: int, origin: Any, k_origin: int, warp: Any, lane: Any) -> None:
        depth = self._depth(k_origin)
        left = min(depth, int(self.k) - k_origin)
        pieces = SwizzledOperand._across(self, PIECE, depth)
        if self.k_inner:
            rows, filled, valid, y, x = self.block, self.block, left, origin, k_origin
        else:
            rows, filled, valid, y, x = depth, left, PIECE * pieces, k_origin, origin
        raw = self.ring.ptr_to([self.panel_bytes + stage * self.stage_bytes])
        pitch = 0 if self.is_flat else self.pitch // 16
        first = self.lead + y * self.row_length + x
        source = _SHIFT_TO_PANELS
        do(
            c_call(
                "void", "shift_to_panels", self.ring.ptr_to([0]), raw, rows, pieces, pitch, first, self.row_length,
                filled, valid, self.rows, warp, self.threads // 32, lane, source=source,
            )
        )  # fmt: skip

    def view(self, stage: int, step: int, group: Any = 0) -> Any:
        return super().view(0, step, group)
