"""matmul of bfloat16 on words of two: `vdpbf16ps`, BFMMLA or BFDOT where there are, else float32 arithmetic.

Sums, bias, residual and activation are float32; results are rounded to nearest, ties to even.
These instructions take denormal inputs and results for zeros, an absolute error of k * 2**-126 at
most. ARM's round to odd, within a unit and not half of one, but each adds a sum of two products at
once: neither raises the bound of the sum's error.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.dot import Dot, Value
from tvmops.schedules.cpu.dot_nest import DotBlocking, DotNest, Operands
from tvmops.schedules.cpu.dot_sums import Sums
from tvmops.schedules.cpu.dots import bfloat16_dots
from tvmops.schedules.cpu.emit import Extent, refuse_overlap
from tvmops.schedules.cpu.epilogue import Epilogue
from tvmops.schedules.cpu.floats import argument, load_floats, store_floats
from tvmops.schedules.cpu.gemm_dot import GemmDot
from tvmops.signatures.layouts import PLAIN
from tvmops.targets import Target
from tvmops.workloads import Workload


class CpuGemmBfloat16(GemmDot):
    name = "cpu.gemm_bfloat16"
    version = 1
    each = 2

    def covers(self, workload: Workload, target: Target) -> bool:
        return workload.op == "matmul" and target.kind == "cpu" and workload["dtype"] == "bfloat16"

    def dots(self, target: Target) -> tuple[Dot, ...]:
        return bfloat16_dots(target)

    def nest(self, workload: Workload, target: Target, dot: Dot, blocking: DotBlocking) -> DotNest:
        return _Nest(workload, target, dot, blocking)


class _Nest(DotNest):
    def __init__(self, workload: Workload, target: Target, dot: Dot, blocking: DotBlocking) -> None:
        super().__init__(Operands.of(workload), dot, 2, target.vector_width("int32"), blocking)
        self.workload = workload
        self.epilogue = Epilogue.of(workload)
        self.is_packed = workload["packed"] != PLAIN

    def declare(self) -> None:
        result = self.operands.of_batch("", self.m, self.n)
        shapes = {
            "a": self.a_shape(),
            "b": self.b_shape(),
            "bias": (self.n,),
            "residual": result,
            "c": result,
        }
        dtypes = self.dtypes(self.workload)
        handles = {name: T.arg(name, T.handle()) for name in dtypes}
        buffers = {name: argument(handles[name], shapes[name], dtype) for name, dtype in dtypes.items()}
        self.c = buffers.pop("c")
        self.inputs: dict[str, Any] = buffers
        self.a, self.b = buffers["a"], buffers["b"]
        refuse_overlap(self.c, self.inputs)

    def finish(self, row: Extent, column: Extent, sums: Sums, limit: Extent | None) -> None:
        def loaded(name: str, indices: list[Extent]) -> Value:
            return load_floats(self.inputs[name], indices, column, self.width, limit)

        at = self.at("", row)
        value = self.epilogue.apply(
            sums.products, self.width, lambda: loaded("bias", []), lambda: loaded("residual", at)
        )
        store_floats(self.c, value, at, column, self.width, limit)
