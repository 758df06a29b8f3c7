"""Activation: out = f(x), element by element."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmops.ops.activations import activated, expression
from tvmops.ops.base import Array, Exact, Op
from tvmops.ops.matmul import ROUNDING, SUM, UNIT_ROUNDOFF
from tvmops.workloads import Workload


class Activation(Op):
    """One of `signatures.activations`, all tensors `dtype`.

    Computed in float32 from the polynomials of `schedules.cpu.vector_math`, whose errors are at
    most 3 ulp; a product or two adds an ulp each, and the cubic argument of gelu_tanh four.
    For |x| < 1 kernels are held to 16 u, u = 2**-24. A result of 16 bits, which is at most 1, is
    rounded once more.
    """

    name = "activation"

    def expression(self, workload: Workload) -> list[Any]:
        from tvm import te  # here, so that flops and references need no compiler

        (size,) = workload.dims("size")
        dtype = str(workload["dtype"])
        x = te.placeholder((size,), dtype, name="x")
        name = str(workload["activation"])

        def result(i: Any) -> Any:
            return expression(name, x[i].astype(SUM), SUM).astype(dtype)

        return [x, te.compute((size,), result, name="out")]

    def reference(self, workload: Workload, *inputs: Array) -> tuple[Exact, ...]:
        return (activated(str(workload["activation"]), inputs[0].astype(np.float64)),)

    def flops(self, workload: Workload) -> int:
        """One an element: what counts is how many are done a second."""
        return workload.dims("size")[0]

    def tolerance(self, workload: Workload) -> float:
        return 16 * UNIT_ROUNDOFF + ROUNDING[str(workload["dtype"])]
