"""matmul of bfloat16 on words of two: `vdpbf16ps` where there is one, else float32 arithmetic.

Sums, bias, residual and activation are float32; results are rounded to nearest, ties to even.
`vdpbf16ps` takes denormal inputs and results for zeros, an absolute error of k * 2**-126 at most,
and does not raise the bound of the sum's error otherwise.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.dot import Dot, Value, bfloat16_dot
from tvmops.schedules.cpu.dot_nest import DotBlocking, DotNest, Sizes
from tvmops.schedules.cpu.emit import Extent, refuse_overlap
from tvmops.schedules.cpu.epilogue import Epilogue
from tvmops.schedules.cpu.floats import argument, load_floats, store_floats
from tvmops.schedules.cpu.gemm_dot import GemmDot
from tvmops.signatures.dtypes import BFLOAT16
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
        self.inputs: dict[str, Any] = {
            name: argument(handles[name], shape, BFLOAT16) for name, shape in shapes.items()
        }
        self.a, self.b = self.inputs["a"], self.inputs["b"]
        self.c = argument(handles["c"], (self.m, self.n), BFLOAT16)
        refuse_overlap(self.c, self.inputs)

    def finish(
        self, row: Extent, column: Extent, total: Value, sums: Value | None, limit: Extent | None
    ) -> None:
        def loaded(name: str, *indices: Extent) -> Value:
            return load_floats(self.inputs[name], list(indices), column, self.width, limit)

        value = self.epilogue.apply(
            total, self.width, lambda: loaded("bias"), lambda: loaded("residual", row)
        )
        store_floats(self.c, value, [row], column, self.width, limit)
