"""OpenVINO on integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from tvmops.report.peers.base import Call, MakeCall
from tvmops.report.peers.integers import Grouped, Integers, nibbles
from tvmops.report.peers.with_openvino import request
from tvmops.signatures.matmul_int8 import INTEGERS
from tvmops.workloads import Workload

_LEVELS = 256


def matmul_int8(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """As a graph of quantised floats, which it turns into one integer product. Constant b alone."""
    out = str(workload["out_dtype"])
    if out == "int32" or workload["packed"] == "none" or workload["activation"] != "none":
        return None
    given = Integers.of(workload, inputs)
    limits = np.iinfo(str(workload["dtype"]))
    low, high = float(limits.min), float(limits.max)
    parameter = ops.parameter(given.a.shape, given.a.dtype)
    real = [np.float32((each - given.a_zero_point) * given.a_scale) for each in (low, high)]
    a = ops.fake_quantize(
        ops.convert(parameter, np.float32), np.float32(low), np.float32(high), *real, _LEVELS
    )
    b = ops.multiply(ops.convert(ops.constant(given.b), np.float32), ops.constant(given.b_scales[None]))
    node = ops.matmul(a, b, False, False)
    if given.bias is not None:
        node = ops.add(node, ops.constant(given.bias[None]))
    if out in INTEGERS:
        limits = np.iinfo(out)
        ends = [np.float32(each) for each in (limits.min, limits.max)]
        real = [np.float32((float(each) - given.out_zero_point) * given.out_scale) for each in ends]
        node = ops.convert(ops.fake_quantize(node, *real, *ends, _LEVELS), np.dtype(out))
    return request(node, [parameter], [given.a], outputs[0])


def matmul_weight_only(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """Compressed weights: x as float32 for x of 24 or 16 bits, quantised a group at a time for x of 8."""
    x, packed = inputs
    weights = Grouped.of(workload, packed)
    if weights is None:
        return None
    n, k = workload.dims("n", "k")
    kind, pack = (ov.Type.u4, nibbles) if weights.bits == 4 else (ov.Type.u8, np.ascontiguousarray)

    def integers(values: Any, shape: tuple[int, ...]) -> Any:
        flat = np.ascontiguousarray(values).reshape(-1)
        return ops.convert(ops.constant(ov.Tensor(pack(flat), shape, kind), shared_memory=False), np.float32)

    groups = k // weights.group
    w = ops.subtract(
        integers(weights.offsets, (n, groups, weights.group)),
        integers(weights.zero_points, (n, groups, 1)),
    )
    w = ops.multiply(w, ops.constant(np.ascontiguousarray(weights.scales[..., None])))
    w = ops.reshape(w, ops.constant(np.array([n, k])), False)
    parameter = ops.parameter(x.shape, x.dtype)
    size = weights.group if workload["x_bits"] == "8" else 0
    node = ops.matmul(parameter, w, False, True)
    return request(node, [parameter], [x], outputs[0], DYNAMIC_QUANTIZATION_GROUP_SIZE=size)


CALLS: dict[str, MakeCall] = {"matmul_int8": matmul_int8, "matmul_weight_only": matmul_weight_only}
