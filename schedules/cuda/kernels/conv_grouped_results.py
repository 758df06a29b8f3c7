"""How results of `conv_grouped` leave: through shared memory, a tile's as whole lines."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.grouped_tiles import PIECE, ROWS
from tvmops.schedules.cuda.kernels.conv_narrow_results import LOAD_PAIR, MOVE_PIECE, PLACE_WORD
from tvmops.schedules.cuda.pairs import (
    element_at,
    float_at,
    high_of,
    load_pair,
    low_of,
    store_element,
)
from tvmops.schedules.cuda.words import PTX_TYPES, Scalar, c_call, do, pack, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.conv_grouped import GroupedKernel

Corner = tuple[Any, Any, Any]
NOWHERE = -1  # where no pixel's result lies

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

    def place(self, group: Any, y: Any, column: Any, corner: Corner) -> None:
        """Finish a warp's sums, of 16 pixels of rows from `y` on and channels from `column` on."""
        kernel, t, layout = self.kernel, self.kernel.tiles, self.kernel.layout
        lane = kernel.lane
        inside = Scalar(column + lane % 4 * 2)()
        for below in range(2):
            own = Scalar(kernel.ends[group * ROWS + below * 8 + T.truncdiv(lane, 4)])()
            with when(own != NOWHERE):
                for part, j in itertools.product(range(t.parts), range(t.bn // 8)):
                    pixel = own + (y + part) * t.tile_w
                    at = (part * (t.bn // 8) + j) * 4 + below * 2
                    word = self._finished(at, pixel, self.channel + inside + j * 8, corner)
                    place = pixel * (layout.result_pitch // 2) + inside + j * 8
                    to = kernel.results.ptr_to([0])
                    do(c_call("void", "place_word", to, place, word, source=PLACE_WORD))

    def _finished(self, at: int, own: Any, channel: Any, corner: Corner) -> Any:
        """Return two results, of neighbouring channels of pixel `own`."""
        low, high = self.kernel.sums[at], self.kernel.sums[at + 1]
        activation = self.kernel.shape.epilogue.activation
        if "residual" in self.arrays:
            first, second = self._residual(own, channel, corner)
            low, high = low + first, high + second
        if activation == "relu":
            source = _PACK_RELU.format(dtype=self.dtype, ptx=PTX_TYPES[self.dtype])
            return c_call("uint32", f"pack_relu_{self.dtype}", low, high, source=source)
        return pack(self.dtype, activate(activation, low), activate(activation, high))

    def _residual(self, own: Any, channel: Any, corner: Corner) -> tuple[Any, Any]:
        within, index = self._index(own, channel, corner)
        word = Scalar(0, "uint32")
        with when(within):
            word.set(load_pair(element_at(self.arrays["residual"], index)))
        return low_of(self.dtype, word()), high_of(self.dtype, word())

    def leave(self, image: Any, y: Any, x: Any) -> None:
        """Store the results of all warps, line by line."""
        kernel, s, t, layout = self.kernel, self.kernel.shape, self.kernel.tiles, self.kernel.layout

        def store_line(line: Any, lane: Any) -> None:
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
                kernel.each_piece(lane, t.tile_w, layout.outputs // PIECE, store)

        kernel.each_line(t.tile_n * t.tile_h, store_line)

    def _index(self, own: Any, channel: Any, corner: Corner) -> tuple[Any, Any]:
        """Return whether a pixel of the tile is one of the images, and the place of a channel of it in y."""
        s, (image, row, column) = self.kernel.shape, self._pixel(own, corner)
        within = tirx.all(image < s.n, row < s.oh, column < s.ow, channel < s.co)
        return tirx.all(own < self.kernel.tiles.pixels, within), (
            (image * s.oh + row) * s.ow + column
        ) * s.co + channel

    def _pixel(self, own: Any, corner: Corner) -> tuple[Any, Any, Any]:
        """Return the image, the row and the column of a pixel of the tile."""
        t, (image, y, x) = self.kernel.tiles, corner
        line = Scalar(T.truncdiv(own, t.tile_w))()
        number = Scalar(T.truncdiv(line, t.tile_h))()
        return image + number, Scalar(y + line - number * t.tile_h)(), Scalar(x + own - line * t.tile_w)()


class PlanesResults(Results):
    """NCHW: lanes store neighbouring pixels of two channels."""

    def leave(self, image: Any, y: Any, x: Any) -> None:
        kernel, s, t, layout = self.kernel, self.kernel.shape, self.kernel.tiles, self.kernel.layout
        plane = Scalar(s.oh * s.ow)()
        lanes = -(-t.pixels // 32)
        tasks = layout.outputs // 2 * lanes
        with T.serial(-(-tasks // t.warps)) as step:
            task = Scalar(step * t.warps + kernel.warp)()
            pair = Scalar(T.truncdiv(task, lanes))()
            own = Scalar((task - pair * lanes) * 32 + kernel.lane)()
            within, index = self._index(own, self.channel + pair * 2, (image, y, x))
            with when(tirx.all(task < tasks, within)):
                source = kernel.results.ptr_to([own * (layout.result_pitch // 2) + pair * 2])
                word = Scalar(c_call("uint32", "load_shared_pair", source, source=LOAD_PAIR), "uint32")()
                store_element(self.arrays["y"], index, word)
                store_element(self.arrays["y"], index + plane, word >> T.uint32(16))

    def _residual(self, own: Any, channel: Any, corner: Corner) -> tuple[Any, Any]:
        s, floats = self.kernel.shape, [Scalar(0.0, "float32") for _ in range(2)]
        within, index = self._index(own, channel, corner)
        with when(within):
            for i, each in enumerate(floats):
                each.set(float_at(self.dtype, self.arrays["residual"], index + i * (s.oh * s.ow)))
        return floats[0](), floats[1]()

    def _index(self, own: Any, channel: Any, corner: Corner) -> tuple[Any, Any]:
        s, (image, row, column) = self.kernel.shape, self._pixel(own, corner)
        within = tirx.all(image < s.n, row < s.oh, column < s.ow, channel < s.co)
        place = ((image * s.co + channel) * s.oh + row) * s.ow + column
        return tirx.all(own < self.kernel.tiles.pixels, within), place
