"""matmul of bfloat16 on words of two: `vdpbf16ps` where there is one, else float32 arithmetic.

Sums, bias, residual and activation are float32; results are rounded to nearest, ties to even.
`vdpbf16ps` takes denormal inputs and results for zeros, an absolute error of k * 2**-126 at most,
and does not raise the bound of the sum's error otherwise.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.dot import Dot, Value, bfloat16_dot
from tvmops.schedules.cpu.dot_nest import DotBlocking, DotNest, Operands, Sums
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

    def dot(self, target: Target) -> Dot:
        return bfloat16_dot(target)

    def nest(self, workload: Workload, target: Target, blocking: DotBlocking) -> DotNest:
        return _Nest(workload, target, blocking)


class _Nest(DotNest):
    def __init__(self, workload: Workload, target: Target, blocking: DotBlocking) -> None:
        operands, width = Operands.of(workload), target.vector_width("int32")
        super().__init__(operands, bfloat16_dot(target), 2, width, blocking)
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
