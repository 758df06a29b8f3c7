"""The signature of matmul."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmops.signatures.base import Signature, TensorSpec
from tvmops.signatures.fields import Choice, Dim, Field

if TYPE_CHECKING:
    from tvmops.workloads import Workload


class MatMul(Signature):
    fields = (
        Field("m", Dim()),
        Field("n", Dim()),
        Field("k", Dim()),
        Field("dtype", Choice(("float32",)), "float32", shown=True),
    )

    def inputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        m, n, k = workload.dims("m", "n", "k")
        dtype = str(workload["dtype"])
        return TensorSpec("a", (m, k), dtype), TensorSpec("b", (k, n), dtype)

    def outputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        return (TensorSpec("c", workload.dims("m", "n"), str(workload["dtype"])),)
