"""OpenVINO as a peer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import openvino as ov
from openvino import opset13 as ops

from tvmops.machine import physical_cores
from tvmops.report.peers.base import Call, MakeCall
from tvmops.workloads import Workload


def matmul(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call:
    (a, b), (c,) = inputs, outputs
    left, right = (ops.parameter(array.shape, array.dtype) for array in (a, b))
    model = ov.Model([ops.matmul(left, right, False, False)], [left, right])
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": physical_cores(),
        "INFERENCE_PRECISION_HINT": "f32",  # it would take bf16 where the CPU has it
    }
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    for index, array in enumerate((a, b)):
        request.set_input_tensor(index, ov.Tensor(array, shared_memory=True))
    request.set_output_tensor(0, ov.Tensor(c, shared_memory=True))
    return request.infer  # type: ignore[no-any-return]


CALLS: dict[str, MakeCall] = {"matmul": matmul}
