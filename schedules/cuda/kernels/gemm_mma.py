"""The kernel of `MmaGemm`: matrix products with mma.sync, for GPUs from compute capability 8.0 on.

A ring of shared-memory stages is filled by cp.async, 16 bytes a piece, swizzled so that
ldmatrix meets no bank twice; warps multiply from there (m16n8k16), float32 inside. Rows that
do not begin at a multiple of 16 bytes are copied by 8 or 4 bytes, or, where they begin at any
element, through registers. Bias, residual and activation are applied to the sums in registers.
m, n, k and the batch are known at run time alone.
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
from tvmops.schedules.cuda.kernels.mma_operand import BK, Operand
from tvmops.schedules.cuda.kernels.product import Product, finished
from tvmops.schedules.cuda.words import (
    PROGRAMMATIC_LAUNCH,
    PTX_TYPES,
    Scalar,
    c_call,
    do,
    pack,
    ptx,
    slice_of,
    wait_and_let_next_begin,
    when,
)

STORE_PAIR = """
__forceinline__ __device__ void store_pair(void* memory, unsigned pair) {
  *static_cast<unsigned*>(memory) = pair;
}
"""


@dataclass(frozen=True)
class MmaTiles:
    bm: int
    bn: int
    warps_m: int
    warps_n: int
    stages: int
    a_vector: int  # elements that every row of a begins at a multiple of
    b_vector: int
    group: int = 8  # rows of tiles that are walked together, column by column

    @property
    def warps(self) -> int:
        return self.warps_m * self.warps_n

    @property
    def wm(self) -> int:
        """Rows of a warp."""
        return self.bm // self.warps_m

    @property
    def wn(self) -> int:
        return self.bn // self.warps_n

    @property
    def shared_bytes(self) -> int:
        return self.stages * (self.bm + self.bn) * BK * 2

    @property
    def registers(self) -> int:
        """Registers of a thread for sums, and for what is read ahead."""
        vectors = ((self.bm, self.a_vector), (self.bn, self.b_vector))
        raw = sum(-(-size * BK // (32 * self.warps)) for size, vector in vectors if vector == 1)
        return self.wm * self.wn // 32 + raw


class MmaKernel:
    """`main(a, b, [bias], [residual], c)`."""

    operand: Callable[..., Operand] = Operand
    sum_dtype, itemsize, bias_align = "float32", 2, 2  # bytes of an element

    def __init__(self, product: Product, tiles: MmaTiles, chained: bool = False) -> None:
        self.given, self.tiles, self.chained = product, tiles, chained
        self.product = product  # what is multiplied of it, in elements of 16 bits
        self.threads = 32 * tiles.warps
        self.m_parts, self.n_parts = tiles.wm // 16, tiles.wn // 8

    def module(self) -> IRModule:
        p, t = self.given, self.tiles
        with IRBuilder() as builder, T.prim_func():
            T.func_name("main")
            a = self._array("a", (p.k, p.m) if p.trans_a else (p.m, p.k), "a")
            b = self._array("b", (p.n, p.k) if p.trans_b else (p.k, p.n), "b")
            self.a = self.operand(a, p.m, p.k, not p.trans_a, t.bm, t.a_vector)
            self.b = self.operand(b, p.n, p.k, p.trans_b, t.bn, t.b_vector)
            bias = T.buffer((p.n,), p.dtype, align=self.bias_align, buffer_name="bias") if p.bias else None
            self.bias = T.arg("bias", bias) if bias is not None else None
            self.residual = self._array("residual", (p.m, p.n)) if p.residual else None
            self.c = self._array("c", (p.m, p.n))
            T.device_entry()
            with T.attr({"tirx.launch_bounds_min_blocks_per_sm": 1}):
                self._body()
        return self._module_of(builder.get())

    def _module_of(self, function: tirx.PrimFunc) -> IRModule:
        launched = function.with_attr(*PROGRAMMATIC_LAUNCH) if self.chained else function
        return IRModule({"main": launched.with_attr("global_symbol", "main")})

    def _array(self, name: str, matrix: tuple[Extent, Extent], operand: str = "") -> Any:
        p = self.product
        shape = (p.batch, *matrix) if p.is_batched and p.shared != operand else matrix
        return T.arg(name, T.buffer(shape, p.dtype, align=16, buffer_name=name))

    def _body(self) -> None:
        p, t = self.product, self.tiles
        block = T.cta_id([ceildiv(p.m, t.bm) * ceildiv(p.n, t.bn) * p.batch])
        self.warp, self.lane = T.warp_id([t.warps]), T.lane_id([32])
        self.thread = self.warp * 32 + self.lane
        # Through variables, lest what the launch computes becomes arguments of the kernel.
        rows, columns = (
            T.Bind(T.truncdiv(Scalar(size)() + (tile - 1), tile)) for size, tile in ((p.m, t.bm), (p.n, t.bn))
        )
        self._locate(block, rows, columns)
        pool = SMEMPool()
        self._share(pool)
        pool.commit()
        for each, name in ((self.a, "a"), (self.b, "b")):
            each.base = Scalar(T.cuda.cvta_generic_to_shared(each.ring.ptr_to([0])), "uint32")()
            each.slice = T.Bind(self._slice(each, name))
            each.begin(self.thread, self.threads)
        if self.chained:
            self._wait()
        self.sums = T.alloc_local((self.m_parts * self.n_parts * 4,), self.sum_dtype)
        self.a_parts = T.alloc_local((self.m_parts * 4,), "uint32")
        self.b_parts = T.alloc_local((self.n_parts * 2,), "uint32")
        for i in range(self.m_parts * self.n_parts * 4):
            T.buffer_store(self.sums, tirx.const(0, self.sum_dtype), [i])
        self._multiply_all()
        self._store()

    def _share(self, pool: Any) -> None:
        """Take shared memory."""
        for each in (self.a, self.b):
            each.ring = pool.alloc((self.tiles.stages * each.stage_bytes,), "uint8", align=128)

    def _slice(self, operand: Operand, name: str) -> Any:
        """Return where the matrix of this block's item begins."""
        p = self.product
        index = 0 if not p.is_batched or p.shared == name else self.item
        rows = operand.extent if operand.k_inner else operand.k
        return slice_of(operand.array.data, index, rows, operand.row_length, self.itemsize)

    def _locate(self, block: Any, rows: Any, columns: Any) -> None:
        """Find this block's tile: bands of `group` rows of tiles, column by column."""
        group, keep = self.tiles.group, self._keep
        self.item = keep(T.truncdiv(block, rows * columns))
        at = keep(T.truncmod(block, rows * columns))
        band = keep(T.truncdiv(at, group * columns))
        rest = keep(at - band * (group * columns))
        height = keep(tirx.min(rows - band * group, group))
        self.row = keep((band * group + T.truncmod(rest, height)) * self.tiles.bm)
        self.column = keep(T.truncdiv(rest, height) * self.tiles.bn)

    def _keep(self, value: Any) -> Any:
        """Name a value of the tile's place."""
        return T.Bind(value)

    def _wait(self) -> None:
        wait_and_let_next_begin()

    def _multiply_all(self) -> None:
        stages, steps = self.tiles.stages, ceildiv(self.product.k, BK)
        operands = ((self.a, self.row), (self.b, self.column))
        for stage in range(stages - 1):
            with when(stage < steps):
                for each, origin in operands:
                    each.copy(stage, origin, stage * BK)
            ptx("cp.async.commit_group")
        use, fill = Scalar(0), Scalar(stages - 1)
        with T.serial(steps) as step:
            ptx("cp.async.wait_group", stages - 2)
            do(T.cuda.cta_sync())
            ahead = step + (stages - 1)
            with when(ahead < steps):
                for each, origin in operands:
                    if not each.in_two_steps:
                        each.copy(fill(), origin, ahead * BK)
            ptx("cp.async.commit_group")
            for each, origin in operands:  # beyond the end of k these are zeros that nobody reads
                if each.in_two_steps:
                    each.fetch(origin, ahead * BK)
            for k in range(BK // 16):
                self._load_parts(use(), k)
                self._multiply()
            for each, _ in operands:
                if each.in_two_steps:
                    each.place(fill())
            for at in (use, fill):
                at.set(tirx.Select(at() == stages - 1, 0, at() + 1))
        ptx("cp.async.wait_group", 0)

    def _load_parts(self, stage: Any, k: int) -> None:
        """Load a warp's factors, 16 along k."""
        self._load_a(stage, k)
        self._load_b(stage, k)

    def _warp_row(self) -> Any:
        return T.truncdiv(self.warp, self.tiles.warps_n) * self.tiles.wm

    def _warp_column(self) -> Any:
        return T.truncmod(self.warp, self.tiles.warps_n) * self.tiles.wn

    def _places(self) -> tuple[Any, Any, Any, Any]:
        """Return where a thread's row of the four matrices lies, along a's rows and along b's."""
        lane = self.lane
        return lane % 16, T.truncdiv(lane, 16), T.truncdiv(lane, 8) % 2, T.truncdiv(lane, 16) * 8 + lane % 8

    def _load_a(self, stage: Any, k: int) -> None:
        """Load a's rows by 16."""
        low, high, inner, outer = self._places()
        for part in range(self.m_parts):
            first = self._warp_row() + part * 16
            if self.a.k_inner:
                address, how = self.a.address(stage, first + low, k * 2 + high), ""
            else:
                piece = T.truncdiv(first, 8) + inner
                address, how = self.a.address(stage, k * 16 + outer, piece), ".trans"
            self._load(how, self.a_parts, part * 4, address)

    def _load_b(self, stage: Any, k: int) -> None:
        """Load b's columns by 16."""
        low, high, inner, outer = self._places()
        for part in range(self.n_parts // 2):
            first = self._warp_column() + part * 16
            if self.b.k_inner:
                address, how = self.b.address(stage, first + outer, k * 2 + inner), ""
            else:
                piece = T.truncdiv(first, 8) + high
                address, how = self.b.address(stage, k * 16 + low, piece), ".trans"
            self._load(how, self.b_parts, part * 4, address)

    def _load(self, how: str, registers: Any, at: int, address: Any) -> None:
        ptx(f"ldmatrix.sync.aligned.m8n8.x4{how}.shared.b16", *(registers[at + i] for i in range(4)), address)

    def _multiply(self) -> None:
        instruction = self._instruction()
        for i in range(self.m_parts):
            for j in range(self.n_parts):
                own = [self.sums[(i * self.n_parts + j) * 4 + x] for x in range(4)]
                ptx(
                    instruction,
                    *own, *(self.a_parts[i * 4 + x] for x in range(4)),
                    self.b_parts[j * 2], self.b_parts[j * 2 + 1], *own,
                )  # fmt: skip

    def _instruction(self) -> str:
        kind = PTX_TYPES[self.product.dtype]
        return f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32"

    # The end: sums in registers, two neighbours of a row at a time.

    def _store(self) -> None:
        lane = self.lane
        row = self.row + self._warp_row() + T.truncdiv(lane, 4)
        column = self.column + self._warp_column() + lane % 4 * 2
        row, column = T.Bind(row), T.Bind(column)
        for j in range(self.n_parts):
            with when(column + j * 8 < self.product.n):
                for i in range(self.m_parts):
                    for half in range(2):
                        with when(row + i * 16 + half * 8 < self.product.m):
                            at = (i * self.n_parts + j) * 4 + half * 2
                            self._store_pair(row + i * 16 + half * 8, column + j * 8, at)

    def _store_pair(self, row: Any, column: Any, at: int) -> None:
        p = self.product
        place = [self.item, T.Cast("int64", row)] if p.is_batched else [T.Cast("int64", row)]
        second = tirx.min(column + 1, p.n - 1)
        values = [
            Scalar(finished(p, self.bias, self.residual, self.sums[at + i], place, each), "float32")()
            for i, each in enumerate((column, second))
        ]
        with T.If(T.truncmod(p.n, 2) == 0):
            with T.Then():
                pair = pack(p.dtype, *values)
                do(c_call("void", "store_pair", self.c.ptr_to([*place, column]), pair, source=STORE_PAIR))
            with T.Else():
                T.buffer_store(self.c, T.Cast(p.dtype, values[0]), [*place, column])
                with when(column + 1 < p.n):
                    T.buffer_store(self.c, T.Cast(p.dtype, values[1]), [*place, column + 1])
