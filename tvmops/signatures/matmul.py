"""The signature of matmul."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmops.errors import WorkloadError
from tvmops.signatures.activations import ACTIVATION
from tvmops.signatures.base import Signature, TensorSpec
from tvmops.signatures.fields import Choice, Dim, Field, Flag
from tvmops.signatures.layouts import PLAIN, layout_names, layout_of

if TYPE_CHECKING:
    from tvmops.workloads import Workload

SAME = "same"  # as the operands
FULL, TF32 = "full", "tf32"  # precisions


class MatMul(Signature):
    """c = activation(a @ b + bias + residual), for each of `batch` matrices.

    Without a batch the arrays have two dimensions. An operand that is `shared` serves all
    of the batch and has two in any case. `trans_a` and `trans_b` say that a is given as
    (k, m), b as (n, k). `packed` names the layout of a b that was packed beforehand. Of operands
    of bfloat16 the result and the residual may be float32 (`out_dtype`), and so may the bias.
    `precision=tf32` lets a kernel keep 10 bits of the mantissas of float32 operands.
    """

    fields = (
        Field("m", Dim(varies=True)),
        Field("n", Dim(varies=True)),
        Field("k", Dim(varies=True)),
        Field("dtype", Choice(("float32", "float16", "bfloat16")), "float32", shown=True),
        Field("batch", Dim(), 1),
        Field("shared", Choice(("none", "a", "b")), "none"),
        Field("trans_a", Flag(), False),
        Field("trans_b", Flag(), False),
        Field("bias", Flag(), False),
        ACTIVATION,
        Field("residual", Flag(), False),
        Field("packed", Choice(layout_names("matmul")), PLAIN),
        Field("out_dtype", Choice((SAME, "float32")), SAME),
        Field("bias_dtype", Choice((SAME, "float32")), SAME),
        Field("precision", Choice((FULL, TF32)), FULL),
    )

    def inputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        m, n, k = workload.dims("m", "n", "k")
        dtype = str(workload["dtype"])
        a: tuple[int, ...] = (k, m) if workload["trans_a"] else (m, k)
        b: tuple[int, ...] = (n, k) if workload["trans_b"] else (k, n)
        if workload["packed"] != PLAIN:
            b = layout_of(workload).shape(k, n)
        specs = [
            TensorSpec("a", _of_batch(workload, a, "a"), dtype),
            TensorSpec("b", _of_batch(workload, b, "b"), dtype),
        ]
        if workload["bias"]:
            specs.append(TensorSpec("bias", (n,), _dtype(workload, "bias_dtype")))
        if workload["residual"]:
            specs.append(TensorSpec("residual", _of_batch(workload, (m, n)), _dtype(workload, "out_dtype")))
        return tuple(specs)

    def outputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        shape = _of_batch(workload, workload.dims("m", "n"))
        return (TensorSpec("c", shape, _dtype(workload, "out_dtype")),)

    def check(self, workload: Workload) -> None:
        wrong = None
        if workload["shared"] != "none" and workload["batch"] == 1:
            wrong = "shared", "none where there is no batch"
        elif workload["packed"] != PLAIN and workload["batch"] != 1:
            wrong = "batch", "1 where b is packed: rows of a batch are rows of a"
        elif workload["packed"] != PLAIN and workload["trans_b"]:
            wrong = "trans_b", "false where b is packed: its layout says how it lies"
        elif workload["bias_dtype"] != SAME and not workload["bias"]:
            wrong = "bias_dtype", f"{SAME} where there is no bias"
        elif workload["precision"] != FULL and workload["dtype"] != "float32":
            wrong = "precision", f"{FULL} where dtype is not float32"
        elif workload["precision"] != FULL and workload["packed"] != PLAIN:
            wrong = "precision", f"{FULL} where b is packed"
        for field in ("out_dtype", "bias_dtype"):
            if workload[field] != SAME and workload["dtype"] != "bfloat16":
                wrong = field, f"{SAME} where dtype is not bfloat16"
        if wrong:
            field, expected = wrong
            raise WorkloadError(op=workload.op, field=field, value=workload[field], expected=expected)


def _dtype(workload: Workload, field: str) -> str:
    return str(workload["dtype"] if workload[field] == SAME else workload[field])


def _of_batch(workload: Workload, matrix: tuple[int, ...], operand: str = "") -> tuple[int, ...]:
    (batch,) = workload.dims("batch")
    return matrix if batch == 1 or workload["shared"] == operand else (batch, *matrix)
