"""The signature of matmul_int8."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

from tvmops.errors import WorkloadError
from tvmops.signatures.activations import ACTIVATION, NONE
from tvmops.signatures.base import Signature, TensorSpec
from tvmops.signatures.fields import Choice, Dim, Field, Flag
from tvmops.signatures.layouts import PLAIN, layout_names, layout_of

if TYPE_CHECKING:
    from tvmops.workloads import Workload

INTEGERS = ("uint8", "int8")
# With u = a or a + 128 and z = a_zero_point or that + 128, both from 0 to 255, kernels compute
# sum(u b) - z sum(b) - b_zero (sum(u) - k z): two sums, or three, of k terms of at most 255 * 128.
LARGEST_K = 32_000
LARGEST_K_WITH_ZERO_POINTS = 21_000


class MatMulInt8(Signature):
    """c = (a - a_zero_point) @ (b - b_zero_points), b int8, and what `out_dtype` asks for.

    int32: those sums. float32: activation(scale * b_scales * sums + bias). uint8 or int8: that,
    divided by out_scale, rounded, out_zero_point added, and clipped. `scales=channel` says that
    there is one of b_scales for each column; b_zero_points are none, one for all (tensor), or one a
    column. `trans_b` says that b is given as (n, k).

    k is bounded, so that all sums fit int32 whatever the values.
    """

    fields = (
        Field("m", Dim()),
        Field("n", Dim()),
        Field("k", Dim()),
        Field("dtype", Choice(INTEGERS), "uint8", shown=True),
        Field("out_dtype", Choice(("int32", "float32", *INTEGERS)), "int32"),
        Field("scales", Choice(("tensor", "channel")), "tensor"),
        Field("bias", Flag(), False),
        ACTIVATION,
        Field("packed", Choice(layout_names("matmul_int8")), PLAIN),
        Field("trans_b", Flag(), False),
        Field("b_zero_points", Choice(("none", "tensor", "channel")), "none"),
    )

    def inputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        m, n, k = workload.dims("m", "n", "k")
        b: tuple[int, ...] = (n, k) if workload["trans_b"] else (k, n)
        if workload["packed"] != PLAIN:
            b = layout_of(workload).shape(k, n)
        specs = [TensorSpec("a", (m, k), str(workload["dtype"])), TensorSpec("b", b, "int8")]
        if workload["b_zero_points"] == "channel":
            specs.append(TensorSpec("b_zero_points", (n,), "int32"))
        if workload["scales"] == "channel":
            specs.append(TensorSpec("b_scales", (n,), "float32"))
        if workload["bias"]:
            specs.append(TensorSpec("bias", (n,), "float32"))
        return tuple(specs)

    def outputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        return (TensorSpec("c", workload.dims("m", "n"), str(workload["out_dtype"])),)

    def scalars(self, workload: Workload) -> tuple[str, ...]:
        names: tuple[str, ...] = ("a_zero_point",)
        if workload["b_zero_points"] == "tensor":
            names += ("b_zero_point",)
        if workload["out_dtype"] != "int32":
            names += ("scale",)
        if workload["out_dtype"] in INTEGERS:
            names += ("out_scale", "out_zero_point")
        return names

    def check(self, workload: Workload) -> None:
        k = workload["k"]
        most = LARGEST_K if workload["b_zero_points"] == "none" else LARGEST_K_WITH_ZERO_POINTS
        if isinstance(k, int) and k > most:
            expected = f"at most {most}, so that sums fit int32"
            raise WorkloadError(op=workload.op, field="k", value=k, expected=expected)
        if workload["trans_b"] and workload["packed"] != PLAIN:
            expected = "false where b is packed: its layout says how it lies"
            raise WorkloadError(op=workload.op, field="trans_b", value=True, expected=expected)
        for field, nothing in (("scales", "tensor"), ("bias", False), ("activation", NONE)):
            if workload["out_dtype"] == "int32" and workload[field] != nothing:
                expected = f"{str(nothing).lower()} where out_dtype is int32"
                raise WorkloadError(op=workload.op, field=field, value=workload[field], expected=expected)


def sample_scalars(workload: Workload) -> tuple[float, ...]:
    """Return scalars that bring the results of random inputs to the order of one."""
    (k,) = workload.dims("k")
    scalars: tuple[float, ...] = (3.0,)
    if workload["b_zero_points"] == "tensor":
        scalars += (-7.0,)
    if workload["out_dtype"] != "int32":
        scalars += (2.0**-16 / sqrt(k),)
    if workload["out_dtype"] in INTEGERS:
        scalars += (2.0**-6, 100.0 if workload["out_dtype"] == "uint8" else -5.0)
    return scalars
