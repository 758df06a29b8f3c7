"""The frame of a pooling kernel: its arrays, its tasks, and how two values become one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, Span, refuse_overlap, share
from tvmops.schedules.cpu.linear import Registers
from tvmops.schedules.cpu.rows import extent
from tvmops.signatures.pool2d import MAX
from tvmops.workloads import Workload

DTYPE = "float32"


class PoolNest(ABC):
    """y from x; a subclass says how a part of the output is computed."""

    def __init__(self, workload: Workload, width: int, slots: int, tasks: int) -> None:
        self.workload, self.width, self.slots, self.tasks = workload, width, slots, tasks
        self.n, self.h, self.w, self.c = (extent(workload, name) for name in ("n", "h", "w", "c"))
        self.channels_last = workload["layout"] == "NHWC"
        self.is_max = workload["kind"] == MAX
        self.identity = -math.inf if self.is_max else 0.0

    @property
    @abstractmethod
    def size(self) -> tuple[Extent, Extent]:
        """Height and width of the output."""

    @property
    @abstractmethod
    def units(self) -> Extent:
        """What the tasks share."""

    @abstractmethod
    def task(self, units: Span) -> None:
        """Emit the work on some of the units."""

    def module(self) -> IRModule:
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                T.func_attr({"tirx.noalias": True})
                handles = [T.arg(name, T.handle()) for name in ("x", "y")]
                # align=4: a caller's array may start at any element
                self.x, self.y = (
                    T.match_buffer(handle, self._shape(*size), DTYPE, align=4)
                    for handle, size in zip(handles, ((self.h, self.w), self.size))
                )
                refuse_overlap(self.y, {"x": self.x})
                whole = Span(0, self.units)
                if self.tasks == 1:
                    self.task(whole)
                else:
                    with T.parallel(self.tasks) as task:
                        self.task(share(whole, task, self.tasks))
        return IRModule({"main": builder.get()})

    def _shape(self, h: Extent, w: Extent) -> tuple[Extent, ...]:
        return (self.n, h, w, self.c) if self.channels_last else (self.n, self.c, h, w)

    def viewed(self, buffer: Any, *shape: Extent) -> Any:
        """Return the memory of `buffer` as an array of another shape."""
        return T.decl_buffer(shape, DTYPE, data=buffer.data, align=4)

    def combine(self, a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
        """Return the sum; or the larger one, NaN where either is NaN."""
        if not self.is_max:
            return a + b
        lanes = int(a.ty.dtype.lanes)
        held = Registers(2, lanes)
        x, y = held.hold(a), held.hold(b)
        # the inner choice is one instruction, which gives y where either is NaN
        return tirx.Select(tirx.isnan(x), x, tirx.Select(x > y, x, y))
