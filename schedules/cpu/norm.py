"""LayerNorm and RMSNorm: mean, mean square, result."""

from __future__ import annotations

from tvm import tirx

from tvmops.schedules.cpu.emit import Extent, broadcast
from tvmops.schedules.cpu.floats import DTYPES
from tvmops.schedules.cpu.row_sweeps import Vector, named
from tvmops.schedules.cpu.rows import RowKernel, RowTemplate
from tvmops.schedules.cpu.vector_math import fma
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.workloads import Workload


class CpuNorm(RowTemplate):
    """Serves both ops."""

    name = "cpu.norm"

    def covers(self, workload: Workload, target: Target) -> bool:
        return (
            workload.op in ("layer_norm", "rms_norm") and workload["dtype"] in DTYPES and target.kind == "cpu"
        )

    def kernel(self, workload: Workload, width: int, config: Config) -> RowKernel:
        return NormKernel(workload, width, config)


class NormKernel(RowKernel):
    """The differences from the mean are squared in a sweep of their own, as `ops.norm` says.

    With a residual the first sweep writes the sum, which the others read; where it was rounded to
    16 bits they add up again.
    """

    def __init__(self, workload: Workload, width: int, config: Config) -> None:
        super().__init__(workload, width, config)
        self.residual = workload["residual"] is True
        self.outputs = ("out", "sum") if self.residual else ("out",)

    def shapes(self) -> dict[str, tuple[Extent, ...]]:
        whole = (self.rows, self.cols)
        optional = {"weight": (self.cols,), "bias": (self.cols,), "residual": whole}
        given = {name: shape for name, shape in optional.items() if self.workload[name]}
        return {"x": whole, **given, **dict.fromkeys(self.outputs, whole)}

    def row(self, row: Extent) -> None:
        share = self._share()
        mean = None
        if self.workload.op == "layer_norm":
            mean = named(self.sweep.reduced(0.0, lambda v: self._first(row, v), _add) * share)
        elif self.residual:
            self.sweep.each(lambda v: self._sum(row, v))

        def off(vector: Vector) -> tirx.Expr:
            value = self._given(row, vector)
            return value if mean is None else value - broadcast(mean, self.width)

        def square(vector: Vector) -> tirx.Expr:
            return self.within(off(vector) * off(vector), 0.0, vector)

        total = self.sweep.reduced(0.0, square, _add)
        scale = named(tirx.const(1, "float32") / tirx.sqrt(total * share + self.scalars["eps"]))

        whole = ("x", "residual") if self.residual else ("x",)

        def result(vector: Vector) -> tirx.Expr:
            self.ask_ahead(row, vector, *whole)
            value = off(vector) * broadcast(scale, self.width)
            weight, bias = (
                self.load(name, [], vector) if self.workload[name] else None for name in ("weight", "bias")
            )
            if weight is not None and bias is not None:
                value = fma(value, weight, bias)
            elif weight is not None:
                value = value * weight
            elif bias is not None:
                value = value + bias
            return value

        self.finish(row, result)

    def _share(self) -> tirx.Expr:
        """Return 1 / cols."""
        if isinstance(self.cols, int):
            return tirx.const(1 / self.cols, "float32")
        return tirx.const(1, "float32") / tirx.Cast("float32", self.cols)

    def _first(self, row: Extent, vector: Vector) -> tirx.Expr:
        if self.residual:
            self._sum(row, vector)
        return self.within(self._given(row, vector), 0.0, vector)

    def _given(self, row: Extent, vector: Vector) -> tirx.Expr:
        """Return what is normalised."""
        if not self.residual:
            return self.load("x", [row], vector)
        return self.load("sum", [row], vector) if self.dtype == "float32" else self._added(row, vector)

    def _added(self, row: Extent, vector: Vector) -> tirx.Expr:
        return self.load("x", [row], vector) + self.load("residual", [row], vector)

    def _sum(self, row: Extent, vector: Vector) -> None:
        self.store("sum", self._added(row, vector), row, vector)


def _add(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    return a + b
