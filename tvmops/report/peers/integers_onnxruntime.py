"""ONNX Runtime on integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper

from tvmops.report.peers.base import Call, MakeCall
from tvmops.report.peers.integers import Grouped, Integers, nibbles
from tvmops.report.peers.with_onnxruntime import session
from tvmops.signatures.matmul_int8 import INTEGERS
from tvmops.workloads import Workload

_MICROSOFT = "com.microsoft"


def matmul_int8(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """MatMulInteger for sums, MatMulIntegerToFloat for floats, QLinearMatMul for integers again."""
    given, out = Integers.of(workload, inputs), str(workload["out_dtype"])
    if workload["activation"] != "none" or (given.bias is not None and out in INTEGERS):
        return None
    dtype = str(workload["dtype"])
    if out in INTEGERS and out != dtype:
        return None
    arrays = {"a": given.a, "b": given.b}
    constant = {"a_zero": np.array(given.a_zero_point, dtype)}
    if given.is_constant:
        constant["b"] = arrays.pop("b")
    if out != "int32":
        constant["a_scale"] = np.array(given.a_scale, np.float32)
        constant["b_scale"] = given.b_scales
    if out == "int32":
        node = helper.make_node("MatMulInteger", ["a", "b", "a_zero"], ["c"])
    elif out == "float32":
        names = ["a", "b", "a_scale", "b_scale", "a_zero"]
        if given.bias is not None:
            names, constant["bias"] = [*names, "", "bias"], given.bias
        node = helper.make_node("MatMulIntegerToFloat", names, ["c"], domain=_MICROSOFT)
    else:
        constant["b_zero"] = np.zeros(given.b.shape[1], np.int8)
        constant["c_scale"] = np.array(given.out_scale, np.float32)
        constant["c_zero"] = np.array(given.out_zero_point, out)
        names = ["a", "a_scale", "a_zero", "b", "b_scale", "b_zero", "c_scale", "c_zero"]
        node = helper.make_node("QLinearMatMul", names, ["c"])
    return session([node], arrays, {"c": outputs[0]}, constant=constant)


def matmul_weight_only(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """MatMulNBits: x as float32 for x of 24 or 16 bits, as int8 a block for x of 8.

    Blocks are those of the weights, at least 16.
    """
    x, packed = inputs
    weights = Grouped.of(workload, packed)
    if weights is None or weights.group < 16 or weights.group & (weights.group - 1):
        return None
    n, k = workload.dims("n", "k")
    pack = nibbles if weights.bits == 4 else np.ascontiguousarray
    constant = {
        "w": pack(weights.offsets).reshape(n, k // weights.group, -1),
        "scales": weights.scales.reshape(-1),
    }
    names = ["x", "w", "scales"]
    if workload["zero_points"]:
        names, constant["zeros"] = [*names, "zeros"], pack(weights.zero_points).reshape(-1)
    node = helper.make_node(
        "MatMulNBits",
        names,
        ["c"],
        domain=_MICROSOFT,
        K=k,
        N=n,
        bits=weights.bits,
        block_size=weights.group,
        accuracy_level=4 if workload["x_bits"] == "8" else 0,
    )
    return session([node], {"x": x}, {"c": outputs[0]}, constant=constant)


CALLS: dict[str, MakeCall] = {"matmul_int8": matmul_int8, "matmul_weight_only": matmul_weight_only}
