"""MatMulFp8: the scaled product of two matrices of 8-bit floating point."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from tvmops.ops.base import Array, Exact, Op
from tvmops.ops.matmul import ROUNDING, UNIT_ROUNDOFF
from tvmops.signatures.matmul_fp8 import ROWS
from tvmops.workloads import Workload

SUM_ROUNDOFF = 2.0**-13  # of the sums of Hopper's tensor cores


class MatMulFp8(Op):
    """a_scale * b_scale * (a @ b.T), for a and b of float8_e4m3fn or float8_e5m2.

    Products of such numbers are exact in float32. Tensor cores keep 13 bits behind the point of the
    largest term when they add (DeepSeek-V3 Technical Report, 2024, section 3.3.2), so that each
    of k products loses at most v = 2**-13 of the largest sum on the way. Inputs in [-1, 1) have
    sums below 2 sqrt(k) + 1, six standard deviations, and losses of random signs add up to
    sqrt(k) v of that: kernels are held to this, and to one rounding of the result.
    """

    name = "matmul_fp8"

    def expression(self, workload: Workload) -> list[Any]:
        from tvm import te  # here, so that flops and references need no compiler

        (k,) = workload.dims("k")
        a, b, a_scale, b_scale = (te.placeholder(s.shape, s.dtype, s.name) for s in self.inputs(workload))
        (output,) = self.outputs(workload)
        r = te.reduce_axis((0, k), name="r")
        total = te.compute(
            output.shape,
            lambda i, j: te.sum(a[i, r].astype("float32") * b[j, r].astype("float32"), axis=r),
            name="total",
        )
        by_rows = workload["scales"] == ROWS

        def scaled(i: Any, j: Any) -> Any:
            scale = a_scale[i if by_rows else 0] * b_scale[j if by_rows else 0]
            return (total[i, j] * scale).astype(output.dtype)

        return [a, b, a_scale, b_scale, te.compute(output.shape, scaled, name="c")]

    def reference(self, workload: Workload, *inputs: Array) -> tuple[Exact, ...]:
        a, b, a_scale, b_scale = (array.astype(np.float64) for array in inputs)
        return (a_scale[:, None] * b_scale * (a @ b.T),)

    def flops(self, workload: Workload) -> int:
        m, n, k = workload.dims("m", "n", "k")
        return 2 * m * n * k

    def tolerance(self, workload: Workload) -> float:
        (k,) = workload.dims("k")
        largest = 2 * sqrt(k) + 1
        return largest * (sqrt(k) * SUM_ROUNDOFF + ROUNDING[str(workload["out_dtype"])] + 3 * UNIT_ROUNDOFF)
