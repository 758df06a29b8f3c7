"""MatMulWeightOnly: floats times integer weights with a scale for each group."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from tvmops.ops.activations import STEEPEST, activated, expression
from tvmops.ops.base import Array, Exact, Op
from tvmops.ops.matmul import ROUNDING, UNIT_ROUNDOFF
from tvmops.signatures.dtypes import encode
from tvmops.signatures.matmul_weight_only import groups_of
from tvmops.signatures.words import COLUMNS
from tvmops.workloads import Workload

_AT_ONCE = 2**20  # weights; those of a vocabulary would fill the memory, all in float64
# The largest integer that stands for a value of x, by x_bits: all its digits are 127 at most.
MOST = {"24": 8_355_000, "16": 32_600, "8": 127}


class MatMulWeightOnly(Op):
    """activation(x @ w.T + bias), where w[j, r] = scale * (q[j, r] - zero_point) with scales by group of r.

    Kernels may take x as integers of `x_bits` bits times one step for each group and row: the
    largest |x| of the group stands for `MOST`. Their products with q are then exact in int32, a
    group at a time; groups are scaled and added up in float32. Each x is off by half a step at
    most, so a result is off by max |x| / (2 MOST) times the sum of |w| over the group, besides
    what rounding in float32 costs. For 24 bits this is below the rounding of float32 itself, in
    terms of the largest |x| of a group, not of each. With 8 bits it is what others call dynamic
    quantisation of activations. A row of x with infinities, NaN, or values beyond 2**100 or all
    of a group below 2**-100 is multiplied in plain float32. Bias and activation are float32; x, bias
    and result may be bfloat16, rounded once at the end.

    Random x lie in [-1, 1), weights in [-1.5, 1.5) with a mean square of 0.4. Kernels are held to
    6 (k + 1) u, as those of matmul are, and six standard deviations of the steps' errors. A bias
    is one product more; an activation multiplies all this by its steepest slope, and adds 8 u of
    its argument, as in matmul.
    """

    name = "matmul_weight_only"

    def expression(self, workload: Workload) -> list[Any]:
        from tvm import te, tirx  # here, so that flops and references need no compiler

        m, n, k = workload.dims("m", "n", "k")
        x, w, *bias = (te.placeholder(s.shape, s.dtype, s.name) for s in self.inputs(workload))
        layout, r = groups_of(workload), te.reduce_axis((0, k), name="r")

        def byte(j: Any, row: Any, at: Any) -> Any:
            return w[j // 16, row, j % 16 * 4 + at]

        def number(j: Any, row: Any) -> Any:
            word = sum(byte(j, row, at).astype("int32") << (8 * at) for at in range(4))
            return tirx.reinterpret("float32", word)

        def weight(j: Any, at: Any) -> Any:
            first, inside = at // layout.group * layout.rows, at % layout.group
            row = first + 1 + int(layout.has_zero_points) + inside // layout.step
            value = byte(j, row, inside % 4).astype("int32")
            if layout.bits == 4:
                value = (value >> (inside % 8 // 4 * 4)) & 15
            zero = tirx.const(float(layout.zero), "float32")
            if layout.has_zero_points:
                zero = number(j, first + 1)
            return (value.astype("float32") - zero) * number(j, first)

        def product(i: Any, j: Any) -> Any:
            return te.sum(x[i, r].astype("float32") * weight(j, r), axis=r)

        dtype, activation = str(workload["dtype"]), str(workload["activation"])
        if not bias and activation == "none" and dtype == "float32":
            return [x, w, te.compute((m, n), product, name="c")]
        total = te.compute((m, n), product, name="total")

        def finished(i: Any, j: Any) -> Any:
            value = total[i, j] + bias[0][j].astype("float32") if bias else total[i, j]
            return expression(activation, value, "float32").astype(dtype)

        return [x, w, *bias, te.compute((m, n), finished, name="c")]

    def reference(self, workload: Workload, *inputs: Array) -> tuple[Exact, ...]:
        x, w, *bias = inputs
        product = _product(workload, x.astype(np.float64), w)
        for each in bias:
            product = product + each.astype(np.float64)
        return (activated(str(workload["activation"]), product),)

    def flops(self, workload: Workload) -> int:
        m, n, k = workload.dims("m", "n", "k")
        return 2 * m * n * k

    def tolerance(self, workload: Workload) -> float:
        (k,) = workload.dims("k")
        activation, terms = str(workload["activation"]), k + (workload["bias"] is True)
        steps = 6 * 0.65 * sqrt(k) / (sqrt(12) * MOST[str(workload["x_bits"])])
        product = 6 * (terms + 1) * UNIT_ROUNDOFF + steps + 1.5 * (k < 36) * steps
        largest = min(1.5 * terms, 3 * sqrt(terms) + 1)  # of a result
        rounding = ROUNDING[str(workload["dtype"])] * largest
        if activation == "none":
            return product + rounding
        return STEEPEST[activation] * product + rounding + 8 * UNIT_ROUNDOFF * (1 + largest)

    def random_inputs(self, workload: Workload, seed: int) -> list[Array]:
        rng = np.random.default_rng(seed)
        m, n, k = workload.dims("m", "n", "k")
        layout = groups_of(workload)
        x = rng.random((m, k), dtype=np.float32) * 2 - 1
        offsets = rng.integers(0, 1 << layout.bits, (n, k), np.uint8)
        shape = (n, -(-k // layout.group))
        scales = (rng.random(shape, dtype=np.float32) + np.float32(0.5)) / layout.zero
        zeros = rng.integers(layout.zero - 1, layout.zero + 2, shape) if layout.has_zero_points else None
        arrays = [encode(x, str(workload["dtype"])), layout.pack(offsets, scales, zeros)]
        if workload["bias"]:
            arrays.append(encode(rng.random(n, dtype=np.float32) * 2 - 1, str(workload["dtype"])))
        return arrays


def _product(workload: Workload, x: Exact, packed: Array) -> Exact:
    """Return x @ w.T, a few panels of w at a time."""
    layout, (n, k) = groups_of(workload), workload.dims("n", "k")
    panels = max(1, _AT_ONCE // (COLUMNS * k))
    product = np.empty((len(x), n))
    for first in range(0, len(packed), panels):
        begin, end = first * COLUMNS, min((first + panels) * COLUMNS, n)
        weights = layout.unpack(packed[first : first + panels], end - begin, k)
        product[:, begin:end] = (weights @ x.T).T
    return product
