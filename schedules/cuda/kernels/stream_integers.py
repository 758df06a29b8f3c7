"""Weights of 4 and 8 bits in the frame of `stream`: made floats in registers, scaled group by group.

A lane's piece, four columns of eight or four values of k as `WeightGroups` packs them, is what
it multiplies: two panels of 16 columns are a span, and 32 values of k two products.
"""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import ceildiv
from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.dequantize import Dequantizer, pair_up
from tvmops.schedules.cuda.kernels.column_sums import zeros
from tvmops.schedules.cuda.kernels.stream import StreamKernel, stream_at
from tvmops.schedules.cuda.kernels.stream_tiles import StreamForm, StreamTiles
from tvmops.schedules.cuda.weight_only_product import BK, STEP, WeightOnlyProduct
from tvmops.schedules.cuda.words import Scalar, when

_ROW_BYTES = 64  # of packed weights
_COLUMNS = 16  # of a panel


def form_of(product: WeightOnlyProduct) -> StreamForm:
    return StreamForm(unit=BK, width=4, slots=product.slots)


class IntegerStream(StreamKernel):
    """`main(x, w, [bias], c)`."""

    operands: ClassVar = ("x", "w")
    product: WeightOnlyProduct

    def __init__(self, product: WeightOnlyProduct, tiles: StreamTiles) -> None:
        super().__init__(product, tiles)
        self.form = form_of(product)
        self.dequantizer = Dequantizer(product.groups.bits, product.dtype)

    def _declare(self) -> None:
        p = self.product
        panels, rows = ceildiv(p.n, _COLUMNS), ceildiv(p.k, p.groups.group) * p.groups.rows
        self.w = T.arg("w", T.buffer((panels, rows, _ROW_BYTES), "uint8", align=16, buffer_name="w"))
        bias = T.buffer((p.n,), p.dtype, align=2, buffer_name="bias") if p.bias else None
        self.bias = T.arg("bias", bias) if bias is not None else None

    def _begin(self) -> None:
        p, t, lane = self.product, self.tiles, self.lane
        groups = T.truncdiv(Scalar(p.k)() + (p.groups.group - 1), p.groups.group)
        pitch = T.Bind(groups * (p.groups.rows * _ROW_BYTES))  # bytes of a panel
        last = T.Bind(T.truncdiv(Scalar(p.n)() - 1, _COLUMNS))  # panel; those beyond it read it too
        across, down = T.truncdiv(lane, 4) % 4 * 16, T.truncmod(lane, 4) * (p.words * _ROW_BYTES)
        panel = T.truncdiv(self.span, _COLUMNS) + T.truncdiv(lane, 16)
        self.starts = []  # of heads and of rows, for each span
        for span in range(t.spans):
            there = tirx.min(panel + span * (self.form.columns // _COLUMNS), last)
            heads = T.Bind(stream_at(self.w.data, there, pitch, across))
            self.starts.append((heads, T.Bind(_after(heads, down))))
        self.group_sums = zeros(self.shape.registers)
        self.pairs = T.alloc_local((16,), "uint32")  # of weights: four columns of eight values of k

    def _load(self, slot: int, unit: Any) -> None:
        p, layout = self.product, self.product.groups
        group = T.truncdiv(unit * BK, layout.group) * (layout.rows * _ROW_BYTES)
        skipped = T.truncdiv(T.truncmod(unit * BK, layout.group), layout.step) * _ROW_BYTES
        for span, starts in enumerate(self.starts):
            heads, rows = (T.Bind(_after(at, group + more)) for at, more in zip(starts, (0, skipped)))
            number = 0
            for index, begin in enumerate(range(0, BK, p.group)):
                with when(unit * BK + begin < p.k):
                    first = index * layout.rows
                    for head in range(p.heads):
                        self._read(slot, span, number + head, _after(heads, (first + head) * _ROW_BYTES))
                    for step in range(p.group // STEP):
                        for word in range(p.words):
                            row = first + p.heads + step * (STEP // layout.step) + word
                            at = number + p.heads + step * p.words + word
                            self._read(slot, span, at, _after(rows, row * _ROW_BYTES))
                number += p.heads + p.group // STEP * p.words

    def _multiply(self, slot: int, unit: Any) -> None:
        p = self.product
        per_group = p.heads + p.group // STEP * p.words
        for index, begin in enumerate(range(0, BK, p.group)):
            with when(unit * BK + begin < p.k):
                self._multiply_group(slot, index, index * per_group)

    def _multiply_group(self, slot: int, index: int, number: int) -> None:
        p, spans = self.product, range(self.tiles.spans)
        steps = p.group // STEP
        terms = [self._terms(slot, span, number) for span in spans]
        for step in range(steps):
            self._load_x(slot, index * steps + step)
            if p.groups.bits == 4:
                for part in range(self.shape.parts):
                    pair_up(self.xs, part * 4)
            for span in spans:
                self._expand(slot, span, number + p.heads + step * p.words, terms[span])
                for half in range(2):  # of the eight values of k
                    for tile in range(2):  # of columns: 0 and 1, 2 and 3 of each piece
                        left, right = tile * 8 + half * 2, tile * 8 + 4 + half * 2
                        weights = [self.pairs[at] for at in (left, right, left + 1, right + 1)]
                        begins = step == 0 and half == 0
                        self._product(self.group_sums, span, tile, weights, half, begins)
        for span in spans:
            self._scale(span, self._weight(slot, span, number))

    def _terms(self, slot: int, span: int, number: int) -> list[list[Any]]:
        """Return for each of four columns what makes floats of its integers."""
        p = self.product
        if not p.groups.has_zero_points:
            return [self.dequantizer.terms(T.float32(p.groups.zero))] * 4
        dtype = "float32" if p.groups.bits == 8 and p.dtype == "bfloat16" else "uint32"
        terms = []
        for column in range(4):
            zero = tirx.reinterpret("float32", self.weights[self._weight(slot, span, number + 1) + column])
            terms.append([Scalar(term, dtype)() for term in self.dequantizer.terms(zero)])
        return terms

    def _expand(self, slot: int, span: int, number: int, terms: list[list[Any]]) -> None:
        at = [self._weight(slot, span, number + word) for word in range(self.product.words)]
        for column in range(4):
            words = [self.weights[each + column] for each in at]
            self.dequantizer.expand(self.pairs, column * 4, words, terms[column])

    def _scale(self, span: int, scales: int) -> None:
        """Add a group's sums to the totals."""
        totals = self.sums.totals
        for part in range(self.shape.parts):
            for tile in range(2):
                for i in range(4):
                    at = self.shape.at(span, tile, part) + i
                    scale = tirx.reinterpret("float32", self.weights[scales + tile * 2 + i // 2])
                    T.buffer_store(totals, totals[at] + scale * self.group_sums[at], [at])

    def _finished(self, value: Any, row: Any, column: Any) -> Any:
        if self.bias is not None:
            value = value + T.Cast("float32", self.bias[column])
        return activate(self.product.activation, value)


def _after(pointer: Any, nbytes: Any) -> Any:
    return stream_at(pointer, 0, 0, nbytes)
