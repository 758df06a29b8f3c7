"""What `conv_grouped` brings to shared memory: the weights, and what a tile sees of the images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.grouped_tiles import PIECE, PIECE_BYTES
from tvmops.schedules.cuda.kernels.channels_last import whole_vectors
from tvmops.schedules.cuda.pairs import float_at
from tvmops.schedules.cuda.pieces import copy_piece
from tvmops.schedules.cuda.words import Scalar, c_call, do, shared_address, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.conv_grouped import GroupedKernel

# Weights of units of several groups: a row has its group's, and zeros for the others.
_STAGE_UNITS = """
__forceinline__ __device__ void stage_units(void* to, const void* w, int first, int outputs, int rows, int taps,
                                            int columns, int ci, int length, int co, int groups, int pitch,
                                            int thread, int threads) {
  const unsigned short* from = static_cast<const unsigned short*>(w) + static_cast<long long>(first) * taps * length;
  unsigned short* at = static_cast<unsigned short*>(to);
  const int pieces = groups * ci / 8, padded = (columns * pieces + 1) / 2 * 2, all = rows * taps * ci;
  uint4 zeros;
  zeros.x = zeros.y = zeros.z = zeros.w = 0;
  for (int i = thread; i < rows * pitch / 16; i += threads) static_cast<uint4*>(to)[i] = zeros;
  __syncthreads();
  for (int begin = thread; begin < all; begin += 8 * threads) {
    unsigned short e[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int i = begin + j * threads, k = i / ci;
      e[j] = i < all && first + k / taps < outputs ? __ldg(from + k * length + i - k * ci) : 0;
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int i = begin + j * threads, k = i / ci, row = k / taps, tap = k - row * taps;
      const int channel = row / co % groups * ci + i - k * ci, piece = channel / 8;
      const int r = tap / columns, c = tap - r * columns;
      const int place = r * padded + c * pieces + piece;
      if (i < all) at[row * pitch / 2 + place * 8 + channel % 8] = e[j];
    }
  }
}
"""


class Image:
    def __init__(self, kernel: GroupedKernel) -> None:
        self.kernel = kernel

    def spread_weights(self) -> None:
        """Bring the weights of this block's channels, k innermost, with zeros between."""
        kernel, s, t, layout = self.kernel, self.kernel.shape, self.kernel.tiles, self.kernel.layout
        length = s.ci_each if s.channels_last else whole_vectors(s.ci_each)
        do(
            c_call(
                "void", "stage_units", kernel.weights.ptr_to([0]), kernel.arrays["w"].data, kernel.bundle * layout.outputs,
                s.co, layout.outputs, s.down.size * s.across.size, s.across.size, s.ci_each, length, s.co_each,
                layout.groups, layout.weight_pitch, kernel.thread, t.warps * 32, source=_STAGE_UNITS,
            )
        )  # fmt: skip

    def copy_weights(self) -> None:
        """Begin to copy the weights of this block's channels, k innermost."""
        kernel, s, layout = self.kernel, self.kernel.shape, self.kernel.layout
        first, chunks = Scalar(kernel.bundle * layout.outputs)(), s.down.size * layout.run
        base = Scalar(shared_address(kernel.weights, 0), "uint32")()

        def piece(row: Any, chunk: Any) -> None:
            place = chunk + T.truncdiv(chunk, layout.run) * (layout.padded - layout.run)
            to = base + T.Cast("uint32", row * layout.weight_pitch + place * PIECE_BYTES)
            valid = tirx.Select(first + row < s.co, PIECE, 0)
            w = kernel.arrays["w"].data
            do(copy_piece(PIECE, to, w, first + row, chunks * PIECE, chunk * PIECE, valid))

        self._each(layout.outputs, chunks, piece)

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

        def copy_line(line: Any, lane: Any) -> None:
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

            kernel.each_piece(lane, layout.w, pieces, copy)

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
