"""The loops of `tvmops.schedules.cpu.conv2d_depthwise`, which says what each knob means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvKernel, ConvShape
from tvmops.schedules.cpu.emit import (
    Extent,
    Span,
    divides,
    share,
)
from tvmops.signatures.windows import Window
from tvmops.space import Config


@dataclass(frozen=True)
class Tiling:
    """The knobs, as numbers."""

    rows: int
    columns: int
    tasks: int

    @classmethod
    def of(cls, config: Config) -> Tiling:
        return cls(**config.as_dict())  # type: ignore[arg-type]


class DepthwiseNest(ABC):
    """y[c, i, j] = sum over (r, s) of x[c, i sh + r dh, j sw + s dw] * w[c, r, s]."""

    def __init__(self, shape: ConvShape, dtype: str, width: int, tiling: Tiling) -> None:
        self.kernel = ConvKernel(shape, dtype, width)
        self.shape, self.dtype, self.width, self.tiling = shape, dtype, width, tiling
        self.places = [(r, s) for r in range(shape.down.size) for s in range(shape.across.size)]

    def module(self) -> IRModule:
        return self.kernel.module(self._tasks)

    def _tasks(self) -> None:
        whole = Span(0, self.units)
        if self.tiling.tasks == 1:
            self.emit(whole)
            return
        with T.parallel(self.tiling.tasks) as task:
            self.emit(share(whole, task, self.tiling.tasks))

    @property
    @abstractmethod
    def units(self) -> Extent:
        """Count what is shared out among tasks."""

    @abstractmethod
    def emit(self, units: Span) -> None:
        """Compute some units."""

    def inside(self, row: Extent, column: Extent, columns: int) -> list[tirx.Expr]:
        """Say when a tile of so many columns at (row, column) reads and writes nothing beyond its image."""
        shape = self.shape
        return [
            *_inside(shape.down, row, self.tiling.rows, shape.h, shape.oh),
            *_inside(shape.across, column, columns, shape.w, shape.ow),
        ]


def _inside(window: Window, first: Extent, count: int, extent: Extent, outputs: Extent) -> list[tirx.Expr]:
    """Say when `count` outputs from `first` on exist and see nothing beyond the image."""
    start = first * window.stride - window.before
    # a stride of 2 reads whole vectors, the last element of which may not be needed
    end = start + (count * window.stride - 1) + window.reach
    conditions = [as_expr(end <= extent)]
    if window.before:
        conditions.append(as_expr(start >= 0))
    if not divides(count, outputs):
        conditions.append(as_expr(first + count <= outputs))
    return conditions


def as_expr(value: Any) -> tirx.Expr:
    return tirx.const(value, "int32") if isinstance(value, int) and not isinstance(value, bool) else value
