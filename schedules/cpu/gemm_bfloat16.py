"""matmul of bfloat16 on words of two: `vdpbf16ps` where there is one, else float32 arithmetic.

Sums, bias, residual and activation are float32; results are rounded to nearest, ties to even.
`vdpbf16ps` takes denormal inputs and results for zeros, an absolute error of k * 2**-126 at most,
and does not raise the bound of the sum's error otherwise.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.dot import Dot, Value, bfloat16_dot, constant
from tvmops.schedules.cpu.dot_nest import DotBlocking, DotNest, Sizes
from tvmops.schedules.cpu.emit import Extent, load, refuse_overlap, store
from tvmops.schedules.cpu.epilogue import Epilogue
from tvmops.schedules.cpu.gemm_dot import GemmDot
from tvmops.signatures.layouts import PLAIN
from tvmops.signatures.words import COLUMNS
from tvmops.targets import Target
from tvmops.workloads import Workload


class CpuGemmBfloat16(GemmDot):
    name = "cpu.gemm_bfloat16"
    version = 1
    each = 2

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != "matmul" or target.kind != "cpu" or workload["dtype"] != "bfloat16":
            return False
        return workload["batch"] == 1 and not workload["trans_a"] and not workload["trans_b"]

    def dot(self, target: Target) -> Dot:
        return bfloat16_dot(target)

    def nest(self, workload: Workload, target: Target, sizes: Sizes, blocking: DotBlocking) -> DotNest:
        return _Nest(workload, target, sizes, blocking)


class _Nest(DotNest):
    def __init__(self, workload: Workload, target: Target, sizes: Sizes, blocking: DotBlocking) -> None:
        super().__init__(sizes, bfloat16_dot(target), 2, target.vector_width("int32"), blocking)
        self.epilogue = Epilogue.of(workload)
        self.is_packed = workload["packed"] != PLAIN

    def declare(self) -> None:
        b: tuple[Extent, ...] = (self.k, self.n)
        if self.is_packed:
            b = (-(-self.n // COLUMNS), self.words, COLUMNS * self.each)
        shapes: dict[str, tuple[Extent, ...]] = {"a": (self.m, self.k), "b": b}
        if self.epilogue.bias:
            shapes["bias"] = (self.n,)
        if self.epilogue.residual:
            shapes["residual"] = (self.m, self.n)
        handles = {name: T.arg(name, T.handle()) for name in (*shapes, "c")}
        # a caller's array may start at any element; bfloat16 goes as its bits
        self.inputs: dict[str, Any] = {
            name: T.match_buffer(handles[name], shape, "uint16", align=2) for name, shape in shapes.items()
        }
        self.a, self.b = self.inputs["a"], self.inputs["b"]
        self.c = T.match_buffer(handles["c"], (self.m, self.n), "uint16", align=2)
        refuse_overlap(self.c, self.inputs)

    def finish(
        self, row: Extent, column: Extent, total: Value, sums: Value | None, limit: Extent | None
    ) -> None:
        def loaded(name: str, *indices: Extent) -> Value:
            return widened(load(self.inputs[name], list(indices), column, self.width, limit), self.width)

        value = self.epilogue.apply(
            total, self.width, lambda: loaded("bias"), lambda: loaded("residual", row)
        )
        store(self.c, rounded(T.bind(value), self.width), [row], column, self.width, limit)


def widened(bits: Value, width: int) -> Value:
    """Return bfloat16, given as bits, as float32."""
    words = T.Cast(f"int32x{width}", bits)
    return T.reinterpret(f"float32x{width}", words << constant(16, words))


def rounded(value: Value, width: int) -> Value:
    """Return the bits of float32 values rounded to bfloat16: nearest, ties to even, NaN kept."""
    bits = T.bind(T.reinterpret(f"int32x{width}", value))
    odd = (bits >> constant(16, bits)) & constant(1, bits)
    nearest = bits + constant(0x7FFF, bits) + odd
    quiet = bits | constant(0x400000, bits)  # rounding the bits of a NaN could make it infinite
    size = bits & constant(0x7FFFFFFF, bits)
    chosen = tirx.Select(size > constant(0x7F800000, bits), quiet, nearest)
    return T.Cast(f"uint16x{width}", chosen >> constant(16, chosen))
