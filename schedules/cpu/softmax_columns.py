"""Softmax along an axis that is not the last: each lane of a vector has a sum of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import (
    Extent,
    Span,
    branch,
    broadcast,
    ceildiv,
    divides,
    lanes,
    load,
    refuse_overlap,
    registers,
    share,
    store,
)
from tvmops.schedules.cpu.rows import SMALL, extent
from tvmops.schedules.cpu.softmax import larger
from tvmops.schedules.cpu.vector_math import exp_nonpositive, like, log, rounded
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures.softmax import MIDDLE
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload


class CpuSoftmaxColumns(Template):
    """Knobs: `slots`, neighbouring vectors at a time; `tasks`, parts that run side by side."""

    name = "cpu.softmax_columns"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        return workload.op == "softmax" and workload["axis"] == MIDDLE and target.kind == "cpu"

    def space(self, workload: Workload, target: Target) -> Space:
        knobs = (
            Knob("slots", (1, 2, 4, 8)),
            Knob("tasks", tuple(dict.fromkeys((1, target.cores, 4 * target.cores)))),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        rows, cols, inner = workload.dims("rows", "cols", "inner")
        vectors = -(-inner // target.vector_width("float32"))
        slots = max(slots for slots in (1, 2, 4) if slots <= vectors)
        return Config.of(slots=slots, tasks=1 if rows * cols * inner < SMALL else target.cores)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        small = {"rows": (1, 16), "cols": (1, 32), "inner": (1, SMALL // 512)}
        return [
            GenericKernel(small, Config.of(slots=1, tasks=1)),
            GenericKernel({}, Config.of(slots=4, tasks=target.cores)),
        ]

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        return _Kernel(workload, target.vector_width("float32"), config).module()


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` makes sense for the shape; the only statement of the template's limits."""
    (inner,) = workload.dims("inner")
    return config.number("slots") <= max(1, -(-inner // target.vector_width("float32")))


class _Kernel:
    def __init__(self, workload: Workload, width: int, config: Config) -> None:
        self.rows, self.cols, self.inner = (extent(workload, name) for name in ("rows", "cols", "inner"))
        self.is_log, self.is_scaled = workload["log"] is True, workload["scaled"] is True
        self.width, self.slots, self.tasks = width, config.number("slots"), config.number("tasks")

    def module(self) -> IRModule:
        shape = (self.rows, self.cols, self.inner)
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                T.func_attr({"tirx.noalias": True})
                x = T.arg("x", T.handle())
                self.scale: Any = T.arg("scale", T.float32()) if self.is_scaled else None
                out = T.arg("out", T.handle())
                # align=4: a caller's array may start at any element
                self.x = T.match_buffer(x, shape, "float32", align=4)
                self.out = T.match_buffer(out, shape, "float32", align=4)
                refuse_overlap(self.out, {"x": self.x})
                blocks = ceildiv(self.inner, self.slots * self.width)
                whole = Span(0, self.rows * blocks)
                if self.tasks == 1:
                    self._blocks(whole, blocks)
                else:
                    with T.parallel(self.tasks) as task:
                        self._blocks(share(whole, task, self.tasks), blocks)
        return IRModule({"main": builder.get()})

    def _blocks(self, part: Span, blocks: Extent) -> None:
        step = self.slots * self.width
        with T.serial(part.count) as i:
            row, start = (part.start + i) // blocks, (part.start + i) % blocks * step
            if divides(step, self.inner):
                self._block(row, start, None)
            else:
                branch(
                    start + step <= self.inner,
                    lambda: self._block(row, start, None),
                    lambda: self._block(row, start, self.inner),
                )

    def _block(self, row: Extent, start: Extent, limit: Extent | None) -> None:
        tops, totals = (registers((self.slots, self.width), "float32") for _ in range(2))
        powers = registers((self.slots, self.width), "float32")
        whole = lanes(0, self.width)

        def each(body: Callable[[Extent, int], None]) -> None:
            with T.serial(self.cols) as column:
                for slot in range(self.slots):
                    body(column, slot)

        def value(column: Extent, slot: int) -> tirx.Expr:
            found = load(self.x, [row, column], start + slot * self.width, self.width, limit)
            if self.scale is None:
                return found
            # as found for the largest element, or what is above it may be large
            return rounded(found * broadcast(self.scale, self.width))

        def put(result: tirx.Expr, column: Extent, slot: int) -> None:
            store(self.out, result, [row, column], start + slot * self.width, self.width, limit)

        def top(column: Extent, slot: int) -> None:
            T.buffer_store(tops, larger(tops[slot, whole], value(column, slot)), [slot, whole])

        def power(column: Extent, slot: int) -> None:
            T.buffer_store(powers, exp_nonpositive(value(column, slot) - tops[slot, whole]), [slot, whole])
            T.buffer_store(totals, totals[slot, whole] + powers[slot, whole], [slot, whole])
            if not self.is_log:
                put(powers[slot, whole], column, slot)

        def finish(column: Extent, slot: int) -> None:
            if self.is_log:
                put(value(column, slot) - tops[slot, whole] - totals[slot, whole], column, slot)
            else:
                at = start + slot * self.width
                put(load(self.out, [row, column], at, self.width, limit) * totals[slot, whole], column, slot)

        for slot in range(self.slots):
            for registers_, initial in ((tops, -math.inf), (totals, 0.0)):
                T.buffer_store(registers_, like(tops[slot, whole], initial), [slot, whole])
        each(top)
        each(power)
        for slot in range(self.slots):
            total = totals[slot, whole]
            T.buffer_store(totals, log(total) if self.is_log else like(total, 1) / total, [slot, whole])
        each(finish)


__all__ = ["CpuSoftmaxColumns", "is_legal"]
