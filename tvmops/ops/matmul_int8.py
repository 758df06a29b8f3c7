"""MatMulInt8: the product of two matrices of 8-bit integers, summed in int32."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmops.ops.activations import STEEPEST, activated, expression
from tvmops.ops.base import Array, Exact, Op
from tvmops.ops.matmul import UNIT_ROUNDOFF
from tvmops.signatures import SIGNATURES
from tvmops.signatures.layouts import PLAIN, layout_of
from tvmops.signatures.matmul_int8 import INTEGERS, sample_scalars
from tvmops.workloads import Workload


class MatMulInt8(Op):
    """(a - a_zero_point) @ (b - b_zero_points) for a of uint8 or int8, b of int8, as ONNX's MatMulInteger.

    Sums are int32 and exact. They fit whatever the values, since k is at most 32,000, or 21,000
    where b has zero points; larger k are refused (`signatures/matmul_int8.py` derives it). The int32
    result is that sum. Otherwise the sum s becomes y = activation(s * scale * b_scale + bias) in
    float32, rounded once an operation: the relative error of y before the bias is 3 u,
    u = 2**-24. Quantised results are y / out_scale rounded to the nearest integer, ties to even,
    plus out_zero_point, clipped (ONNX's QuantizeLinear; B. Jacob et al., Quantization and
    Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR 2018).

    Of random inputs, scaled as `sample_scalars` has it, sums have a standard deviation of 1 / 6:
    their results and a bias stay below 3, so kernels are held to 16 u; an activation multiplies
    this by its steepest slope and adds 24 u. A quantised result may be one off, where y lies near
    the middle between two integers.
    """

    name = "matmul_int8"

    def expression(self, workload: Workload) -> list[Any]:
        from tvm import te, tirx  # here, so that flops and references need no compiler

        m, n, k = workload.dims("m", "n", "k")
        tensors = {s.name: te.placeholder(s.shape, s.dtype, s.name) for s in self.inputs(workload)}
        names = SIGNATURES[self.name].scalars(workload)
        scalars = {name: tirx.Var(name, "float32") for name in names}
        r = te.reduce_axis((0, k), name="r")

        def b(row: Any, column: Any) -> Any:
            if workload["packed"] == PLAIN:
                return tensors["b"][(column, row) if workload["trans_b"] else (row, column)]
            return tensors["b"][column // 16, row // 4, column % 16 * 4 + row % 4]

        def product(i: Any, j: Any) -> Any:
            left = tensors["a"][i, r].astype("int32") - scalars["a_zero_point"].astype("int32")
            right = b(r, j).astype("int32")
            if workload["b_zero_points"] == "tensor":
                right = right - scalars["b_zero_point"].astype("int32")
            elif workload["b_zero_points"] == "channel":
                right = right - tensors["b_zero_points"][j]
            return te.sum(left * right, axis=r)

        exact = workload["out_dtype"] == "int32"
        total = te.compute((m, n), product, name="c" if exact else "total")
        if exact:
            return [*tensors.values(), *scalars.values(), total]

        def finished(i: Any, j: Any) -> Any:
            value = total[i, j].astype("float32") * scalars["scale"]
            if workload["scales"] == "channel":
                value = value * tensors["b_scales"][j]
            if workload["bias"]:
                value = value + tensors["bias"][j]
            value = expression(str(workload["activation"]), value, "float32")
            if workload["out_dtype"] == "float32":
                return value
            limits = np.iinfo(str(workload["out_dtype"]))
            value = tirx.nearbyint(value / scalars["out_scale"]) + scalars["out_zero_point"]
            low, high = (tirx.const(float(limit), "float32") for limit in (limits.min, limits.max))
            return tirx.max(tirx.min(value, high), low).astype(str(workload["out_dtype"]))

        return [*tensors.values(), *scalars.values(), te.compute((m, n), finished, name="c")]

    def reference(self, workload: Workload, *inputs: Array) -> tuple[Exact, ...]:
        given = dict(zip((spec.name for spec in self.inputs(workload)), inputs))
        scalars = dict(zip(SIGNATURES[self.name].scalars(workload), self.scalars(workload)))
        b = given["b"].T if workload["trans_b"] else given["b"]
        if workload["packed"] != PLAIN:
            b = layout_of(workload).unpack(b, *workload.dims("k", "n"))
        zeros = given.get("b_zero_points", np.int32(scalars.get("b_zero_point", 0)))
        sums = (given["a"].astype(np.float64) - scalars["a_zero_point"]) @ (b.astype(np.float64) - zeros)
        if workload["out_dtype"] == "int32":
            return (sums,)
        value = sums * np.float32(scalars["scale"]) * given.get("b_scales", np.ones(1)).astype(np.float64)
        value = activated(str(workload["activation"]), value + given.get("bias", np.zeros(1)))
        if workload["out_dtype"] == "float32":
            return (value,)
        limits = np.iinfo(str(workload["out_dtype"]))
        return (
            np.clip(
                np.rint(value / scalars["out_scale"]) + scalars["out_zero_point"], limits.min, limits.max
            ),
        )

    def flops(self, workload: Workload) -> int:
        m, n, k = workload.dims("m", "n", "k")
        return 2 * m * n * k

    def scalars(self, workload: Workload) -> tuple[float, ...]:
        return sample_scalars(workload)

    def tolerance(self, workload: Workload) -> float:
        if workload["out_dtype"] == "int32":
            return 0.0
        if workload["out_dtype"] in INTEGERS:
            return 1.0
        activation = str(workload["activation"])
        return (16 * STEEPEST[activation] + 24 * (activation != "none")) * UNIT_ROUNDOFF

    def random_inputs(self, workload: Workload, seed: int) -> list[Array]:
        """Draw integers from all of their range, scales from [0.5, 1.5) and a bias from [-1, 1)."""
        rng = np.random.default_rng(seed)
        m, n, k = workload.dims("m", "n", "k")
        low = 0 if workload["dtype"] == "uint8" else -128
        arrays = [rng.integers(low, low + 256, (m, k)).astype(str(workload["dtype"]))]
        b = rng.integers(-128, 128, (n, k) if workload["trans_b"] else (k, n)).astype(np.int8)
        arrays.append(b if workload["packed"] == PLAIN else layout_of(workload).pack(b))
        if workload["b_zero_points"] == "channel":
            arrays.append(rng.integers(-128, 128, n).astype(np.int32))
        if workload["scales"] == "channel":
            arrays.append(rng.random(n, dtype=np.float32) + np.float32(0.5))
        if workload["bias"]:
            arrays.append(rng.random(n, dtype=np.float32) * 2 - 1)
        return arrays
