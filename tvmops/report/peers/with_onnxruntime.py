"""ONNX Runtime as a peer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from tvmops.machine import physical_cores
from tvmops.report.peers.base import Call, MakeCall, channels_first, reporting
from tvmops.workloads import Workload


def matmul(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call:
    (a, b), (c,) = inputs, outputs
    return _session([helper.make_node("MatMul", ["a", "b"], ["c"])], {"a": a, "b": b}, {"c": c})


def conv2d(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """In NCHW, the only layout that its Conv has, with what it fuses; data comes in that layout."""
    activation = {"none": None, "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}
    if workload["residual"] or workload["activation"] not in activation:
        return None
    last = workload["layout"] == "NHWC"
    names = ["x", "w", *(["bias"] if workload["bias"] else [])]
    given = {
        name: channels_first(array) if last and array.ndim == 4 else array
        for name, array in zip(names, inputs)
    }
    y = channels_first(outputs[0]) if last else outputs[0]
    conv = helper.make_node(
        "Conv",
        names,
        ["sum" if activation[str(workload["activation"])] else "y"],
        strides=workload["stride"],
        pads=workload["padding"],
        dilations=workload["dilation"],
        group=workload["groups"],
    )
    after = activation[str(workload["activation"])]
    nodes = [conv, helper.make_node(after, ["sum"], ["y"])] if after else [conv]
    call = _session(nodes, given, {"y": y})
    return reporting(call, lambda _: np.copyto(outputs[0], np.moveaxis(y, 1, 3))) if last else call


def _session(nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any]) -> Call:
    """Return a call of the graph of `nodes` on these arrays."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = physical_cores()
    tensors = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in side.items()]
        for side in (inputs, outputs)
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", *tensors),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    for name, array in outputs.items():
        binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    return lambda: (session.run_with_iobinding(binding), inputs, outputs)  # which keeps the arrays


CALLS: dict[str, MakeCall] = {"conv2d": conv2d, "matmul": matmul}
