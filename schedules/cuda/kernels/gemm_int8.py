"""The kernel of `Int8Gemm`: products of 8-bit integers with mma.sync, summed in int32, exactly.

It is that of 16-bit types (`kernels.gemm_mma`) on pairs of bytes: what ldmatrix gives a thread of
a, and of a b that lies along k, are the four neighbours along k that m16n8k32 takes. Of a b that
lies along n its transposing form gives two neighbours along k for each of two along n. Rows are
asked for in such an order that two matrices hold the four for both columns, which a byte
permutation puts together: of 16 columns one tile gets the even ones, the next the odd ones.

What zero points ask for are sums of b's columns and of a's rows. Threads add up what they multiply
(dp4a), where a zero point is not 0, and put the sums right at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.byte_pieces import BYTES, copy_bytes, fetch_bytes
from tvmops.schedules.cuda.kernels.gemm_mma import MmaKernel, MmaTiles
from tvmops.schedules.cuda.kernels.mma_operand import BK, Operand
from tvmops.schedules.cuda.kernels.product import Product
from tvmops.schedules.cuda.pieces import place_words
from tvmops.schedules.cuda.words import c_call, do, when

_DEPTH = 2 * BK  # bytes of k in a stage
_PTX = {"uint8": "u8", "int8": "s8"}
_ADD_FOUR = {
    "int8": """
__forceinline__ __device__ int add_four_int8(unsigned four, int sum) {
  return __dp4a(static_cast<int>(four), 0x01010101, sum);
}
""",
    "uint8": """
