"""The signature of matmul_fp8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmops.signatures.base import Signature, TensorSpec
from tvmops.signatures.dtypes import FLOAT8
from tvmops.signatures.fields import Choice, Dim, Field

if TYPE_CHECKING:
    from tvmops.workloads import Workload

TENSOR, ROWS = "tensor", "rows"


class MatMulFp8(Signature):
    """c = a_scale * b_scale * (a @ b.T), a and b of 8-bit floating point, both with k along their rows.

    `scales=tensor`: one scale for each operand. `scales=rows`: one for each row of a and of b.
    """

    fields = (
        Field("m", Dim(varies=True)),
        Field("n", Dim(varies=True)),
        Field("k", Dim(varies=True)),
        Field("dtype", Choice(FLOAT8), FLOAT8[0], shown=True),
        Field("out_dtype", Choice(("bfloat16", "float16", "float32")), "bfloat16"),
        Field("scales", Choice((TENSOR, ROWS)), TENSOR),
    )

    def inputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        m, n, k = workload.dims("m", "n", "k")
        dtype = str(workload["dtype"])
        rows, columns = (m, n) if workload["scales"] == ROWS else (1, 1)
        return (
            TensorSpec("a", (m, k), dtype),
            TensorSpec("b", (n, k), dtype),
            TensorSpec("a_scale", (rows,), "float32"),
            TensorSpec("b_scale", (columns,), "float32"),
        )

    def outputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        return (TensorSpec("c", workload.dims("m", "n"), str(workload["out_dtype"])),)
