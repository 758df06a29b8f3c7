"""MatMul: c = activation(a @ b + bias + residual)."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from tvmops.ops.activations import STEEPEST, activated, expression
from tvmops.ops.base import Array, Exact, Op
from tvmops.signatures.layouts import PLAIN, layout_of
from tvmops.signatures.matmul import TF32
from tvmops.signatures.words import COLUMNS
from tvmops.workloads import Workload

UNIT_ROUNDOFF = 2.0**-24  # of float32
SUM = "float32"  # the dtype of accumulation
TF32_ROUNDING = 2.0**-9  # of a product of two factors without their last 13 bits
ROUNDING = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # of a result kept in 16 bits


class MatMul(Op):
    """Row-major matrix product with an epilogue, all tensors `dtype`.

    Of operands of bfloat16 bias, residual and result may be float32; their products are exact in
    float32. Accumulation is float32, and so is the epilogue. Templates may split the sum over k,
    never widen its error:
    for |a|, |b| <= 1 each kernel is held to 4 (k + 1) u, u = 2**-24, where bias and residual
    count as one product more each. That is far inside the worst case, k**2 u (N. Higham,
    Accuracy and Stability of Numerical Algorithms, section 3.5), and far outside what
    rounding at random reaches: about k u / 4. An activation multiplies this error by its
    steepest slope at most. It adds 8 u of its argument, of which 2 sqrt(k) is six standard
    deviations, and of one: the error of a polynomial or a quotient is a few roundings. A
    result of 16 bits is rounded once more.

    With `precision=tf32` kernels may keep 10 bits of a factor's mantissa (PTX ISA, alternate
    floating-point data formats). Leaving out the others costs less than 2**-10 of it, and less than
    2**-9 of a product, towards zero: of a sum, as above, 2**-9 (2 sqrt(k) + 1).
    """

    name = "matmul"

    def expression(self, workload: Workload) -> list[Any]:
        from tvm import te  # here, so that flops and references need no compiler

        (k,) = workload.dims("k")
        tensors = {
            spec.name: te.placeholder(spec.shape, spec.dtype, spec.name) for spec in self.inputs(workload)
        }
        r = te.reduce_axis((0, k), name="r")

        def a(*at: Any) -> Any:
            *batch, i, _ = at
            index = (r, i) if workload["trans_a"] else (i, r)
            return tensors["a"][(*([] if workload["shared"] == "a" else batch), *index)]

        def b(*at: Any) -> Any:
            *batch, _, j = at
            if workload["packed"] == "words":
                return tensors["b"][j // COLUMNS, r // 2, j % COLUMNS * 2 + r % 2]
            if workload["packed"] != PLAIN:
                columns = tensors["b"].shape[-1]
                return tensors["b"][j // columns, r, j % columns]
            index = (j, r) if workload["trans_b"] else (r, j)
            return tensors["b"][(*([] if workload["shared"] == "b" else batch), *index)]

        (output,) = self.outputs(workload)
        plain = not tensors.keys() - {"a", "b"} and workload["activation"] == "none"
        plain = plain and output.dtype == SUM
        total = te.compute(
            output.shape,
            lambda *at: te.sum(a(*at).astype(SUM) * b(*at).astype(SUM), axis=r),
            name="c" if plain else "total",
        )
        if plain:
            return [*tensors.values(), total]

        def finished(*at: Any) -> Any:
            value = total[at]
            if workload["bias"]:
                value = value + tensors["bias"][at[-1]].astype(SUM)
            if workload["residual"]:
                value = value + tensors["residual"][at].astype(SUM)
            return expression(str(workload["activation"]), value, SUM).astype(output.dtype)

        return [*tensors.values(), te.compute(output.shape, finished, name="c")]

    def reference(self, workload: Workload, *inputs: Array) -> tuple[Exact, ...]:
        names = [spec.name for spec in self.inputs(workload)]
        exact = dict(zip(names, (array.astype(np.float64) for array in inputs)))
        a, b = exact["a"], exact["b"]
        if workload["packed"] != PLAIN:
            b = layout_of(workload).unpack(b, *workload.dims("k", "n"))
        product = (a.swapaxes(-1, -2) if workload["trans_a"] else a) @ (
            b.swapaxes(-1, -2) if workload["trans_b"] else b
        )
        for name in names[2:]:
            product = product + exact[name]
        return (activated(str(workload["activation"]), product),)

    def flops(self, workload: Workload) -> int:
        batch, m, n, k = workload.dims("batch", "m", "n", "k")
        return 2 * batch * m * n * k

    def tolerance(self, workload: Workload) -> float:
        (k,) = workload.dims("k")
        terms = k + len(self.inputs(workload)) - 2
        largest = min(terms, 2 * sqrt(terms) + 1)  # of a result
        product = 4 * (terms + 1) * UNIT_ROUNDOFF
        product += TF32_ROUNDING * largest if workload["precision"] == TF32 else 0.0
        activation = str(workload["activation"])
        rounding = ROUNDING[self.outputs(workload)[0].dtype] * largest
        if activation == "none":
            return product + rounding
        return STEEPEST[activation] * product + rounding + 8 * UNIT_ROUNDOFF * (1 + 2 * sqrt(terms))
