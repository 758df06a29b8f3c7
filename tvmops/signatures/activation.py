"""The signature of activation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmops.signatures.activations import ACTIVATIONS, NONE
from tvmops.signatures.base import Signature, TensorSpec
from tvmops.signatures.dtypes import BFLOAT16
from tvmops.signatures.fields import Choice, Dim, Field

if TYPE_CHECKING:
    from tvmops.workloads import Workload


class Activation(Signature):
    """x and out (size,)."""

    fields = (
        Field("size", Dim()),
        Field("activation", Choice(tuple(name for name in ACTIVATIONS if name != NONE))),
        Field("dtype", Choice(("float32", BFLOAT16)), "float32", shown=True),
    )

    def inputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        return (TensorSpec("x", workload.dims("size"), str(workload["dtype"])),)

    def outputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        return (TensorSpec("out", workload.dims("size"), str(workload["dtype"])),)
