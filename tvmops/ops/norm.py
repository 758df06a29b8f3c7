"""LayerNorm and RMSNorm, with an optional residual that is added first."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tvmops.ops.base import Array, Exact, Op
from tvmops.ops.matmul import ROUNDING
from tvmops.workloads import Workload

UNIT_ROUNDOFF = 2.0**-24  # of float32
_EPS = 1e-5  # to test with


class _Norm(Op):
    centred: bool  # True if the mean is taken off

    def expression(self, workload: Workload) -> list[Any]:
        from tvm import te, tirx  # here, so that flops and references need no compiler

        inputs = {s.name: te.placeholder(s.shape, s.dtype, name=s.name) for s in self.inputs(workload)}
        eps = te.var("eps", "float32")

        def widened(tensor: Any) -> Any:
            if tensor.dtype == "float32":
                return tensor
            return te.compute(
                tensor.shape, lambda *at: tensor[at].astype("float32"), name=f"wide_{tensor.name}"
            )

        wide = {name: widened(tensor) for name, tensor in inputs.items()}
        x = wide["x"]
        rows, cols = workload.dims("rows", "cols")
        if workload["residual"]:
            given, residual = x, wide["residual"]
            x = te.compute((rows, cols), lambda i, j: given[i, j] + residual[i, j], name="sum")
        share = tirx.const(1 / cols, "float32")
        r, s = (te.reduce_axis((0, cols), name=name) for name in "rs")
        total = te.compute((rows,), lambda i: te.sum(x[i, r], axis=r), name="total")

        def off(i: Any, j: Any) -> Any:
            return x[i, j] - total[i] * share if self.centred else x[i, j]

        square = te.compute((rows,), lambda i: te.sum(off(i, s) * off(i, s), axis=s), name="square")

        def result(i: Any, j: Any) -> Any:
            value = off(i, j) / tirx.sqrt(square[i] * share + eps)
            if workload["weight"]:
                value = value * wide["weight"][j]
            value = value + wide["bias"][j] if workload["bias"] else value
            return value.astype(workload["dtype"])

        out = te.compute((rows, cols), result, name="out")
        if not workload["residual"]:
            return [*inputs.values(), eps, out]
        if x.dtype != workload["dtype"]:
            exact = x
            x = te.compute((rows, cols), lambda i, j: exact[i, j].astype(workload["dtype"]), name="rounded")
        return [*inputs.values(), eps, out, x]

    def reference(self, workload: Workload, *inputs: Array) -> tuple[Exact, ...]:
        given = {spec.name: array.astype(np.float64) for spec, array in zip(self.inputs(workload), inputs)}
        x = given["x"] + given.get("residual", 0.0)
        with np.errstate(invalid="ignore", over="ignore"):
            off = x - x.mean(axis=1, keepdims=True) if self.centred else x
            eps = float(np.float32(_EPS))
            out = off / np.sqrt((off * off).mean(axis=1, keepdims=True) + eps)
            out = out * given.get("weight", 1.0) + given.get("bias", 0.0)
        return (out, x) if "residual" in given else (out,)

    def flops(self, workload: Workload) -> int:
        """Count an element's additions and products: of the mean, the square, the result."""
        each = (5 if self.centred else 3) + sum(bool(workload[f]) for f in ("weight", "bias", "residual"))
        return each * self.outputs(workload)[0].elements

    def tolerance(self, workload: Workload) -> float:
        (cols,) = workload.dims("cols")
        largest = _LARGEST if cols >= 32 else 1 / math.sqrt(_EPS)  # a short row may hardly vary
        return ((16 + cols / 8) * UNIT_ROUNDOFF + ROUNDING[str(workload["dtype"])]) * largest

    def scalars(self, workload: Workload) -> tuple[float, ...]:
        return (_EPS,)


_LARGEST = 4.0  # that a result gets for random inputs


class LayerNorm(_Norm):
    """(x - mean) / sqrt(variance + eps) * weight + bias, along the last axis; all tensors `dtype`.

    The variance is the mean square of the differences from the mean, in a second pass over
    the row: the algorithm that loses no digits where the mean is large (T. Chan, G. Golub and
    R. LeVeque, Algorithms for computing the sample variance, The American Statistician 37(3),
    1983). Sums are float32, in several partial sums; kernels are held to the error of cols / 8
    numbers added one after the other, (16 + cols / 8) u, u = 2**-24, times 4, as large as a
    result gets for `random_inputs` (1 / sqrt(eps) below 32 columns, which may hardly
    vary). The sum with the residual is rounded once. Results of
    16 bits are rounded once more.
    """

    name = "layer_norm"
    centred = True


class RMSNorm(_Norm):
    """x / sqrt(mean of x**2 + eps) * weight + bias, along the last axis; all tensors `dtype`.

    B. Zhang and R. Sennrich, Root Mean Square Layer Normalization, arXiv 1910.07467. Sums and
    errors are those of `LayerNorm`.
    """

    name = "rms_norm"
    centred = False
