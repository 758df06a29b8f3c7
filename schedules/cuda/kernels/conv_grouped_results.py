"""How results of `conv_grouped` leave: through shared memory, a tile's as whole lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.grouped_tiles import PIECE, ROWS
from tvmops.schedules.cuda.kernels.conv_narrow_results import MOVE_PIECE, PLACE_WORD
from tvmops.schedules.cuda.pairs import element_at, high_of, load_pair, low_of
from tvmops.schedules.cuda.words import PTX_TYPES, Scalar, c_call, do, pack, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.conv_grouped import GroupedKernel

Corner = tuple[Any, Any, Any]

# Two results, 0 for negative ones; NaN stays.
_PACK_RELU = """
__forceinline__ __device__ unsigned pack_relu_{dtype}(float low, float high) {{
  unsigned pair;
  asm("cvt.rn.relu.{ptx}x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}}
"""


class Results:
    def __init__(self, kernel: GroupedKernel) -> None:
        self.kernel, self.arrays, self.dtype = kernel, kernel.arrays, kernel.dtype
        self.channel = Scalar(kernel.bundle * kernel.layout.outputs)()  # the block's first

    def place(self, first: Any, column: Any, corner: Corner) -> None:
        """Finish a warp's sums, of pixels from `first` on and channels from `column` on."""
        kernel, t, layout = self.kernel, self.kernel.tiles, self.kernel.layout
        lane = kernel.lane
        inside = Scalar(column + lane % 4 * 2)()
        for j in range(t.bn // 8):
            channel = self.channel + inside + j * 8
            for part in range(t.parts):
                for below in range(2):
                    own = first + part * ROWS + below * 8 + T.truncdiv(lane, 4)
                    at = (part * (t.bn // 8) + j) * 4 + below * 2
                    word = self._finished(at, own, channel, corner)
                    place = own * (layout.result_pitch // 2) + inside + j * 8
                    to = kernel.results.ptr_to([0])
                    do(c_call("void", "place_word", to, place, word, source=PLACE_WORD))

    def _finished(self, at: int, own: Any, channel: Any, corner: Corner) -> Any:
        """Return two results, of neighbouring channels of pixel `own`."""
        low, high = self.kernel.sums[at], self.kernel.sums[at + 1]
        activation = self.kernel.shape.epilogue.activation
        if "residual" in self.arrays:
            word = self._residual(own, channel, corner)
            low, high = low + low_of(self.dtype, word), high + high_of(self.dtype, word)
        if activation == "relu":
            source = _PACK_RELU.format(dtype=self.dtype, ptx=PTX_TYPES[self.dtype])
            return c_call("uint32", f"pack_relu_{self.dtype}", low, high, source=source)
        return pack(self.dtype, activate(activation, low), activate(activation, high))

    def _residual(self, own: Any, channel: Any, corner: Corner) -> Any:
        within, index = self._index(own, channel, corner)
        word = Scalar(0, "uint32")
        with when(within):
            word.set(load_pair(element_at(self.arrays["residual"], index)))
        return word()

    def leave(self, image: Any, y: Any, x: Any) -> None:
        """Store the results of all warps, line by line."""
        kernel, s, t, layout = self.kernel, self.kernel.shape, self.kernel.tiles, self.kernel.layout

        def store_line(line: Any) -> None:
            number = Scalar(T.truncdiv(line, t.tile_h))()
            row = Scalar(y + line - number * t.tile_h)()
            first = Scalar(((image + number) * s.oh + row) * s.ow + x)()

            def store(column: Any, piece: Any) -> None:
                channel = self.channel + piece * PIECE
                with when(tirx.all(x + column < s.ow, channel < s.co)):
                    own = line * t.tile_w + column
                    place = own * (layout.result_pitch // 2) + piece * PIECE
                    source = kernel.results.ptr_to([place])
                    to = element_at(self.arrays["y"], (first + column) * s.co + channel)
                    do(c_call("void", "move_piece", to, source, source=MOVE_PIECE))

            with when(tirx.all(image + number < s.n, row < s.oh)):
                kernel.each_piece(t.tile_w, layout.outputs // PIECE, store)

        kernel.each_line(t.tile_n * t.tile_h, store_line)

    def _index(self, own: Any, channel: Any, corner: Corner) -> tuple[Any, Any]:
        """Return whether a pixel of the tile is one of the images, and the place of a channel of it in y."""
        s, t = self.kernel.shape, self.kernel.tiles
        image, y, x = corner
        line = Scalar(T.truncdiv(own, t.tile_w))()
        number = Scalar(T.truncdiv(line, t.tile_h))()
        row, column = Scalar(y + line - number * t.tile_h)(), Scalar(x + own - line * t.tile_w)()
        within = tirx.all(number < t.tile_n, image + number < s.n, row < s.oh, column < s.ow, channel < s.co)
        return within, (((image + number) * s.oh + row) * s.ow + column) * s.co + channel
