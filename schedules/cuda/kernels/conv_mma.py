"""The kernel of `MmaConv`: convolution as a product by mma.sync of matrices one of which is never made.

It is `gemm_mma` but for where one operand comes from. NHWC: rows are pixels of the output, k runs
over (kh, kw, ci), columns are output channels; a piece of 8 channels is copied by cp.async, zeros
where the window leaves the image, and where channels are no multiple of 8 element by element
through registers. NCHW: the other way round, rows are output channels, k runs over (ci, kh, kw),
columns are pixels, always element by element. Either way weights are read as they lie, and
neighbours among the results are neighbours in memory. Groups are a batch of such products.
"""

from __future__ import annotations

from typing import Any

from tvm import IRModule, tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.kernels.conv_arrays import conv_module
from tvmops.schedules.cuda.kernels.gemm_mma import MmaKernel, MmaTiles
from tvmops.schedules.cuda.kernels.mma_operand import BK, Operand
from tvmops.schedules.cuda.kernels.product import Product
from tvmops.schedules.cuda.pairs import float_at, store_element, store_pair_at
from tvmops.schedules.cuda.pieces import PIECE, copy_piece
from tvmops.schedules.cuda.words import Scalar, c_call, pack, slice_of, when

_NOWHERE = -(1 << 28)  # a row that no window reaches

# 8 neighbours along k of a pixel.
_FETCH_WINDOW = """
__forceinline__ __device__ void fetch_window(unsigned* raw, const void* x, int first, int top, int left,
                                             int k, int depth, int h, int w, int pitch, int channels,
                                             int columns, int down, int across) {
  const unsigned short* at = static_cast<const unsigned short*>(x);
  const int tap = k / channels;
  int c = k - tap * channels, r = tap / columns, s = tap - r * columns;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int y = top + r * down, z = left + s * across;
    const bool inside = k + i < depth && y >= 0 && y < h && z >= 0 && z < w;
    raw[i] = inside ? __ldg(at + (static_cast<long long>(first + y) * w + z) * pitch + c) : 0;
    if (++c == channels) {
      c = 0;
      if (++s == columns) {
        s = 0;
        ++r;
      }
    }
  }
}
"""
# What one place of the kernel sees of a channel for 8 neighbouring pixels of the output.
_FETCH_PIXELS = """
__forceinline__ __device__ void fetch_pixels(unsigned* raw, const void* x, int plane, int planes, int y, int z,
                                             int count, int top, int left, int h, int w, int oh, int ow,
                                             int down, int across) {
  const unsigned short* at = static_cast<const unsigned short*>(x);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int row = y * down + top, column = z * across + left;
    const bool inside = i < count && row >= 0 && row < h && column >= 0 && column < w;
    raw[i] = inside ? __ldg(at + (static_cast<long long>(plane) * h + row) * w + column) : 0;
    if (++z == ow) {
      z = 0;
      if (++y == oh) {
        y = 0;
        plane += planes;
      }
    }
  }
}
"""


class _Window(Operand):
    """Pixels of NHWC images: a row is what the window sees around a pixel of the output."""

    def __init__(self, array: Any, shape: ConvShape, block: int, vector: int) -> None:
        super().__init__(array, _pixels(shape), _depth(shape), True, block, vector)
        self.shape = shape
        self.origin: Any = None

    def begin(self, thread: Any, threads: int) -> None:
        super().begin(thread, threads)
        s = self.shape
        self.places = []
        for step in range(self.steps):
            pixel = Scalar(self.origin + T.truncdiv(step * threads + thread, self.pieces))()
            row = Scalar(T.truncdiv(pixel, Scalar(s.ow)()))()
            image = Scalar(T.truncdiv(row, Scalar(s.oh)()))()
            top = (row - image * s.oh) * s.down.stride - s.down.before
            left = (pixel - row * s.ow) * s.across.stride - s.across.before
            top = tirx.Select(pixel < self.extent, top, _NOWHERE)
            self.places.append(tuple(Scalar(each)() for each in (image * s.h, top, left)))

    def copy(self, stage: Any, origin: Any, k_origin: Any) -> None:
        if self.in_two_steps:
            super().copy(stage, origin, k_origin)
            return
        s = self.shape
        k = Scalar(k_origin + T.truncmod(self.thread, self.pieces) * PIECE)()
        tap = Scalar(T.truncdiv(k, Scalar(s.ci_each)()))()
        channel = Scalar(k - tap * s.ci_each)()
        row = Scalar(T.truncdiv(tap, s.across.size))()
        y, x = Scalar(row * s.down.dilation)(), Scalar((tap - row * s.across.size) * s.across.dilation)()

        def piece(step: int, row: Any, piece: Any) -> Any:
            first, top, left = self.places[step]
            inside = tirx.all(0 <= top + y, top + y < s.h, 0 <= left + x, left + x < s.w, k < self.k)
            address = self.address(stage, row, piece)
            pixel = (first + top + y) * s.w + left + x
            return copy_piece(PIECE, address, self.slice, pixel, s.ci, channel, tirx.Select(inside, PIECE, 0))

        self._each(piece)

    def fetch(self, origin: Any, k_origin: Any) -> None:
        s = self.shape

        def piece(step: int, row: Any, piece: Any) -> Any:
            raw = T.address_of(self.raw[step * PIECE])
            return c_call(
                "void", "fetch_window", raw, self.slice, *self.places[step], k_origin + piece * PIECE, self.k,
                s.h, s.w, s.ci, s.ci_each, s.across.size, s.down.dilation, s.across.dilation,
                source=_FETCH_WINDOW,
            )  # fmt: skip

        self._each(piece)


