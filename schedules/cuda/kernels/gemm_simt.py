"""The kernel of `SimtGemm`: matrix products without tensor cores, for any GPU.

A block multiplies tiles that lie in shared memory, k by k, as floats; each thread sums a tile of
its own in registers, made of blocks of four by four (V. Volkov and J. Demmel, Benchmarking GPUs
to Tune Dense Linear Algebra, SC 2008). While it multiplies, the next tiles come to registers,
element by element, along the rows of the arrays: any shape, transposition and alignment will do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, ceildiv
from tvmops.schedules.cuda.kernels.product import Product, finished
from tvmops.schedules.cuda.words import Scalar, c_call, do, slice_of, when

FOUR = 4  # neighbours of a thread: 16 bytes of floats
_BITS = {"float32": "unsigned", "float16": "unsigned short", "bfloat16": "unsigned short"}
_TO_FLOAT = {
    "float32": "__uint_as_float(e)",
    "float16": "__half2float(__ushort_as_half(e))",
    "bfloat16": "__uint_as_float(static_cast<unsigned>(e) << 16)",
}
_FETCH = """
#include <cuda_fp16.h>
__forceinline__ __device__ float fetch_{dtype}(const void* from, int row, int pitch, int column, int inside) {{
  if (!inside) return 0.0f;
  const {bits} e = __ldg(static_cast<const {bits}*>(from) + static_cast<long long>(row) * pitch + column);
  return {to_float};
}}
"""
_READ_FOUR = """
__forceinline__ __device__ void read_four(float* out, const void* from) {
  const uint4 four = *static_cast<const uint4*>(from);
  out[0] = __uint_as_float(four.x);
  out[1] = __uint_as_float(four.y);
  out[2] = __uint_as_float(four.z);
  out[3] = __uint_as_float(four.w);
}
"""


@dataclass(frozen=True)
class SimtTiles:
    bm: int
    bn: int
    bk: int
    tm: int  # rows of a thread
    tn: int

    @property
    def threads(self) -> int:
        return self.bm // self.tm * (self.bn // self.tn)

    @property
    def shared_bytes(self) -> int:
        return 2 * self.bk * (self.bm + self.bn + 2 * FOUR) * 4

    @property
    def registers(self) -> int:
        """Registers of a thread for sums, factors and what is read ahead."""
        ahead = self.bk * (self.bm + self.bn) // self.threads
        return self.tm * self.tn + self.tm + self.tn + ahead


def read_four(values: Any, at: int, memory: Any) -> None:
    """Read four neighbours in shared memory to `values`, from `at` on."""
    do(c_call("void", "read_four", T.address_of(values[at]), memory, source=_READ_FOUR))


class Factor:
    """One of the two: a tile of `bk` rows of `block` floats, and the registers that it comes through."""

    def __init__(
        self, array: Any, dtype: str, extent: Extent, k: Extent, k_inner: bool, block: int, own: int
    ) -> None:
        self.array, self.dtype, self.extent, self.k = array, dtype, extent, k
        self.k_inner, self.block, self.own = k_inner, block, own
        self.slice: Any = None

    @property
    def row_length(self) -> Extent:
        return self.k if self.k_inner else self.extent

    def begin(self, pool: Any, thread: Any, tiles: SimtTiles) -> None:
        self.hold(pool, thread, tiles, stages=2)
        self.steps = -(-self.block * tiles.bk // tiles.threads)
        self.ahead = T.alloc_local((self.steps,), "float32")

    def hold(self, pool: Any, thread: Any, tiles: SimtTiles, stages: int) -> None:
        """Take shared memory for tiles, and registers for a thread's own of a row."""
        pitch = self.block + FOUR  # lest a column lies in few banks
        self.tile = pool.alloc((stages, tiles.bk, pitch), "float32", align=16)
        self.thread, self.threads, self.bk = thread, tiles.threads, tiles.bk
        self.values = T.alloc_local((self.own,), "float32")

    def fetch(self, origin: Any, k_origin: Any) -> None:
        """Read a tile to registers; what lies beyond the array is 0."""
        source = _FETCH.format(dtype=self.dtype, bits=_BITS[self.dtype], to_float=_TO_FLOAT[self.dtype])

        def element(step: int, own: Any, k: Any) -> None:
            at, below = origin + own, k_origin + k
            inside = tirx.And(at < self.extent, below < self.k)
            row, column = (at, below) if self.k_inner else (below, at)
            value = c_call(
                "float32", f"fetch_{self.dtype}", self.slice, row, self.row_length, column,
                T.Cast("int32", inside), source=source,
            )  # fmt: skip
            T.buffer_store(self.ahead, value, [step])

        self._each(element)

    def place(self, half: Any) -> None:
        """Write what was read to shared memory."""
        self._each(lambda step, own, k: T.buffer_store(self.tile, self.ahead[step], [half, k, own]))

    def _each(self, do_element: Callable[[int, Any, Any], None]) -> None:
        """Do something for each element of this thread: its number, its place among its own, its k."""
        inner = self.bk if self.k_inner else self.block
        for step in range(self.steps):
            at = step * self.threads + self.thread
            outer, rest = T.truncdiv(at, inner), T.truncmod(at, inner)
            own, k = (outer, rest) if self.k_inner else (rest, outer)
            if (step + 1) * self.threads <= self.block * self.bk:
                do_element(step, own, k)
                continue
            with when(at < self.block * self.bk):
                do_element(step, own, k)

    def place_of(self, thread: Any, index: int) -> Any:
        """Return where the `index`-th of a thread's own lies in the block: fours, spread over it."""
        spread = self.block // self.own * FOUR
        return index // FOUR * spread + thread * FOUR + index % FOUR

    def read(self, half: Any, k: Any, thread: Any) -> None:
        for index in range(0, self.own, FOUR):
            memory = self.tile.ptr_to([half, k, self.place_of(thread, index)])
            read_four(self.values, index, memory)

    def value(self, k: int, index: int) -> Any:
        """Return the factor of the `index`-th of a thread's own, of the k that was read last."""
        return self.values[index]


