"""Softmax along the last axis: largest element, sum of exponentials, quotients."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, broadcast, computed, lanes, load, registers, store
from tvmops.schedules.cpu.row_sweeps import Vector, named
from tvmops.schedules.cpu.rows import RowKernel, RowTemplate, extent
from tvmops.schedules.cpu.vector_math import exp_nonpositive, log, rounded
from tvmops.signatures.softmax import LAST
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.workloads import Workload


class CpuSoftmax(RowTemplate):
    name = "cpu.softmax"
    op = "softmax"

    def covers(self, workload: Workload, target: Target) -> bool:
        return super().covers(workload, target) and workload["axis"] == LAST

    def kernel(self, workload: Workload, width: int, config: Config) -> RowKernel:
        return SoftmaxKernel(workload, width, config)


class SoftmaxKernel(RowKernel):
    """Three sweeps; exponentials wait for their sum in `out`, or in the caches where that rounds or streams.

    The largest element is found without looking for NaN: it shows in the sum.
    """

    def __init__(self, workload: Workload, width: int, config: Config) -> None:
        super().__init__(workload, width, config)
        self.is_masked = workload["mask_rows"] != 0
        self.mask_rows = extent(workload, "mask_rows")

    def shapes(self) -> dict[str, tuple[Extent, ...]]:
        whole = (self.rows, self.cols)
        mask = {"mask": (self.mask_rows, self.cols)} if self.is_masked else {}
        return {"x": whole, **mask, "out": whole}

    def begin(self) -> None:
        self.waiting: Any = None
        if (self.streams or self.dtype != "float32") and not self.workload["log"]:
            self.waiting = T.alloc_buffer((self.cols,), "float32")

    def row(self, row: Extent) -> None:
        self.mask_row = computed(row % self.mask_rows) if self.is_masked else 0
        top = self.sweep.reduced(-math.inf, lambda vector: self._value(row, vector), larger)
        is_log = self.workload["log"] is True
        powers = registers((self.sweep.slots, self.width), "float32")

        def power(vector: Vector) -> tirx.Expr:
            value = exp_nonpositive(self._value(row, vector) - broadcast(top, self.width))
            at = lanes(0, self.width)
            T.buffer_store(powers, value, [vector.slot, at])
            self.ask_ahead(row, vector, "x")
            if not is_log:
                self._wait(powers[vector.slot, at], row, vector)
            return powers[vector.slot, at]

        total = self.sweep.reduced(0.0, power, lambda a, b: a + b)
        if is_log:
            below = named(log(total))
            beyond = [broadcast(each, self.width) for each in (top, below)]
            self.finish(row, lambda vector: self._value(row, vector) - beyond[0] - beyond[1])
        else:
            share = named(tirx.const(1, "float32") / total)
            self.finish(row, lambda vector: self._waiting(row, vector) * broadcast(share, self.width))

    def _value(self, row: Extent, vector: Vector) -> tirx.Expr:
        value = self.load("x", [row], vector)
        if self.workload["scaled"]:
            # as found for the largest element, or what is above it may be large
            value = rounded(value * broadcast(self.scalars["scale"], self.width))
        if self.is_masked:
            value = value + self.load("mask", [self.mask_row], vector)
        return self.within(value, -math.inf, vector)

    def _wait(self, power: tirx.Expr, row: Extent, vector: Vector) -> None:
        if self.waiting is None:
            self.store("out", power, row, vector)
        else:
            store(self.waiting, power, [], vector.start, self.width, vector.limit)

    def _waiting(self, row: Extent, vector: Vector) -> tirx.Expr:
        if self.waiting is None:
            return self.load("out", [row], vector)
        return load(self.waiting, [], vector.start, self.width, vector.limit)


def larger(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    """Return the larger one; where one is NaN it may be lost."""
    return tirx.Select(a < b, b, a)