__forceinline__ __device__ int add_four_uint8(unsigned four, int sum) {
  return static_cast<int>(__dp4a(four, 0x01010101u, static_cast<unsigned>(sum)));
}
""",
}
_INTERLEAVE = """
__forceinline__ __device__ void interleave(unsigned* even, unsigned* odd, const unsigned* pairs) {
  const unsigned low = pairs[0], high = pairs[1];
  *even = __byte_perm(low, high, 0x6420);
  *odd = __byte_perm(low, high, 0x7531);
}
"""
_OF_QUAD = """
__forceinline__ __device__ int sum_of_quad(int sum) {
  sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
  return sum + __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
}
"""
_OF_LANE = """
__forceinline__ __device__ int value_of_lane(int value, int lane) {
  return __shfl_sync(0xFFFFFFFFu, value, lane, 32);
}
"""
_QUANTIZE = """
__forceinline__ __device__ int quantize(float value, float scale, float zero, float least, float most) {
  return static_cast<int>(fminf(fmaxf(rintf(value / scale) + zero, least), most));
}
"""
LIMITS = {"uint8": (0.0, 255.0), "int8": (-128.0, 127.0)}


def quantize(dtype: str, value: Any, scale: Any, zero: Any) -> Any:
    """Return `value` as the int32 that it becomes in `dtype`."""
    limits = map(T.float32, LIMITS[dtype])
    return c_call("int32", "quantize", value, scale, zero, *limits, source=_QUANTIZE)


@dataclass(frozen=True)
class Int8Product:
    """What is multiplied: sizes, how b lies, zero points, and what becomes of the sums."""

    m: Extent
    n: Extent
    k: Extent
    dtype: str  # of a
    trans_b: bool
    b_zero_points: str
    out_dtype: str
    by_channel: bool  # whether each column has a scale of its own
    bias: bool
    activation: str

    @property
    def in_pairs(self) -> Product:
        """The product of 16-bit elements that moves the same bytes."""
        pairs = -(-self.k // 2) if isinstance(self.k, int) else tirx.truncdiv(self.k + 1, 2)
        return Product(
            m=self.m, n=self.n, k=pairs, batch=1, shared="none", dtype="bfloat16", trans_a=False,
            trans_b=self.trans_b, bias=False, residual=False, activation="none",
        )  # fmt: skip


class _Bytes(Operand):
    """A factor of bytes: a tile of `block` rows, or columns, times `_DEPTH`."""

    words = BYTES // 4

    def __init__(self, array: Any, extent: Extent, k: Extent, k_inner: bool, block: int, vector: int) -> None:
        super().__init__(array, extent, k, k_inner, block, vector)
        self.pieces = (_DEPTH if k_inner else block) // BYTES  # of a row

    @property
    def rows(self) -> int:
        return self.block if self.k_inner else _DEPTH

    def address(self, stage: Any, row: Any, piece: Any) -> Any:
        """Return where a piece lies: what ldmatrix takes at once lies in different banks."""
        inside = row * (self.pieces * BYTES) + (piece ^ self._turn(row)) * BYTES
        return self.base + T.Cast("uint32", stage * self.stage_bytes + inside)

    def copy_piece(self, *place: Any) -> Any:
        return copy_bytes(self.vector, *place)

    def fetch_piece(self, raw: Any, *place: Any) -> Any:
        return fetch_bytes(raw, *place)

    def place_piece(self, to: Any, raw: Any) -> Any:
        return place_words(to, raw)

    def _turn(self, row: Any) -> Any:
        if self.k_inner:
            return row % 8
        fours = T.truncdiv(row, 4)  # rows are taken by two, four apart
        return row % 2 + fours % 4 * 2 if self.pieces >= 8 else fours % self.pieces

    def _found(self, row: Any, piece: Any, origin: Any, k_origin: Any) -> tuple[Any, ...]:
        depth = k_origin * 2  # which counts pairs
        if self.k_inner:
            y, x = origin + row, depth + piece * BYTES
            valid = tirx.Select(y < self.extent, self.k - x, 0)
        else:
            y, x = depth + row, origin + piece * BYTES
            valid = tirx.Select(y < self.k, self.extent - x, 0)
        return self.slice, y, self.row_length, x, valid


class Int8Kernel(MmaKernel):
    """`main(a, b, [b_zero_points], [b_scales], [bias], scalars..., c)`."""

    sum_dtype, itemsize = "uint32", 1  # as PTX has it in TVM: the bits are those of int32

    def __init__(self, product: Int8Product, tiles: MmaTiles, chained: bool = False) -> None:
        super().__init__(product.in_pairs, tiles, chained)
        self.own = product

    def module(self) -> IRModule:
        p, t = self.own, self.tiles
        with IRBuilder() as builder, T.prim_func():
            T.func_name("main")
            a = self._argument("a", p.dtype, p.m, p.k)
            b = self._argument("b", "int8", *((p.n, p.k) if p.trans_b else (p.k, p.n)))
            self.a = _Bytes(a, p.m, p.k, True, t.bm, t.a_vector)
            self.b = _Bytes(b, p.n, p.k, p.trans_b, t.bn, t.b_vector)
            columns = {
                "b_zero_points": (p.b_zero_points == "channel", "int32"),
                "b_scales": (p.by_channel, "float32"),
                "bias": (p.bias, "float32"),
            }
            self.columns = {
                name: self._argument(name, dtype, p.n)
                for name, (is_there, dtype) in columns.items()
                if is_there
            }
            names = ["a_zero_point"]
            names += ["b_zero_point"] if p.b_zero_points == "tensor" else []
            names += ["scale"] if p.out_dtype != "int32" else []
            names += ["out_scale", "out_zero_point"] if p.out_dtype in LIMITS else []
            self.scalars = {name: T.arg(name, T.float32()) for name in names}
            self.c = self._argument("c", p.out_dtype, p.m, p.n)
            T.device_entry()
            with T.attr({"tirx.launch_bounds_min_blocks_per_sm": 1}):
                self._body()
        return self._module_of(builder.get())

    def _argument(self, name: str, dtype: str, *shape: Extent) -> Any:
        align = 4 if dtype in ("int32", "float32") else 16
        return T.arg(name, T.buffer(shape, dtype, align=align, buffer_name=name))

    def _multiply_all(self) -> None:
        self.zero = T.Bind(T.Cast("int32", self.scalars["a_zero_point"]))
        self.of_columns = T.alloc_local((self.n_parts,), "int32")
        self.of_rows = T.alloc_local((2 * self.m_parts,), "int32")
        for sums, count in ((self.of_columns, self.n_parts), (self.of_rows, 2 * self.m_parts)):
            for i in range(count):
                T.buffer_store(sums, 0, [i])
        super()._multiply_all()

    # Factors of a step along k: 32 bytes.

    def _load_parts(self, stage: Any, k: int) -> None:
        super()._load_parts(stage, k)
        with when(self.zero != 0):
            for j in range(self.n_parts):
                for half in range(2):
                    self._add_four("int8", self.b_parts[j * 2 + half], self.of_columns, j)
        if self.own.b_zero_points != "none":
            for i in range(self.m_parts):
                for part in range(4):
                    self._add_four(self.own.dtype, self.a_parts[i * 4 + part], self.of_rows, i * 2 + part % 2)

    def _load_b(self, stage: Any, k: int) -> None:
        """Load b's columns by 16; across k two neighbours at a time, which are put together to four."""
        if self.b.k_inner:
            super()._load_b(stage, k)
            return
        lane, first = self.lane, self._warp_column()
        row = T.truncdiv(lane, 16) * 16 + T.truncdiv(lane, 8) % 2 * 2 + T.truncdiv(lane % 8, 2) * 4 + lane % 2
        pairs = T.alloc_local((4,), "uint32")
        for part in range(self.n_parts // 2):
            piece = T.truncdiv(first, BYTES) + part
            self._load(".trans", pairs, 0, self.b.address(stage, k * 32 + row, piece))
            for half in range(2):
                even, odd = (T.address_of(self.b_parts[part * 4 + tile * 2 + half]) for tile in range(2))
                words = T.address_of(pairs[half * 2])
                do(c_call("void", "interleave", even, odd, words, source=_INTERLEAVE))

    def _add_four(self, dtype: str, four: Any, sums: Any, at: int) -> None:
        total = c_call("int32", f"add_four_{dtype}", four, sums[at], source=_ADD_FOUR[dtype])
        T.buffer_store(sums, total, [at])

    def _instruction(self) -> str:
        return f"mma.sync.aligned.m16n8k32.row.col.s32.{_PTX[self.own.dtype]}.s8.s32"

    # The end: zero points, scales, results.

    def _store(self) -> None:
        p, lane = self.own, self.lane
        first_row = T.Bind(self.row + self._warp_row() + T.truncdiv(lane, 4))
        first_column = T.Bind(self.column + self._warp_column())
        for i in range(2 * self.m_parts):
            total = c_call("int32", "sum_of_quad", self.of_rows[i], source=_OF_QUAD)
            T.buffer_store(self.of_rows, total, [i])
        for j in range(self.n_parts):
            total = T.Bind(c_call("int32", "sum_of_quad", self.of_columns[j], source=_OF_QUAD))
            for e in range(2):
                of_column = T.Bind(
                    c_call("int32", "value_of_lane", total, (lane % 4 * 2 + e) * 4, source=_OF_LANE)
                )
                column = T.Bind(first_column + self._column_in_warp(j, e))
                with when(column < p.n):
                    for i in range(self.m_parts):
                        for half in range(2):
                            row = T.Bind(first_row + i * 16 + half * 8)
                            with when(row < p.m):
                                sums = self.sums[(i * self.n_parts + j) * 4 + half * 2 + e]
                                value = self._put_right(sums, of_column, self.of_rows[i * 2 + half], column)
                                T.buffer_store(self.c, self._finish(value, column), [row, column])

    def _column_in_warp(self, j: int, e: int) -> Any:
        """Return where the e-th of a thread's two columns of tile j lies among those of its warp."""
        if self.b.k_inner:
            return j * 8 + self.lane % 4 * 2 + e
        return j // 2 * 16 + self.lane % 4 * 4 + e * 2 + j % 2

    def _put_right(self, sums: Any, of_column: Any, of_row: Any, column: Any) -> Any:
        value = T.Cast("int32", sums) - self.zero * of_column
        if self.own.b_zero_points == "none":
            return value
        zero = (
            self.columns["b_zero_points"][column]
            if self.own.b_zero_points == "channel"
            else T.Cast("int32", self.scalars["b_zero_point"])
        )
        return value - zero * (of_row - self.own.k * self.zero)

    def _finish(self, sums: Any, column: Any) -> Any:
        p = self.own
        if p.out_dtype == "int32":
            return sums
        value = T.Cast("float32", sums) * self.scalars["scale"]
        if p.by_channel:
            value = value * self.columns["b_scales"][column]
        if p.bias:
            value = value + self.columns["bias"][column]
        value = activate(p.activation, value)
        if p.out_dtype == "float32":
            return value
        return T.Cast(
            p.out_dtype,
            quantize(p.out_dtype, value, self.scalars["out_scale"], self.scalars["out_zero_point"]),
        )
