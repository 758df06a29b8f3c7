"""The signatures of layer_norm and rms_norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmops.signatures.base import Signature, TensorSpec
from tvmops.signatures.fields import Choice, Dim, Field, Flag

if TYPE_CHECKING:
    from tvmops.workloads import Workload


class Norm(Signature):
    """x, residual, out and sum (rows, cols); weight and bias (cols,).

    With a residual, what is normalised is x + residual, which is the second output, too.
    """

    fields = (
        Field("rows", Dim()),
        Field("cols", Dim()),
        Field("weight", Flag(), False),
        Field("bias", Flag(), False),
        Field("residual", Flag(), False),
        Field("dtype", Choice(("float32", "float16", "bfloat16")), "float32", shown=True),
    )

    def inputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        rows, cols = workload.dims("rows", "cols")
        shapes = {"weight": (cols,), "bias": (cols,), "residual": (rows, cols)}
        dtype = str(workload["dtype"])
        optional = [TensorSpec(name, shape, dtype) for name, shape in shapes.items() if workload[name]]
        return TensorSpec("x", (rows, cols), dtype), *optional

    def outputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        names = ("out", "sum") if workload["residual"] else ("out",)
        return tuple(
            TensorSpec(name, workload.dims("rows", "cols"), str(workload["dtype"])) for name in names
        )

    def scalars(self, workload: Workload) -> tuple[str, ...]:
        return ("eps",)
