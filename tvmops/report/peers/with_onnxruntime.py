"""ONNX Runtime as a peer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnxruntime
from onnx import TensorProto, helper

from tvmops.machine import physical_cores
from tvmops.report.peers.base import Call, MakeCall
from tvmops.workloads import Workload


def matmul(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call:
    (a, b), (c,) = inputs, outputs
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = physical_cores()
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
        for name, array in (("a", a), ("b", b), ("c", c))
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])], "matmul", tensors[:2], tensors[2:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    for name, array in (("a", a), ("b", b)):
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    binding.bind_output("c", "cpu", 0, c.dtype, c.shape, c.ctypes.data)
    return lambda: session.run_with_iobinding(binding)


CALLS: dict[str, MakeCall] = {"matmul": matmul}