class SimtKernel:
    """`main(a, b, [bias], [residual], c)`; `dtypes` are those of the operands, the bias and the result."""

    align, beside = 4, 1  # bytes that arrays of float32 begin at a multiple of; blocks of a multiprocessor

    def __init__(self, product: Product, tiles: SimtTiles, bias_dtype: str, out_dtype: str) -> None:
        self.product, self.tiles = product, tiles
        self.bias_dtype, self.out_dtype = bias_dtype, out_dtype

    def module(self) -> IRModule:
        p = self.product
        with IRBuilder() as builder, T.prim_func():
            T.func_name("main")
            a = self._array("a", (p.k, p.m) if p.trans_a else (p.m, p.k), p.dtype, "a")
            b = self._array("b", (p.n, p.k) if p.trans_b else (p.k, p.n), p.dtype, "b")
            self.a, self.b = self.factors(a, b)
            bias = T.buffer((p.n,), self.bias_dtype, align=2, buffer_name="bias") if p.bias else None
            self.bias = T.arg("bias", bias) if bias is not None else None
            self.residual = self._array("residual", (p.m, p.n), self.out_dtype) if p.residual else None
            self.c = self._array("c", (p.m, p.n), self.out_dtype)
            T.device_entry()
            with T.attr({"tirx.launch_bounds_min_blocks_per_sm": self.beside}):
                self._body()
        return IRModule({"main": builder.get().with_attr("global_symbol", "main")})

    def _array(self, name: str, matrix: tuple[Extent, Extent], dtype: str, operand: str = "") -> Any:
        p = self.product
        shape = (p.batch, *matrix) if p.is_batched and p.shared != operand else matrix
        align = self.align if dtype == "float32" else 2
        return T.arg(name, T.buffer(shape, dtype, align=align, buffer_name=name))

    def factors(self, a: Any, b: Any) -> tuple[Factor, Factor]:
        p, t = self.product, self.tiles
        return (
            Factor(a, p.dtype, p.m, p.k, not p.trans_a, t.bm, t.tm),
            Factor(b, p.dtype, p.n, p.k, p.trans_b, t.bn, t.tn),
        )

    def reserve(self, pool: Any) -> None:
        """Take shared memory beside that of the factors."""

    def place(self, warp: Any, lane: Any) -> tuple[Any, Any]:
        """Return where a thread stands among those that have other rows, and columns."""
        across, thread = self.tiles.bn // self.tiles.tn, warp * 32 + lane
        return T.truncdiv(thread, across), T.truncmod(thread, across)

    def _tile(self, count: Any) -> Any:
        """Launch blocks for so many tiles; return the number of this one's."""
        return T.cta_id([count])

    def _body(self) -> None:
        p, t = self.product, self.tiles
        block = self._tile(ceildiv(p.m, t.bm) * ceildiv(p.n, t.bn) * p.batch)
        warp, lane = T.warp_id([t.threads // 32]), T.lane_id([32])
        thread = T.Bind(warp * 32 + lane)
        # Through variables, lest what the launch computes becomes arguments of the kernel.
        rows, columns = (
            T.Bind(T.truncdiv(Scalar(size)() + (tile - 1), tile)) for size, tile in ((p.m, t.bm), (p.n, t.bn))
        )
        self.item = T.Bind(T.truncdiv(block, rows * columns))
        at = T.Bind(T.truncmod(block, rows * columns))
        self.row, self.column = T.Bind(T.truncdiv(at, columns) * t.bm), T.Bind(T.truncmod(at, columns) * t.bn)
        self.ty, self.tx = (T.Bind(each) for each in self.place(warp, lane))
        pool = SMEMPool()
        for each, name in ((self.a, "a"), (self.b, "b")):
            each.begin(pool, thread, t)
            index = 0 if not p.is_batched or p.shared == name else self.item
            rows_of = each.extent if each.k_inner else each.k
            item = 4 if p.dtype == "float32" else 2
            each.slice = T.Bind(slice_of(each.array.data, index, rows_of, each.row_length, item))
        self.reserve(pool)
        pool.commit()
        self.sums = T.alloc_local((t.tm * t.tn,), "float32")
        for i in range(t.tm * t.tn):
            T.buffer_store(self.sums, T.float32(0), [i])
        self._multiply_all()
        self._store()

    def _multiply_all(self) -> None:
        t = self.tiles
        steps = T.truncdiv(Scalar(self.product.k)() + (t.bk - 1), t.bk)
        factors = ((self.a, self.row), (self.b, self.column))
        for each, origin in factors:
            each.fetch(origin, 0)
            each.place(0)
        with T.serial(steps) as step:
            do(T.cuda.cta_sync())
            ahead = step + 1
            with when(ahead < steps):
                for each, origin in factors:
                    each.fetch(origin, ahead * t.bk)
            for k in range(t.bk):
                self.a.read(step % 2, k, self.ty)
                self.b.read(step % 2, k, self.tx)
                self._multiply(k)
            with when(ahead < steps):
                for each, _ in factors:
                    each.place(ahead % 2)

    def _multiply(self, k: int) -> None:
        for i in range(self.tiles.tm):
            for j in range(self.tiles.tn):
                self._multiply_one(k, i, j)

    def _multiply_one(self, k: int, i: int, j: int) -> None:
        at = i * self.tiles.tn + j
        T.buffer_store(self.sums, self.sums[at] + self.a.value(k, i) * self.b.value(k, j), [at])

    def _store(self) -> None:
        p, t = self.product, self.tiles
        for i in range(t.tm):
            row = self.row + self.a.place_of(self.ty, i)
            with when(row < p.m):
                place = [self.item, row] if p.is_batched else [row]
                for j in range(t.tn):
                    column = self.column + self.b.place_of(self.tx, j)
                    with when(column < p.n):
                        value = finished(p, self.bias, self.residual, self.sums[i * t.tn + j], place, column)
                        T.buffer_store(self.c, T.Cast(self.out_dtype, value), [*place, column])
