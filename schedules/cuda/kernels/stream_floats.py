"""A 16-bit b in the frame of `stream`, given as rows of k or as rows of n.

Where the rows of b lie along k (b transposed), a lane's piece is eight values of k of one
column, which two products take as they are; four columns are side by side. Where they lie along n,
a piece is eight columns of one k, and pairs of pieces are woven into pairs of k.
"""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.kernels.product import Product
from tvmops.schedules.cuda.kernels.stream import StreamKernel, stream_at
from tvmops.schedules.cuda.kernels.stream_tiles import StreamForm, StreamTiles
from tvmops.schedules.cuda.pieces import PIECE
from tvmops.schedules.cuda.words import Scalar, c_call

_ALONG_K = StreamForm(unit=64, width=4, slots=8)
_ALONG_N = StreamForm(unit=32, width=8, slots=8)

_WEAVE = """
__forceinline__ __device__ unsigned weave(unsigned a, unsigned b, unsigned which) {
  return __byte_perm(a, b, which);
}
"""
_FIRSTS, _SECONDS = 0x5410, 0x7632  # of two pairs


def woven(a: Any, b: Any) -> list[Any]:
    """Return the pairs of first and of second halves of two words."""
    calls = [c_call("uint32", "weave", a, b, T.uint32(which), source=_WEAVE) for which in (_FIRSTS, _SECONDS)]
    return [Scalar(call, "uint32")() for call in calls]


def form_of(product: Product) -> StreamForm:
    return _ALONG_K if product.trans_b else _ALONG_N


class FloatStream(StreamKernel):
    """`main(a, b, [bias], [residual], c)` of two dimensions each."""

    operands: ClassVar = ("a", "b")
    product: Product

    def __init__(self, product: Product, tiles: StreamTiles) -> None:
        super().__init__(product, tiles)
        self.form = form_of(product)

    def _declare(self) -> None:
        p = self.product
        self.b = self._array("b", (p.n, p.k) if p.trans_b else (p.k, p.n))
        self.bias = self._array("bias", (p.n,)) if p.bias else None
        self.residual = self._array("residual", (p.m, p.n)) if p.residual else None

    def _array(self, name: str, shape: tuple[Any, ...]) -> Any:
        return T.arg(name, T.buffer(shape, self.product.dtype, align=16, buffer_name=name))

    def _begin(self) -> None:
        p = self.product
        self.n = T.Bind(Scalar(p.n)())
        self.depth = T.Bind(T.truncmod(self.lane, 4) * PIECE)  # of k, at which this lane's pieces begin

    def _load(self, slot: int, unit: Any) -> None:
        for span in range(self.tiles.spans):
            column = self.place.column + span * self.form.columns
            k = unit * self.form.unit + self.depth
            if self.product.trans_b:
                self._load_along_k(slot, span, column, k)
            else:
                self._load_along_n(slot, span, column, k)

    def _load_along_k(self, slot: int, span: int, column: Any, k: Any) -> None:
        """Read pieces in the order of steps of 32 values of k, then of columns."""
        for i in range(4):
            row = tirx.min(column + i, self.n - 1)  # those beyond the last read it too
            start = T.Bind(stream_at(self.b.data, row, self.k * 2, k * 2))
            for step in range(2):
                at = stream_at(start, 0, 0, step * 64)
                self._read(slot, span, step * 4 + i, at, T.Cast("int32", k + step * 32 < self.k))

    def _load_along_n(self, slot: int, span: int, column: Any, k: Any) -> None:
        start = T.Bind(stream_at(self.b.data, k, self.n * 2, tirx.min(column, self.n - PIECE) * 2))
        for i in range(8):
            at = stream_at(start, i, self.n * 2, 0)
            self._read(slot, span, i, at, T.Cast("int32", k + i < self.k))

    def _multiply(self, slot: int, unit: Any) -> None:
        for step in range(self.form.unit // 32):
            self._load_x(slot, step)
            for span in range(self.tiles.spans):
                for half in range(2):  # of the eight values of k
                    for tile in range(self.form.width // 2):
                        weights = self._pairs(slot, span, step, half, tile)
                        self._product(self.sums.totals, span, tile, weights, half)

    def _pairs(self, slot: int, span: int, step: int, half: int, tile: int) -> list[Any]:
        """Return two pairs of k of two neighbouring columns: first pairs, then second ones."""
        if self.product.trans_b:
            columns = [self._weight(slot, span, step * 4 + tile * 2 + i) + half * 2 for i in range(2)]
            return [self.weights[at + pair] for pair in range(2) for at in columns]
        pairs: list[Any] = []
        for pair in range(2):
            first = half * 4 + pair * 2
            two = [self.weights[self._weight(slot, span, first + i) + tile] for i in range(2)]
            pairs += woven(*two)
        return pairs

    def _finished(self, value: Any, row: Any, column: Any) -> Any:
        if self.bias is not None:
            value = value + T.Cast("float32", self.bias[column])
        if self.residual is not None:
            value = value + T.Cast("float32", self.residual[row, column])
        return activate(self.product.activation, value)
