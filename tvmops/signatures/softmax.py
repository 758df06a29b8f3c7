"""The signature of softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmops.errors import WorkloadError
from tvmops.signatures.base import Signature, TensorSpec
from tvmops.signatures.fields import Choice, Dim, Field, Flag

if TYPE_CHECKING:
    from tvmops.workloads import Workload

LAST, MIDDLE = "last", "middle"
SCALE = 0.625  # what kernels are verified and timed with


class Softmax(Signature):
    """x and out (rows, cols), along cols; (rows, cols, inner) where the axis is not the last.

    A mask of `mask_rows` rows, which repeat over those of x, is added after scaling: it is of
    shape (mask_rows, cols), or (mask_rows, cols, inner).
    """

    fields = (
        Field("rows", Dim()),
        Field("cols", Dim()),
        Field("inner", Dim(), 1),
        Field("axis", Choice((LAST, MIDDLE)), LAST),
        Field("log", Flag(), False),
        Field("scaled", Flag(), False),
        Field("mask_rows", Dim(low=0), 0),
        Field("dtype", Choice(("float32", "float16", "bfloat16")), "float32", shown=True),
    )

    def inputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        x = TensorSpec("x", self._shape(workload), str(workload["dtype"]))
        if workload["mask_rows"] == 0:
            return (x,)
        (mask_rows,) = workload.dims("mask_rows")
        return x, TensorSpec("mask", (mask_rows, *x.shape[1:]), x.dtype)

    def outputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        return (TensorSpec("out", self._shape(workload), str(workload["dtype"])),)

    def scalars(self, workload: Workload) -> tuple[str, ...]:
        return ("scale",) if workload["scaled"] is True else ()

    def check(self, workload: Workload) -> None:
        """Refuse masks that do not repeat evenly, and what could be said in two ways."""
        if workload["axis"] == LAST and workload["inner"] not in (1, "*"):
            self._refuse(workload, "inner", "1, as the axis is the last")
        rows, mask_rows = workload["rows"], workload["mask_rows"]
        if isinstance(rows, int) and isinstance(mask_rows, int) and mask_rows and rows % mask_rows:
            self._refuse(workload, "mask_rows", f"a divisor of rows, {rows}")

    def _refuse(self, workload: Workload, field: str, expected: str) -> None:
        raise WorkloadError(op=workload.op, field=field, value=workload[field], expected=expected)

    def _shape(self, workload: Workload) -> tuple[int, ...]:
        middle = workload["axis"] == MIDDLE
        return workload.dims("rows", "cols", "inner") if middle else workload.dims("rows", "cols")
