"""matmul_int8 on words of four: `vpdpbusd` where there is VNNI, else `vpmaddwd`, else plain arithmetic.

The left values must be unsigned there, so 128 is added to an a of int8; the sums of b's columns
times 128, and times the zero point of a, are taken off again at the end. All of it is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.dot import Dot, Value, integer_dot
from tvmops.schedules.cpu.dot_nest import DotBlocking, DotNest, Sizes
from tvmops.schedules.cpu.emit import Extent, broadcast, load, refuse_overlap, store
from tvmops.schedules.cpu.epilogue import activate
from tvmops.schedules.cpu.gemm_dot import GemmDot
from tvmops.signatures.layouts import PLAIN
from tvmops.signatures.matmul_int8 import INTEGERS
from tvmops.signatures.words import COLUMNS
from tvmops.targets import Target
from tvmops.workloads import Workload

_TOP_BITS = -0x7F7F7F80  # 0x80808080: turns the signs of four values, which adds 128 to each


class CpuGemmInt8(GemmDot):
    name = "cpu.gemm_int8"
    version = 1
    each = 4

    def covers(self, workload: Workload, target: Target) -> bool:
        return workload.op == "matmul_int8" and target.kind == "cpu"

    def dot(self, target: Target) -> Dot:
        return integer_dot(target)

    def nest(self, workload: Workload, target: Target, sizes: Sizes, blocking: DotBlocking) -> DotNest:
        return _Nest(workload, target, sizes, blocking)


class _Nest(DotNest):
    def __init__(self, workload: Workload, target: Target, sizes: Sizes, blocking: DotBlocking) -> None:
        super().__init__(sizes, integer_dot(target), 4, target.vector_width("int32"), blocking)
        self.workload = workload
        self.out_dtype = str(workload["out_dtype"])
        self.is_packed = workload["packed"] != PLAIN
        self.is_signed = workload["dtype"] == "int8"
        self.a_offset = _TOP_BITS if self.is_signed else 0
        self.with_sums = True

    def declare(self) -> None:
        workload, names = self.workload, ["a", "b"]
        names += ["b_scales"] if workload["scales"] == "channel" else []
        names += ["bias"] if workload["bias"] else []
        handles = [T.arg(name, T.handle()) for name in names]
        count = {"int32": 1, "float32": 2}.get(self.out_dtype, 4)
        scalars = ("a_zero_point", "scale", "out_scale", "out_zero_point")[:count]
        self.scalars = [T.arg(name, T.float32()) for name in scalars]
        c = T.arg("c", T.handle())
        b_shape: tuple[Extent, ...] = (self.k, self.n)
        if self.is_packed:
            b_shape = (-(-self.n // COLUMNS), self.words + 1, COLUMNS * self.each)
        shapes = {"a": (self.m, self.k), "b": b_shape}
        dtypes = {"a": str(workload["dtype"]), "b": "int8"}
        inputs: dict[str, Any] = {}
        for name, handle in zip(names, handles):  # a caller's array may start at any element
            dtype = dtypes.get(name, "float32")
            align = 4 if dtype == "float32" else 1
            inputs[name] = T.match_buffer(handle, shapes.get(name, (self.n,)), dtype, align=align)
        align = 1 if self.out_dtype in INTEGERS else 4
        self.c = T.match_buffer(c, (self.m, self.n), self.out_dtype, align=align)
        self.a, self.b = inputs["a"], inputs["b"]
        self.inputs = inputs
        refuse_overlap(self.c, inputs)
        offset = T.Cast("int32", self.scalars[0]) + (128 if self.is_signed else 0)
        self.offset = T.bind(offset)

    def finish(
        self, row: Extent, column: Extent, total: Value, sums: Value | None, limit: Extent | None
    ) -> None:
        value = total - sums * broadcast(self.offset, self.width)
        if self.out_dtype != "int32":
            value = self._scaled(value, column, limit)
        if self.out_dtype in INTEGERS:
            value = self._quantised(value)
        store(self.c, value, [row], column, self.width, limit)

    def _scaled(self, value: Value, column: Extent, limit: Extent | None) -> Value:
        def along_n(name: str) -> Value:
            return load(self.inputs[name], [], column, self.width, limit)

        value = T.Cast(f"float32x{self.width}", value) * broadcast(self.scalars[1], self.width)
        if "b_scales" in self.inputs:
            value = value * along_n("b_scales")
        if "bias" in self.inputs:
            value = value + along_n("bias")
        return activate(str(self.workload["activation"]), value, self.width)

    def _quantised(self, value: Value) -> Value:
        """Round to nearest, ties to even, and clip."""
        width, limits = self.width, np.iinfo(self.out_dtype)
        value = value / broadcast(self.scalars[2], width)
        value = T.nearbyint(value) + broadcast(self.scalars[3], width)
        low, high = (broadcast(tirx.const(float(x), "float32"), width) for x in (limits.min, limits.max))
        value = tirx.min(tirx.max(value, low), high)
        return T.Cast(f"{self.out_dtype}x{width}", T.Cast(f"int32x{width}", value))
