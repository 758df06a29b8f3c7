"""Softmax: out = e**(x - max) / sum of e**(x - max), along one axis; or its logarithm."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tvmops.ops.base import Array, Exact, Op
from tvmops.ops.matmul import ROUNDING
from tvmops.signatures.softmax import SCALE
from tvmops.workloads import Workload

UNIT_ROUNDOFF = 2.0**-24  # of float32


class Softmax(Op):
    """softmax(x * scale + mask), scale and mask optional; all tensors `dtype`.

    Exponents are differences from the largest element, so that none overflows. A row that is
    -inf throughout, holds +inf or NaN, becomes NaN, as in PyTorch.

    Sums are float32, in several partial sums. An exponential is right to 3 + |x - max| / 16
    ulp and the rounding of x - max moves it by |x - max| u, u = 2**-24. For inputs of
    `random_inputs` no exponent is beyond 2 (4 with a mask), and no result larger than
    p = min(1, e**4 / cols); kernels are held to (16 + cols / 8) u p: the sum of cols / 8
    numbers, one after the other, and what surrounds it (N. Higham, Accuracy and Stability of
    Numerical Algorithms, section 4.2). The logarithm's error is that without p, and the
    rounding of a number as large as log(cols).
    """

    name = "softmax"

    def expression(self, workload: Workload) -> list[Any]:
        from tvm import te, tirx  # here, so that flops and references need no compiler

        inputs = [te.placeholder(s.shape, s.dtype, name=s.name) for s in self.inputs(workload)]
        x, shape = inputs[0], inputs[0].shape
        scalars = [te.var(name, "float32") for name in (("scale",) if workload["scaled"] else ())]

        def value(*at: Any) -> Any:
            scaled = x[at].astype("float32") * scalars[0] if scalars else x[at].astype("float32")
            (mask_rows,) = workload.dims("mask_rows")
            return scaled + inputs[1][(at[0] % mask_rows, *at[1:])].astype("float32") if mask_rows else scaled

        def at(outer: tuple[Any, ...], r: Any) -> tuple[Any, ...]:
            return (outer[0], r, *outer[1:])

        others = (shape[0], *shape[2:])
        r, s = (te.reduce_axis((0, shape[1]), name=name) for name in "rs")
        top = te.compute(others, lambda *o: te.max(value(*at(o, r)), axis=r), name="top")
        total = te.compute(
            others, lambda *o: te.sum(tirx.exp(value(*at(o, s)) - top[o]), axis=s), name="total"
        )

        def result(*i: Any) -> Any:
            o = (i[0], *i[2:])
            below = value(*i) - top[o]
            made = below - tirx.log(total[o]) if workload["log"] else tirx.exp(below) / total[o]
            return made.astype(workload["dtype"])

        return [*inputs, *scalars, te.compute(shape, result, name="out")]

    def reference(self, workload: Workload, *inputs: Array) -> tuple[Exact, ...]:
        values = inputs[0].astype(np.float64)
        if workload["scaled"]:
            values *= SCALE
        if workload["mask_rows"] != 0:
            values += np.concatenate([inputs[1].astype(np.float64)] * (len(values) // len(inputs[1])))
        with np.errstate(invalid="ignore", divide="ignore"):
            below = values - values.max(axis=1, keepdims=True)
            powers = np.exp(below)
            total = powers.sum(axis=1, keepdims=True)
            return (below - np.log(total) if workload["log"] else powers / total,)

    def flops(self, workload: Workload) -> int:
        """Five an element: a comparison, a difference, an exponential, an addition, a product."""
        return 5 * self.outputs(workload)[0].elements

    def tolerance(self, workload: Workload) -> float:
        (cols,) = workload.dims("cols")
        rounding = ROUNDING[str(workload["dtype"])]
        relative = (16 + cols / 8) * UNIT_ROUNDOFF
        if workload["log"]:
            return relative + (2 * UNIT_ROUNDOFF + rounding) * (math.log(cols) + 4)
        return (relative + rounding) * min(1.0, math.exp(4) / cols)

    def scalars(self, workload: Workload) -> tuple[float, ...]:
        return (SCALE,) if workload["scaled"] else ()
