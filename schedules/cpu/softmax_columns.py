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
    computed,
    divides,
    lanes,
    load,
    refuse_overlap,
    registers,
    share,
    store,
)
from tvmops.schedules.cpu.floats import DTYPES, argument, load_floats, store_floats
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
        if workload.op != "softmax" or target.kind != "cpu":
            return False
        return workload["axis"] == MIDDLE and workload["dtype"] in DTYPES

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
    """Exponentials wait in `out` for their sum, or beside it where it would round them."""

    def __init__(self, workload: Workload, width: int, config: Config) -> None:
        self.rows, self.cols, self.inner = (extent(workload, name) for name in ("rows", "cols", "inner"))
        self.is_log, self.is_scaled = workload["log"] is True, workload["scaled"] is True
        self.width, self.slots, self.tasks = width, config.number("slots"), config.number("tasks")
        self.dtype = str(workload["dtype"])
        self.is_masked, self.mask_rows = workload["mask_rows"] != 0, extent(workload, "mask_rows")
        self.waits_beside = self.dtype != "float32" and not self.is_log

    def module(self) -> IRModule:
        shape = (self.rows, self.cols, self.inner)
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                T.func_attr({"tirx.noalias": True})
                names = ("x", "mask") if self.is_masked else ("x",)
                handles = {name: T.arg(name, T.handle()) for name in names}
                self.scale: Any = T.arg("scale", T.float32()) if self.is_scaled else None
                out = T.arg("out", T.handle())
                shapes = {"x": shape, "mask": (self.mask_rows, *shape[1:])}
                self.inputs = {name: argument(handles[name], shapes[name], self.dtype) for name in names}
                self.out = argument(out, shape, self.dtype)
                refuse_overlap(self.out, self.inputs)
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
        self.waiting: Any = T.alloc_buffer((self.cols, step), "float32") if self.waits_beside else None
        with T.serial(part.count) as i:
            at = computed(part.start + i)
            row, start = computed(at // blocks), computed(at % blocks * step)
            if divides(step, self.inner):
                self._block(row, start, None)
            else:
                branch(
                    start + step <= self.inner,
                    lambda: self._block(row, start, None),
                    lambda: self._block(row, start, self.inner),
                )

    def _block(self, row: Extent, start: Extent, limit: Extent | None) -> None:
        mask_row = computed(row % self.mask_rows) if self.is_masked else 0
        tops, totals = (registers((self.slots, self.width), "float32") for _ in range(2))
        powers = registers((self.slots, self.width), "float32")
        whole = lanes(0, self.width)

        def each(body: Callable[[Extent, int], None]) -> None:
            with T.serial(self.cols) as column:
                for slot in range(self.slots):
                    body(column, slot)

        def given(name: str, row: Extent, column: Extent, slot: int) -> tirx.Expr:
            at = start + slot * self.width
            return load_floats(self.inputs[name], [row, column], at, self.width, limit)

        def value(column: Extent, slot: int) -> tirx.Expr:
            found = given("x", row, column, slot)
            if self.scale is not None:
                # as found for the largest element, or what is above it may be large
                found = rounded(found * broadcast(self.scale, self.width))
            return found + given("mask", mask_row, column, slot) if self.is_masked else found

        def put(result: tirx.Expr, column: Extent, slot: int) -> None:
            at = start + slot * self.width
            store_floats(self.out, result, [row, column], at, self.width, limit)

        def wait(power: tirx.Expr, column: Extent, slot: int) -> None:
            if self.waiting is None:
                put(power, column, slot)
            else:
                store(self.waiting, power, [column], slot * self.width, self.width, None)

        def waiting(column: Extent, slot: int) -> tirx.Expr:
            if self.waiting is None:
                return load(self.out, [row, column], start + slot * self.width, self.width, limit)
            return load(self.waiting, [column], slot * self.width, self.width, None)

        def top(column: Extent, slot: int) -> None:
            T.buffer_store(tops, larger(tops[slot, whole], value(column, slot)), [slot, whole])

        def power(column: Extent, slot: int) -> None:
            T.buffer_store(powers, exp_nonpositive(value(column, slot) - tops[slot, whole]), [slot, whole])
            T.buffer_store(totals, totals[slot, whole] + powers[slot, whole], [slot, whole])
            if not self.is_log:
                wait(powers[slot, whole], column, slot)

        def finish(column: Extent, slot: int) -> None:
            if self.is_log:
                put(value(column, slot) - tops[slot, whole] - totals[slot, whole], column, slot)
            else:
                put(waiting(column, slot) * totals[slot, whole], column, slot)

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
