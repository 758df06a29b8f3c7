"""matmul_int8 on words of four, by the instructions of `tvmops.schedules.cpu.dots`.

They want the left values unsigned, so that 128 is added to an a of int8; or signed, so that it is
taken off one of uint8. The sums of b's columns times that, and times the zero point of a, are put
right at the end. All of it is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.dot import Dot, Value
from tvmops.schedules.cpu.dot_nest import DotBlocking, DotNest, Operands
from tvmops.schedules.cpu.dot_sums import Sums
from tvmops.schedules.cpu.dots import integer_dots
from tvmops.schedules.cpu.emit import Extent, broadcast, load, refuse_overlap, store
from tvmops.schedules.cpu.epilogue import activate
from tvmops.schedules.cpu.gemm_dot import GemmDot
from tvmops.signatures import SIGNATURES
from tvmops.signatures.layouts import PLAIN
from tvmops.signatures.matmul_int8 import INTEGERS
from tvmops.targets import Target
from tvmops.workloads import Workload

_TOP_BITS = -0x7F7F7F80  # 0x80808080: turns the signs of four values, which adds 128 to each, or takes it off


class CpuGemmInt8(GemmDot):
    name = "cpu.gemm_int8"
    version = 1
    each = 4

    def covers(self, workload: Workload, target: Target) -> bool:
        return workload.op == "matmul_int8" and target.kind == "cpu"

    def dots(self, target: Target) -> tuple[Dot, ...]:
        return integer_dots(target)

    def nest(self, workload: Workload, target: Target, dot: Dot, blocking: DotBlocking) -> DotNest:
        return _Nest(workload, target, dot, blocking)


class _Nest(DotNest):
    def __init__(self, workload: Workload, target: Target, dot: Dot, blocking: DotBlocking) -> None:
        super().__init__(Operands.of(workload), dot, 4, target.vector_width("int32"), blocking)
        self.workload = workload
        self.out_dtype = str(workload["out_dtype"])
        self.is_packed = workload["packed"] != PLAIN
        is_signed = workload["dtype"] == "int8"
        self.shift = 0 if is_signed == dot.is_signed else 128 if is_signed else -128  # of what is multiplied
        self.a_offset = _TOP_BITS if self.shift else 0
        self.with_sums = True
        self.with_row_sums = workload["b_zero_points"] != "none"

    def declare(self) -> None:
        dtypes = self.dtypes(self.workload)
        handles = {name: T.arg(name, T.handle()) for name in dtypes if name != "c"}
        names = SIGNATURES["matmul_int8"].scalars(self.workload)
        self.scalars = {name: T.arg(name, T.float32()) for name in names}
        handles["c"] = T.arg("c", T.handle())
        shapes = {"a": self.a_shape(), "b": self.b_shape(), "c": (self.m, self.n)}
        inputs: dict[str, Any] = {
            name: T.match_buffer(
                handle, shapes.get(name, (self.n,)), dtypes[name], align=np.dtype(dtypes[name]).itemsize
            )  # a caller's array may start at any element
            for name, handle in handles.items()
        }
        self.c = inputs.pop("c")
        self.a, self.b = inputs["a"], inputs["b"]
        self.inputs = inputs
        refuse_overlap(self.c, inputs)
        offset = T.Cast("int32", self.scalars["a_zero_point"]) + self.shift
        self.offset = T.bind(offset)

    def finish(self, row: Extent, column: Extent, sums: Sums, limit: Extent | None) -> None:
        assert sums.columns is not None
        value = sums.products - sums.columns * broadcast(self.offset, self.width)
        if sums.row is not None:
            value = value - self._b_zeros(column, limit) * broadcast(self._row_sum(sums.row), self.width)
        if self.out_dtype != "int32":
            value = self._scaled(value, column, limit)
        if self.out_dtype in INTEGERS:
            value = self._quantised(value)
        store(self.c, value, [row], column, self.width, limit)

    def _row_sum(self, multiplied: Value) -> Value:
        """Return the sum of a - a_zero_point over a row.

        What was multiplied has the shift in each value, also in those beyond k.
        """
        padding = (self.words * self.each - self.k) * self.shift if self.shift else 0
        return multiplied - padding - self.k * self.offset

    def _b_zeros(self, column: Extent, limit: Extent | None) -> Value:
        if "b_zero_points" in self.inputs:
            return load(self.inputs["b_zero_points"], [], column, self.width, limit)
        return broadcast(T.Cast("int32", self.scalars["b_zero_point"]), self.width)

    def _scaled(self, value: Value, column: Extent, limit: Extent | None) -> Value:
        def along_n(name: str) -> Value:
            return load(self.inputs[name], [], column, self.width, limit)

        value = T.Cast(f"float32x{self.width}", value) * broadcast(self.scalars["scale"], self.width)
        if "b_scales" in self.inputs:
            value = value * along_n("b_scales")
        if "bias" in self.inputs:
            value = value + along_n("bias")
        return activate(str(self.workload["activation"]), value, self.width)

    def _quantised(self, value: Value) -> Value:
        """Round to nearest, ties to even, and clip."""
        width, limits = self.width, np.iinfo(self.out_dtype)
        value = value / broadcast(self.scalars["out_scale"], width)
        value = T.nearbyint(value) + broadcast(self.scalars["out_zero_point"], width)
        low, high = (broadcast(tirx.const(float(x), "float32"), width) for x in (limits.min, limits.max))
        value = tirx.min(tirx.max(value, low), high)
        return T.Cast(f"{self.out_dtype}x{width}", T.Cast(f"int32x{width}", value))
