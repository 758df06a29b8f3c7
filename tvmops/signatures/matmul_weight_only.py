"""The signature of matmul_weight_only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmops.errors import WorkloadError
from tvmops.signatures.activations import ACTIVATION
from tvmops.signatures.base import Signature, TensorSpec
from tvmops.signatures.fields import Choice, Dim, Field, Flag
from tvmops.signatures.weight_groups import WeightGroups

if TYPE_CHECKING:
    from tvmops.workloads import Workload

_LARGEST_GROUP = 32_768  # sums of products of 8 bits fit 32


class MatMulWeightOnly(Signature):
    """c = activation(x @ w.T + bias) for x of shape (m, k), and w packed by `WeightGroups`.

    x, bias and c are `dtype`. `x_bits` says how finely x is told apart within a group: 24 as
    float32 does, 16, or 8.
    """

    fields = (
        Field("m", Dim()),
        Field("n", Dim()),
        Field("k", Dim()),
        Field("dtype", Choice(("float32", "bfloat16", "float16")), "float32", shown=True),
        Field("bits", Choice(("4", "8")), "4", shown=True),
        Field("group", Dim(fixed=True), 128, shown=True),
        Field("zero_points", Flag(), False),
        Field("x_bits", Choice(("24", "16", "8")), "24"),
        Field("bias", Flag(), False),
        ACTIVATION,
    )

    def inputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        m, n, k = workload.dims("m", "n", "k")
        specs = [
            TensorSpec("x", (m, k), str(workload["dtype"])),
            TensorSpec("w", groups_of(workload).shape(n, k), "uint8"),
        ]
        if workload["bias"]:
            specs.append(TensorSpec("bias", (n,), str(workload["dtype"])))
        return tuple(specs)

    def outputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        return (TensorSpec("c", workload.dims("m", "n"), str(workload["dtype"])),)

    def check(self, workload: Workload) -> None:
        group = workload["group"]
        if isinstance(group, int) and (group % 8 or group > _LARGEST_GROUP):
            expected = f"a multiple of 8, at most {_LARGEST_GROUP}"
            raise WorkloadError(op=workload.op, field="group", value=group, expected=expected)


def groups_of(workload: Workload) -> WeightGroups:
    """Return how the weights of `workload` lie."""
    (group,) = workload.dims("group")
    return WeightGroups(int(str(workload["bits"])), group, workload["zero_points"] is True)
