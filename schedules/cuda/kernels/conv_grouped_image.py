"""What `conv_grouped` brings to shared memory: the weights, and what a tile sees of the images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.grouped_tiles import PIECE, PIECE_BYTES
from tvmops.schedules.cuda.pairs import float_at
from tvmops.schedules.cuda.pieces import copy_piece
from tvmops.schedules.cuda.words import Scalar, c_call, do, shared_address, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.conv_grouped import GroupedKernel

# Weights of units of several groups: a row has its group's, and zeros for the others.
_STAGE_UNITS = """
__forceinline__ __device__ void stage_units(void* to, const void* w, int first, int outputs, int rows, int taps,
                                            int columns, int ci, int co, int groups, int pitch, int thread, int threads) {
  const unsigned short* from = static_cast<const unsigned short*>(w);
  const int pieces = groups * ci / 8, chunks = taps * pieces, paired = pieces / 2 * 2, even = columns / 2 * 2;
  for (int i = thread; i < rows * chunks; i += threads) {
    const int row = i / chunks, chunk = i - row * chunks, tap = chunk / pieces, piece = chunk - tap * pieces;
    const int own = row / co % groups * ci, channel = piece * 8 - own, r = tap / columns, c = tap - r * columns;
    const int last = taps * paired + (c < even ? r * even + c : taps / columns * even + r);
    const int place = piece < paired ? tap * paired + piece : last;
    const unsigned short* seen = from + ((first + row) * taps + tap) * ci;
    unsigned short e[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int c = channel + j;
      e[j] = first + row < outputs && c >= 0 && c < ci ? __ldg(seen + c) : 0;
    }
    uint4 v;
    v.x = e[0] | e[1] << 16, v.y = e[2] | e[3] << 16, v.z = e[4] | e[5] << 16, v.w = e[6] | e[7] << 16;
    *reinterpret_cast<uint4*>(static_cast<char*>(to) + row * pitch + place * 16) = v;
  }
}
"""


class Image:
    def __init__(self, kernel: GroupedKernel) -> None:
        self.kernel = kernel

    def stage_weights(self) -> None:
        """Bring the weights of this block's channels, k innermost."""
        kernel, s, t, layout = self.kernel, self.kernel.shape, self.kernel.tiles, self.kernel.layout
        first = Scalar(kernel.bundle * layout.outputs)()
        w = kernel.arrays["w"].data
        if layout.groups > 1:
            do(
                c_call(
                    "void", "stage_units", kernel.weights.ptr_to([0]), w, first, s.co, layout.outputs,
                    s.down.size * s.across.size, s.across.size, s.ci_each, s.co_each, layout.groups, layout.weight_pitch,
                    kernel.thread, t.warps * 32, source=_STAGE_UNITS,
                )
            )  # fmt: skip
            return
        base = Scalar(shared_address(kernel.weights, 0), "uint32")()

        def piece(row: Any, chunk: Any) -> None:
            tap = Scalar(T.truncdiv(chunk, layout.pieces))()
            r = Scalar(T.truncdiv(tap, s.across.size))()
            place = layout.position(r, tap - r * s.across.size, chunk - tap * layout.pieces)
            to = base + T.Cast("uint32", row * layout.weight_pitch + place * PIECE_BYTES)
            valid = tirx.Select(first + row < s.co, PIECE, 0)
            do(copy_piece(PIECE, to, w, first + row, layout.chunks * PIECE, chunk * PIECE, valid))

        self._each(layout.outputs, layout.chunks, piece)

    def stage_bias(self) -> None:
        """Bring the bias, as floats."""
        kernel, s, layout = self.kernel, self.kernel.shape, self.kernel.layout
        if "bias" not in kernel.arrays:
            return

        def element(row: Any, _: Any) -> None:
            channel = tirx.min(kernel.bundle * layout.outputs + row, s.co - 1)
            T.buffer_store(kernel.bias, float_at(kernel.dtype, kernel.arrays["bias"], channel), [row])

        self._each(layout.outputs, 1, element)

    def fetch(self, stage: Any, image: Any, y: Any, x: Any) -> None:
        """Begin to copy what the tile sees; zeros beyond the images."""
        kernel, s, t, layout = self.kernel, self.kernel.shape, self.kernel.tiles, self.kernel.layout
        pieces, stride = t.units * layout.pieces, s.across.stride
        base = shared_address(kernel.stages, 0) + T.Cast("uint32", stage * layout.stage_bytes)
        base = Scalar(base, "uint32")()
        channel = Scalar(kernel.bundle * (pieces * PIECE))()
        top = Scalar(y * s.down.stride - s.down.before)()
        left = Scalar(x * s.across.stride - s.across.before)()

        def copy_line(line: Any) -> None:
            number = Scalar(T.truncdiv(line, layout.h))()
            row = Scalar(top + line - number * layout.h)()
            within = Scalar(tirx.all(image + number < s.n, 0 <= row, row < s.h), "bool")()
            first = Scalar(((image + number) * s.h + row) * s.w + left)()
            to = Scalar(base + T.Cast("uint32", line * (layout.line * layout.pitch)), "uint32")()

            def copy(column: Any, piece: Any) -> None:
                place = T.truncmod(column, stride) * layout.column + T.truncdiv(column, stride)
                address = to + T.Cast("uint32", place * layout.pitch + piece * PIECE_BYTES)
                z, c = left + column, channel + piece * PIECE
                valid = tirx.Select(tirx.all(within, 0 <= z, z < s.w, c < s.ci), PIECE, 0)
                do(copy_piece(PIECE, address, kernel.arrays["x"].data, first + column, s.ci, c, valid))

            kernel.each_piece(layout.w, pieces, copy)

        kernel.each_line(t.tile_n * layout.h, copy_line)

    def _each(self, rows: int, pieces: int, do_piece: Any) -> None:
        """Do something for each piece of rows of `pieces`, of which a thread has its share."""
        threads = self.kernel.tiles.warps * 32
        steps = -(-rows * pieces // threads)
        with T.serial(steps) as step:
            at = Scalar(step * threads + self.kernel.thread)()
            row = Scalar(T.truncdiv(at, pieces))()
            with when(at < rows * pieces):
                do_piece(row, Scalar(at - row * pieces)())
