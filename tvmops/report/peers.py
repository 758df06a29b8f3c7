"""Other libraries on the same workload, each called in its best form.

All run on as many threads as this machine has physical cores, write to the array that they
are given, and get both inputs anew with each call: no weights are packed beforehand.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from tvmops.errors import ArgumentError
from tvmops.machine import physical_cores
from tvmops.workloads import Workload

Call = Callable[[], object]
MakeCall = Callable[..., Call]  # takes the inputs and the output


def limit_threads() -> None:
    """Give OpenBLAS one thread a physical core; it reads this when NumPy is first imported."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(physical_cores()))


def peer_call(peer: str, workload: Workload, inputs: Sequence[Any], out: Any) -> Call | None:
    """Return a call by which `peer` computes `workload` into `out`; None if it is not installed.

    The arrays must outlive the call: some peers hold their addresses alone.

    Raises
    ------
    ArgumentError
        `peer` is none that is known here, or has no form of this op.
    """
    if peer not in PEERS:
        raise ArgumentError(argument="against", value=peer, expected="names among " + ", ".join(PEERS))
    if workload.op not in PEERS[peer]:
        raise ArgumentError(argument="against", value=peer, expected=f"a peer that has {workload.op}")
    needed = ("onnx", peer) if peer == "onnxruntime" else (peer,)
    if not all(find_spec(module) for module in needed):
        return None
    return PEERS[peer][workload.op](*inputs, out)


def _numpy_matmul(a: Any, b: Any, c: Any) -> Call:
    import numpy as np

    return lambda: np.matmul(a, b, out=c)


def _torch_matmul(a: Any, b: Any, c: Any) -> Call:
    import torch

    torch.set_num_threads(physical_cores())
    ta, tb, tc = (torch.from_numpy(array) for array in (a, b, c))
    return lambda: torch.matmul(ta, tb, out=tc)


def _onnxruntime_matmul(a: Any, b: Any, c: Any) -> Call:
    import onnxruntime
    from onnx import TensorProto, helper

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


def _openvino_matmul(a: Any, b: Any, c: Any) -> Call:
    import openvino as ov
    from openvino import opset13 as ops

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


PEERS: dict[str, dict[str, MakeCall]] = {
    "numpy": {"matmul": _numpy_matmul},
    "onnxruntime": {"matmul": _onnxruntime_matmul},
    "openvino": {"matmul": _openvino_matmul},
    "torch": {"matmul": _torch_matmul},
}
