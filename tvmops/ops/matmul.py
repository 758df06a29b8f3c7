"""MatMul: c[m, n] = sum over k of a[m, k] * b[k, n]."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmops.ops.base import Array, Exact, Op
from tvmops.workloads import Workload

UNIT_ROUNDOFF = 2.0**-24  # of float32


class MatMul(Op):
    """Row-major matrix product, all tensors `dtype`.

    Accumulation is float32. Templates may split the sum over k, never widen its error:
    for |a|, |b| <= 1 each kernel is held to 4 (k + 1) u, u = 2**-24. That is far inside
    the worst case, k**2 u (N. Higham, Accuracy and Stability of Numerical Algorithms,
    section 3.5), and far outside what rounding at random reaches: about k u / 4.
    """

    name = "matmul"

    def expression(self, workload: Workload) -> list[Any]:
        from tvm import te  # here, so that flops and references need no compiler

        m, n, k = workload.dims("m", "n", "k")
        dtype = workload["dtype"]
        a = te.placeholder((m, k), dtype, name="a")
        b = te.placeholder((k, n), dtype, name="b")
        r = te.reduce_axis((0, k), name="r")
        c = te.compute((m, n), lambda i, j: te.sum(a[i, r] * b[r, j], axis=r), name="c")
        return [a, b, c]

    def reference(self, workload: Workload, *inputs: Array) -> tuple[Exact, ...]:
        a, b = (array.astype(np.float64) for array in inputs)
        return (a @ b,)

    def flops(self, workload: Workload) -> int:
        m, n, k = workload.dims("m", "n", "k")
        return 2 * m * n * k

    def tolerance(self, workload: Workload) -> float:
        (k,) = workload.dims("k")
        return 4 * (k + 1) * UNIT_ROUNDOFF
