"""The end of a wgmma product: the epilogue in registers, and the ways of results to memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.kernels.gemm_arrays import Arrays, Form
from tvmops.schedules.cuda.kernels.gemm_fragments import first_across
from tvmops.schedules.cuda.words import PTX_TYPES, Scalar, c_call, do, pack

STORE = "cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group"
_ELEMENT = """
__forceinline__ __device__ float element_{dtype}(const void* array, int row, int pitch, int column) {{
  const unsigned {kind}* at = static_cast<const unsigned {kind}*>(array);
  const unsigned {kind} bits = __ldg(at + static_cast<long long>(row) * pitch + column);
  return {value};
}}
"""
_VALUES = {
    "bfloat16": ("short", "__uint_as_float(static_cast<unsigned>(bits) << 16)"),
    "float16": ("short", "__half2float(__ushort_as_half(bits))"),
    "float32": ("int", "__uint_as_float(bits)"),
}
_STORE_TWO = """
__forceinline__ __device__ void store_two(void* array, int row, int pitch, int column, float x, float y) {
  *reinterpret_cast<float2*>(static_cast<float*>(array) + static_cast<long long>(row) * pitch + column) = make_float2(x, y);
}
"""
_STORE_TWO_APART = """
__forceinline__ __device__ void store_two_apart(float* array, int row, int pitch, int column, float x, float y) {
  float* at = array + static_cast<long long>(row) * pitch + column;
  at[0] = x;
  if (column + 1 < pitch) at[1] = y;
}
"""
_STORE_HALVES = """
__forceinline__ __device__ void store_halves(void* array, int row, int pitch, int column, unsigned pair) {
  unsigned short* at = static_cast<unsigned short*>(array) + static_cast<long long>(row) * pitch + column;
  *reinterpret_cast<unsigned*>(at) = pair;
}
"""
# A warp stores 16 rows of 64 elements of a swizzled tile, from row `first` on, `height` rows of it, to rows
# that begin anywhere: words where they are aligned, and what is left at both ends.
_STORE_ROWS = """
__forceinline__ __device__ void store_rows(void* array, int row, int height, int pitch, int column, int end,
                                           const void* tile, int first, int lane) {
  const char* from = static_cast<const char*>(tile) + 128 * first + 4 * (lane & 3);
  unsigned words[16];
#pragma unroll
  for (int i = 0; i < 16; ++i)
    words[i] = *reinterpret_cast<const unsigned*>(from + 128 * i + ((lane >> 2 ^ (i & 7)) << 4));
  const int left = min(end - column, 64), rows = min(height - first, 16);
  const bool pair = 2 * lane + 1 < left, single = 2 * lane + 1 == left;  // of an aligned row
  const bool apart = lane > 0 && 2 * lane < left, high = 2 * lane + 2 == left;  // of a row one element further
  unsigned short* to = static_cast<unsigned short*>(array) + static_cast<long long>(row + first) * pitch + column;
#pragma unroll
  for (int i = 0; i < 16; ++i, to += pitch) {
    if (i >= rows) break;
    if (reinterpret_cast<unsigned long long>(to) & 2) {
      const unsigned word = __funnelshift_r(__shfl_up_sync(0xFFFFFFFFu, words[i], 1), words[i], 16);
      if (apart) *reinterpret_cast<unsigned*>(to + 2 * lane - 1) = word;
      if (lane == 0 && left > 0) to[0] = words[i];
      if (high) to[left - 1] = words[i] >> 16;
    } else {
      if (pair) *reinterpret_cast<unsigned*>(to + 2 * lane) = words[i];
      if (single) to[left - 1] = words[i];
    }
  }
}
"""


# The same where rows begin at multiples of 16 bytes: 4 rows at a time, 8 lanes each.
_STORE_PIECES = """
__forceinline__ __device__ void store_pieces(void* array, int row, int height, int pitch, int column, int end,
                                             const void* tile, int first, int lane) {
  const char* from = static_cast<const char*>(tile) + 128 * first;
  unsigned short* to = static_cast<unsigned short*>(array) + static_cast<long long>(row + first) * pitch + column;
  const int piece = lane & 7;
  if (column + 8 * piece >= end) return;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const int i = 4 * n + (lane >> 3);
    const uint4 words = *reinterpret_cast<const uint4*>(from + 128 * i + ((piece ^ (i & 7)) << 4));
    if (first + i < height) *reinterpret_cast<uint4*>(to + static_cast<long long>(i) * pitch + 8 * piece) = words;
  }
}
"""


def store_rows(
    array: Any,
    row: Any,
    height: Any,
    pitch: Any,
    columns: tuple[Any, Any],
    tile: Any,
    warp: Any,
    lane: Any,
    aligned: bool = False,
) -> None:
    """Let a warp store its 16 rows of a tile of up to 64 columns, of `height` rows from `row` of the array on."""
    name, source = ("store_pieces", _STORE_PIECES) if aligned else ("store_rows", _STORE_ROWS)
    do(c_call("void", name, array, row, height, pitch, *columns, tile, warp * 16, lane, source=source))


@dataclass(frozen=True)
class Consumer:
    """Where a thread that multiplies stands, and its registers."""

    group: Any  # its warpgroup
    warp: Any
    lane: Any
    top: Any  # the first row of the tile
    left: Any  # its first column
    item: Any
    row: Any  # of 64, that its stmatrix writes
    acc: Any  # the sums
    packed: Any  # four registers
    factor: Any  # of all sums, in a register, or None


class Results:
    """What becomes of the sums of one thread."""

    saving = "stmatrix.sync.aligned.m8n8.x4.shared.b16"  # the instruction that takes results to shared memory

    def __init__(
        self, form: Form, arrays_of: Arrays, arrays: dict[str, Any], tiles: Tiles, at: Consumer
    ) -> None:
        self.form, self.m, self.n = form, arrays_of.m, arrays_of.n
        self.arrays, self.at = arrays, at
        self.c = arrays["workspace" if arrays_of.form.parts > 1 else "c"]
        self.bn, self.buffers = tiles.columns_a_group, tiles.store_buffers
        self.blocks = tiles.blocks_a_group  # of 64 rows
        self.first_row = 0 if tiles.aside else at.group * (64 * self.blocks)  # of a tile, of this warpgroup
        self.parts = -(-self.bn // 64)  # of up to 64 columns
        self.sums = self.bn // 2  # of a thread, for 64 rows
        # Stores that may still read: none if the next tile begins with the buffer that this one ends with.
        self.unread = self.buffers - 1 if self.blocks * self.parts % self.buffers == 0 else 0
        self.rounding = rounding_of(self.form.result)
        self.by_element = form.finishes and form.scales != "rows"

    def finish(self, sums: Any, at: Any, row: Any, column: Any) -> None:
        """Apply the epilogue to one sum, of row `row` of all matrices."""
        T.buffer_store(sums, finished(self.form, self.arrays, self.n, sums[at], row, column), [at])

    def scale_all(self) -> None:
        """Multiply each sum by the scale of its row and that of its column, which are read once each."""
        ends = [(w, half) for w in range(self.blocks) for half in range(2)]
        rows = [self._scale("a_scale", self.at.top + self.row_of(w, half), self.m) for w, half in ends]
        for j in range(self.bn // 8):
            for e in range(2):
                column = self.at.left + j * 8 + self.at.lane % 4 * 2 + e
                factor = self._scale("b_scale", column, self.n)
                for (w, half), row in zip(ends, rows):
                    at = w * self.sums + j * 4 + half * 2 + e
                    T.buffer_store(self.at.acc, self.at.acc[at] * row() * factor(), [at])

    def _scale(self, name: str, place: Any, size: Any) -> Scalar:
        """Read a scale; beyond the last there are no results."""
        value = _element("float32", self.arrays[name].data, 0, 0, T.min(place, size - 1))
        return Scalar(value, "float32")

    # fmt: off
    @T.inline
    def finish_all(self):
        """Apply the epilogue to all sums; where they go directly, store them."""
        if self.form.scales == "rows":
            self.scale_all()
        if self.by_element | self.form.stores_directly:
            self._finish_each()

    @T.inline
    def _finish_each(self):
        for w in T.unroll(self.blocks):
            for half in T.unroll(2):
                r: T.int32 = self.at.top + self.row_of(w, half)
                if r < self.m:
                    for j in T.unroll(self.bn // 8):
                        column: T.int32 = self.at.left + j * 8 + self.at.lane % 4 * 2
                        if column < self.n:
                            if self.by_element:
                                for e in T.unroll(2):
                                    self.finish(self.at.acc, w * self.sums + j * 4 + half * 2 + e, self.at.item * self.m + r, T.min(column + e, self.n - 1))
                            if self.form.stores_directly:
                                self.store_two(self.at.item * self.m + r, column, self._sum(w * self.sums + j * 4 + half * 2), self._sum(w * self.sums + j * 4 + half * 2 + 1))

    @T.inline
    def store(self, tile, view):
        """Store by TMA what `view` describes, 64 columns at a time, through the buffers of `tile`."""
        for w in T.unroll(self.blocks):
            for s in T.unroll(self.parts):
                if (self.at.warp == 0) & (self.at.lane == 0):
                    T.ptx.cp.async_.bulk.wait_group.read(self.unread)
                T.cuda.warpgroup_sync(self.at.group + 1)
                self._round_to(tile, (w * self.parts + s) % self.buffers, w, s)
                T.ptx.fence.proxy.async_.shared__cta()
                T.cuda.warpgroup_sync(self.at.group + 1)
                if (self.at.warp == 0) & (self.at.lane == 0):
                    self._store_box(tile, (w * self.parts + s) % self.buffers, view, self.at.top + self.first_row + w * 64, s)
                    T.ptx.cp.async_.bulk.commit_group()

    @T.inline
    def _store_box(self, tile, buffer, view, row, s):
        """Begin to store the `s`-th 64 columns of the 64 rows from `row` on."""
        T.ptx[STORE.format(rank=3 if self.form.batched else 2)](T.address_of(view), self.at.left + s * 64, row, *([self.at.item] if self.form.batched else []), tile.ptr_to([self.at.group, buffer, 0, 0]))

    @T.inline
    def store_by_warps(self, tile):
        """Store without TMA, each warp the rows that it rounded."""
        for w in T.unroll(self.blocks):
            for s in T.unroll(self.parts):
                self._round_to(tile, (w * self.parts + s) % self.buffers, w, s)
                T.cuda.warp_sync()
                store_rows(self.c.data, self.at.item * self.m + self.at.top + self.first_row + w * 64, self.m - (self.at.top + self.first_row + w * 64), self.n, self._columns(s), tile.ptr_to([self.at.group, (w * self.parts + s) % self.buffers, 0, 0]), self.at.warp, self.at.lane, not self.form.loose)
                T.cuda.warp_sync()

    @T.inline
    def _round_to(self, tile, buffer, w, s):
        """Round 64 columns of sums to swizzled shared memory."""
        for p in T.unroll(4):
            if s * 64 + p * 16 < self.bn:
                for q in T.unroll(4):
                    T.ptx[self.rounding](self.at.packed[q], self._sum(w * self.sums + s * 32 + p * 8 + q * 2 + 1), self._sum(w * self.sums + s * 32 + p * 8 + q * 2))
                T.ptx[self.saving](tile.ptr_to([self.at.group, buffer, *self._place(p)]), self.at.packed[0], self.at.packed[1], self.at.packed[2], self.at.packed[3])
    # fmt: on

    def _place(self, p: Any) -> tuple[Any, Any]:
        """Return where in a buffer this lane's row of four matrices lies, of 16 columns of sums."""
        return self.at.row, ((p * 2 + self.at.lane // 16) ^ (self.at.lane % 8)) * 8

    def row_of(self, block: Any, half: Any) -> Any:
        """Return the row of the tile that one of a thread's two rows in a block of 64 is."""
        first = self.first_row + block * 64
        if self.form.across:
            return first + first_across(self.at.warp, self.at.lane) + half
        return first + self.at.warp * 16 + half * 8 + T.truncdiv(self.at.lane, 4)

    def _sum(self, number: Any) -> Any:
        return self.at.acc[number] if self.at.factor is None else self.at.acc[number] * self.at.factor[0]

    def _columns(self, part: Any) -> tuple[Any, Any]:
        """Return the first column of a part, and the first behind it that is another's."""
        first = self.at.left
        return first + part * 64, T.min(first + T.min(self.bn, part * 64 + 64), self.n)

    def finish_two(self, sums: Any, at: int, row: Any, column: Any) -> None:
        """Apply the epilogue to two neighbours, and store them."""
        for e in range(2):
            self.finish(sums, at + e, row, column + e)
        if self.form.stores_directly:
            self.store_two(row, column, sums[at], sums[at + 1])
            return
        pair = pack(self.form.result, sums[at], sums[at + 1])
        do(c_call("void", "store_halves", self.c.data, row, self.n, column, pair, source=_STORE_HALVES))

    def store_eight(self, row: Any, column: Any, sums: Any) -> None:
        """Store eight results of other dtypes than the sums."""
        for i in range(0, 8, 2):
            self.store_two(row, column + i, sums[i], sums[i + 1])

    def store_two(self, row: Any, column: Any, x: Any, y: Any) -> None:
        loose, pitch = self.form.loose, self.m if self.form.turned else self.n
        name, source = ("store_two_apart", _STORE_TWO_APART) if loose else ("store_two", _STORE_TWO)
        do(c_call("void", name, self.c.data, row, pitch, column, x, y, source=source))


def factor_of(arrays: dict[str, Any]) -> Any:
    """Return the scale of all sums. It is read before the first product: a load at the end is waited for."""
    scales = [_element("float32", arrays[name].data, 0, 0, 0) for name in ("a_scale", "b_scale")]
    return scales[0] * scales[1]


def finished(form: Form, arrays: dict[str, Any], n: Any, value: Any, row: Any, column: Any) -> Any:
    """Return what becomes of one sum, of row `row` of all matrices."""
    if form.bias:
        value = value + _element(form.bias, arrays["bias"].data, 0, n, column)
    if form.residual:
        value = value + _element(form.result, arrays["residual"].data, row, n, column)
    return activate(form.activation, value)


def _element(dtype: str, array: Any, row: Any, pitch: Any, column: Any) -> Any:
    kind, value = _VALUES[dtype]
    source = _ELEMENT.format(dtype=dtype, kind=kind, value=value)
    return c_call("float32", f"element_{dtype}", array, row, pitch, column, source=source)


def rounding_of(dtype: str) -> str:
    """Return the instruction that rounds two sums to `dtype`, one register."""
    return f"cvt.rn.{PTX_TYPES.get(dtype, 'bf16')}x2.f32"
