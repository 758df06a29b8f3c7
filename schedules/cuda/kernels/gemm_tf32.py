"""The kernel of `Tf32Mma`: products of float32 with mma.sync, of factors 10 bits of mantissa (tf32).

It is that of 16-bit types (`kernels.gemm_mma`), each float in the place of two: what ldmatrix gives a
thread of a factor that lies along k is what m16n8k8 takes. Of one that does not, a thread reads its
floats one by one, in such places that a warp meets no bank twice. The instruction leaves out the
bits that tf32 has no room for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.byte_pieces import BYTES, copy_bytes
from tvmops.schedules.cuda.kernels.gemm_mma import MmaKernel, MmaTiles
from tvmops.schedules.cuda.kernels.mma_operand import BK, Operand
from tvmops.schedules.cuda.kernels.product import Product, finished
from tvmops.schedules.cuda.words import Scalar, c_call, when

_ITEM = 4  # bytes of an element
_DEPTH = 2 * BK // _ITEM  # k of a stage
_LOAD_WORD = """
__forceinline__ __device__ unsigned load_shared_word(unsigned from) {
  unsigned word;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(from) : "memory");
  return word;
}
"""


class _Floats(Operand):
    """A factor: a tile of `block` rows, or columns, times `_DEPTH`; places count bytes."""

    def __init__(self, array: Any, extent: Extent, k: Extent, k_inner: bool, block: int, vector: int) -> None:
        super().__init__(array, extent, k, k_inner, block, vector)
        self.pieces = (_DEPTH if k_inner else block) * _ITEM // BYTES  # of a row

    @property
    def rows(self) -> int:
        return self.block if self.k_inner else _DEPTH

    @property
    def row_length(self) -> Extent:
        return super().row_length * _ITEM

    def address(self, stage: Any, row: Any, piece: Any) -> Any:
        turn = row % 8 if self.k_inner else row % 4 * 2 % self.pieces
        inside = row * (self.pieces * BYTES) + (piece ^ turn) * BYTES
        return self.base + T.Cast("uint32", stage * self.stage_bytes + inside)

    def word(self, stage: Any, k: Any, own: Any) -> Any:
        """Return the element of a tile that does not lie along k."""
        address = self.address(stage, k, T.truncdiv(own, 4)) + T.Cast("uint32", own % 4 * _ITEM)
        return c_call("uint32", "load_shared_word", address, source=_LOAD_WORD)

    def copy_piece(self, *place: Any) -> Any:
        return copy_bytes(self.vector, *place)

    def _found(self, row: Any, piece: Any, origin: Any, k_origin: Any) -> tuple[Any, ...]:
        if self.k_inner:
            y, x = origin + row, k_origin * 2 + piece * BYTES  # which counts halves of elements
            valid = tirx.Select(y < self.extent, self.row_length - x, 0)
        else:
            y, x = T.truncdiv(k_origin, 2) + row, origin * _ITEM + piece * BYTES
            valid = tirx.Select(y < self.k, self.row_length - x, 0)
        return self.slice, y, self.row_length, x, valid


class Tf32Kernel(MmaKernel):
    """`main(a, b, [bias], [residual], c)`."""

    operand = _Floats
    itemsize, bias_align = 1, 4  # what `_Floats` counts is bytes
    a: _Floats
    b: _Floats

    def __init__(self, product: Product, tiles: MmaTiles, chained: bool = False) -> None:
        super().__init__(product, tiles, chained)
        self.product = replace(product, k=product.k * 2)

    def _keep(self, value: Any) -> Any:
        return Scalar(value)()  # a variable: what has a name alone is divided again at each use

    def _load_a(self, stage: Any, k: int) -> None:
        if self.a.k_inner:
            super()._load_a(stage, k)
            return
        for part in range(self.m_parts):
            own = self._warp_row() + part * 16 + T.truncdiv(self.lane, 4)
            for i in range(4):
                word = self.a.word(stage, k * 8 + i // 2 * 4 + self.lane % 4, own + i % 2 * 8)
                T.buffer_store(self.a_parts, word, [part * 4 + i])

    def _load_b(self, stage: Any, k: int) -> None:
        if self.b.k_inner:
            super()._load_b(stage, k)
            return
        for part in range(self.n_parts):
            own = self._warp_column() + part * 8 + T.truncdiv(self.lane, 4)
            for i in range(2):
                word = self.b.word(stage, k * 8 + i * 4 + self.lane % 4, own)
                T.buffer_store(self.b_parts, word, [part * 2 + i])

    def _instruction(self) -> str:
        return "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"

    def _store_pair(self, row: Any, column: Any, at: int) -> None:
        p = self.product
        place = [self.item, T.Cast("int64", row)] if p.is_batched else [T.Cast("int64", row)]
        for i in range(2):
            each = Scalar(column + i)()
            with when(each < p.n):
                value = finished(p, self.bias, self.residual, self.sums[at + i], place, each)
                T.buffer_store(self.c, value, [*place, each])