class _Planes(Operand):
    """Pixels of NCHW images: a row is what one place of the kernel sees of a channel."""

    def __init__(self, array: Any, shape: ConvShape, block: int) -> None:
        super().__init__(array, _pixels(shape), _depth(shape), False, block, 1)
        self.shape = shape
        self.origin: Any = None

    def begin(self, thread: Any, threads: int) -> None:
        super().begin(thread, threads)
        s = self.shape
        self.pixel = Scalar(self.origin + T.truncmod(thread, self.pieces) * PIECE)()
        row = Scalar(T.truncdiv(self.pixel, Scalar(s.ow)()))()
        self.image = Scalar(T.truncdiv(row, Scalar(s.oh)()))()
        self.place_of = Scalar(row - self.image * s.oh)(), Scalar(self.pixel - row * s.ow)()

    def fetch(self, origin: Any, k_origin: Any) -> None:
        s, places = self.shape, self.shape.down.size * self.shape.across.size

        def piece(step: int, row: Any, piece: Any) -> Any:
            k = Scalar(k_origin + row)()
            channel = Scalar(T.truncdiv(k, places))()
            place = Scalar(k - channel * places)()
            y = T.truncdiv(place, s.across.size)
            top = y * s.down.dilation - s.down.before
            left = (place - y * s.across.size) * s.across.dilation - s.across.before
            raw = T.address_of(self.raw[step * PIECE])
            count = tirx.Select(k < self.k, self.extent - self.pixel, 0)
            return c_call(
                "void", "fetch_pixels", raw, self.slice, self.image * s.ci + channel, s.ci, *self.place_of,
                count, top, left, s.h, s.w, s.oh, s.ow, s.down.stride, s.across.stride, source=_FETCH_PIXELS,
            )  # fmt: skip

        self._each(piece)


class MmaConvKernel(MmaKernel):
    """`main(x, w, [bias], [residual], y)`; `a_vector` and `b_vector` of the tiles are those of `operands`."""

    def __init__(self, shape: ConvShape, dtype: str, tiles: MmaTiles) -> None:
        self.shape = shape
        m, n = _pixels(shape), shape.co_each
        if not shape.channels_last:
            m, n = n, m
        epilogue = shape.epilogue
        product = Product(
            m, n, _depth(shape), shape.groups, "none", dtype, False, True,
            epilogue.bias, epilogue.residual, epilogue.activation,
        )  # fmt: skip
        super().__init__(product, tiles)

    def module(self) -> IRModule:
        return conv_module(self.shape, self.product.dtype, self._begin, self._body)

    def _begin(self, arrays: dict[str, Any]) -> None:
        s, t = self.shape, self.tiles
        self.bias, self.residual, self.c = (arrays.get(name) for name in ("bias", "residual", "y"))
        weights = (arrays["w"], s.co_each, _depth(s), True)
        if s.channels_last:
            self.image: _Window | _Planes = _Window(arrays["x"], s, t.bm, t.a_vector)
            self.a, self.b = self.image, Operand(*weights, t.bn, t.b_vector)
        else:
            self.image = _Planes(arrays["x"], s, t.bn)
            self.a, self.b = Operand(*weights, t.bm, t.a_vector), self.image

    def _slice(self, operand: Operand, name: str) -> Any:
        s = self.shape
        if operand is not self.image:
            return slice_of(operand.array.data, self.item, s.co_each, operand.k, 2)
        self.image.origin = self.row if s.channels_last else self.column
        rows = 1 if s.channels_last else s.h * s.w
        return slice_of(operand.array.data, self.item, rows, s.ci_each, 2)

    def _store_pair(self, row: Any, column: Any, at: int) -> None:
        s, p = self.shape, self.product
        second = Scalar(tirx.min(column + 1, p.n - 1))()
        channels = [
            self.item * s.co_each + each for each in ((column, second) if s.channels_last else (row, row))
        ]
        first, other = (Scalar(self._index(row, each))() for each in (column, second))
        values = [
            Scalar(self._finished_at(self.sums[at + i], channels[i], (first, other)[i]), "float32")()
            for i in range(2)
        ]
        word = Scalar(pack(p.dtype, *values), "uint32")()
        with T.If(T.truncmod(s.co_each if s.channels_last else s.oh * s.ow, 2) == 0):
            with T.Then():
                store_pair_at(self.c, first, word)
            with T.Else():
                store_element(self.c, first, word)
                with when(column + 1 < p.n):
                    store_element(self.c, other, word >> T.uint32(16))

    def _index(self, row: Any, column: Any) -> Any:
        """Return the place of a result among all of y."""
        s = self.shape
        if s.channels_last:
            return row * s.co + self.item * s.co_each + column
        pixels = Scalar(s.oh * s.ow)()
        image = Scalar(T.truncdiv(column, pixels))()
        return (image * s.co + self.item * s.co_each + row) * pixels + column - image * pixels

    def _finished_at(self, value: Any, channel: Any, index: Any) -> Any:
        dtype = self.product.dtype
        if self.bias is not None:
            value = value + float_at(dtype, self.bias, channel)
        if self.residual is not None:
            value = value + float_at(dtype, self.residual, index)
        return activate(self.product.activation, value)


def _pixels(shape: ConvShape) -> Extent:
    return shape.n * shape.oh * shape.ow


def _depth(shape: ConvShape) -> Extent:
    return shape.ci_each * (shape.down.size * shape.across.size)


__all__ = ["BK", "MmaConvKernel"]
