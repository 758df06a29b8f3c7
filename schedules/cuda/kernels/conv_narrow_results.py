"""How results of `conv_narrow` leave: through shared memory, a warp's own pixels at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.kernels.conv_narrow_tiles import PAD, PIECE
from tvmops.schedules.cuda.pairs import (
    element_at,
    float_at,
    high_of,
    load_pair,
    low_of,
    store_element,
    store_pair_at,
)
from tvmops.schedules.cuda.words import Scalar, c_call, do, pack, ptx, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.conv_narrow import NarrowKernel

PLACE_WORD = """
__forceinline__ __device__ void place_word(void* array, int index, unsigned word) {
  *reinterpret_cast<unsigned*>(static_cast<unsigned short*>(array) + index) = word;
}
"""
LOAD_PAIR = """
__forceinline__ __device__ unsigned load_shared_pair(const void* memory) {
  return *static_cast<const unsigned*>(memory);
}
"""
MOVE_PIECE = """
__forceinline__ __device__ void move_piece(void* to, const void* from) {
  *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
}
"""


class Results:
    """NHWC: 16 bytes at a time."""

    def __init__(self, kernel: NarrowKernel) -> None:
        self.kernel = kernel
        self.shape, self.tiles, self.arrays, self.dtype = (
            kernel.shape,
            kernel.tiles,
            kernel.arrays,
            kernel.dtype,
        )

    def store(self, image: Any, y: Any, x: Any, column: Any) -> None:
        """Finish the sums of a warp's pixels; they leave row by row."""
        s, t = self.shape, self.tiles
        first = Scalar(self.kernel.warp * (16 * t.parts))()
        for j in range(t.bn // 8):
            channel = Scalar(column + j * 8 + self.kernel.lane % 4 * 2)()
            bias = None
            if "bias" in self.arrays:
                place = tirx.min(channel, s.co - 2)
                bias = Scalar(load_pair(element_at(self.arrays["bias"], place)), "uint32")()
            for part in range(t.parts):
                for below in range(2):
                    own = Scalar(first + part * 16 + below * 8 + T.truncdiv(self.kernel.lane, 4))()
                    at = (part * (t.bn // 8) + j) * 4 + below * 2
                    word = self._finished(image, y, x, own, channel, at, bias)
                    place, word = self._held(j, part * 16 + below * 8, own, word)
                    do(
                        c_call(
                            "void", "place_word", self.kernel.results.ptr_to([0]), place, word,
                            source=PLACE_WORD,
                        )
                    )  # fmt: skip
        do(T.cuda.warp_sync())
        self._leave(image, y, x, column, first)

    def _held(self, j: int, below: int, own: Any, word: Any) -> tuple[Any, Any]:
        """Return a place for a pair of the `j`-th 8 channels of pixel `own`, and what to write there."""
        return own * (self.tiles.bn + PAD) + j * 8 + self.kernel.lane % 4 * 2, word

    def _leave(self, image: Any, y: Any, x: Any, column: Any, first: Any) -> None:
        """Store the results of a warp's pixels, from `first` on."""
        t = self.tiles
        with T.serial(16 * t.parts * (t.bn // 8) // 32) as step:
            piece = Scalar(step * 32 + self.kernel.lane)()
            own = Scalar(first + T.truncdiv(piece, t.bn // 8))()
            channel = Scalar(T.truncmod(piece, t.bn // 8) * PIECE)()
            within, place = self._place(image, y, x, own, column + channel)
            with when(within):
                source = self.kernel.results.ptr_to([own * (t.bn + PAD) + channel])
                do(
                    c_call(
                        "void", "move_piece", element_at(self.arrays["y"], place), source, source=MOVE_PIECE
                    )
                )

    def _finished(self, image: Any, y: Any, x: Any, own: Any, channel: Any, at: int, bias: Any) -> Any:
        """Return two results, of neighbouring channels of pixel `own`."""
        low, high = self.kernel.sums[at], self.kernel.sums[at + 1]
        activation = self.shape.epilogue.activation
        terms = [] if bias is None else [(low_of(self.dtype, bias), high_of(self.dtype, bias))]
        if "residual" in self.arrays:
            terms.append(self._residual(image, y, x, own, channel))
        for term in terms:
            low, high = low + term[0], high + term[1]
        return pack(self.dtype, activate(activation, low), activate(activation, high))

    def _residual(self, image: Any, y: Any, x: Any, own: Any, channel: Any) -> tuple[Any, Any]:
        within, index = self._place(image, y, x, own, channel)
        word = Scalar(0, "uint32")
        with when(within):
            word.set(load_pair(element_at(self.arrays["residual"], index)))
        return low_of(self.dtype, word()), high_of(self.dtype, word())

    def _place(self, image: Any, y: Any, x: Any, own: Any, channel: Any) -> tuple[Any, Any]:
        """Return whether a pixel of the tile is one of the image, and the place of a channel of it in y."""
        s, t = self.shape, self.tiles
        row = Scalar(y + T.truncdiv(own, t.tile_w))()
        column = Scalar(x + T.truncmod(own, t.tile_w))()
        within = tirx.all(row < s.oh, column < s.ow, channel < s.co)
        return within, ((image * s.oh + row) * s.ow + column) * s.co + channel


class PlanesResults(Results):
    """NCHW: two pixels of a channel at a time; pairs of channels are turned to pairs of pixels."""

    def __init__(self, kernel: NarrowKernel) -> None:
        super().__init__(kernel)
        self.pitch = 16 * self.tiles.parts + PAD
        self.begin = Scalar(kernel.warp * (self.tiles.bn * self.pitch))()  # of a warp's own results
        self.turned = Scalar(0, "uint32")

    def _held(self, j: int, below: int, own: Any, word: Any) -> tuple[Any, Any]:
        lane = self.kernel.lane
        ptx("movmatrix.sync.aligned.m8n8.trans.b16", self.turned(), word)
        row = j * 8 + T.truncdiv(lane, 4)
        return self.begin + row * self.pitch + below + lane % 4 * 2, self.turned()

    def _leave(self, image: Any, y: Any, x: Any, column: Any, first: Any) -> None:
        s, t, pairs = self.shape, self.tiles, 8 * self.tiles.parts
        plane = Scalar(s.oh * s.ow)()
        with T.serial(t.bn * pairs // 32) as step:
            number = Scalar(step * 32 + self.kernel.lane)()
            row, inside = Scalar(T.truncdiv(number, pairs))(), Scalar(T.truncmod(number, pairs) * 2)()
            channel = column + row
            within, place = self._place(image, y, x, first + inside, channel)
            _, following = self._place(image, y, x, first + inside + 1, channel)
            source = self.kernel.results.ptr_to([self.begin + row * self.pitch + inside])
            word = Scalar(c_call("uint32", "load_shared_pair", source, source=LOAD_PAIR), "uint32")()
            is_last = x + T.truncmod(first + inside, t.tile_w) + 1 == s.ow
            with when(within):
                with T.If(tirx.all(T.truncmod(plane, 2) == 0, T.truncmod(s.ow, 2) == 0)):
                    with T.Then():
                        store_pair_at(self.arrays["y"], place, word)
                    with T.Else():
                        store_element(self.arrays["y"], place, word)
                        with when(tirx.Not(is_last)):
                            store_element(self.arrays["y"], following, word >> T.uint32(16))

    def _residual(self, image: Any, y: Any, x: Any, own: Any, channel: Any) -> tuple[Any, Any]:
        s, floats = self.shape, [Scalar(0.0, "float32") for _ in range(2)]
        within, index = self._place(image, y, x, own, channel)
        with when(within):
            for i, each in enumerate(floats):
                place = index + i * (s.oh * s.ow)
                each.set(float_at(self.dtype, self.arrays["residual"], place))
        return floats[0](), floats[1]()

    def _place(self, image: Any, y: Any, x: Any, own: Any, channel: Any) -> tuple[Any, Any]:
        s, t = self.shape, self.tiles
        row, column = y + T.truncdiv(own, t.tile_w), x + T.truncmod(own, t.tile_w)
        within = tirx.all(row < s.oh, column < s.ow, channel < s.co)
        return within, ((image * s.co + channel) * s.oh + row) * s.ow + column
