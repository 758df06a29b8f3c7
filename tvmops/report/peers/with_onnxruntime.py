"""ONNX Runtime as a peer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper

from tvmops.machine import physical_cores
from tvmops.ops import op_of
from tvmops.report.peers.base import (
    Call,
    MakeCall,
    channels_first,
    fastest,
    matmul_operands,
    plain_inputs,
    reporting,
)
from tvmops.signatures.attention import BHLD
from tvmops.signatures.layouts import PLAIN
from tvmops.signatures.pool2d import GLOBAL, MAX
from tvmops.workloads import Workload


def matmul(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """As nodes that it fuses, an initializer for a constant b."""
    activation = {"none": None, "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "gelu": "Gelu"}
    if workload["dtype"] != "float32" or workload["activation"] not in activation:
        return None
    given = matmul_operands(workload, inputs)
    constant = {"b": given.pop("b")} if workload["packed"] != PLAIN else {}
    flags = {f"trans{name.upper()}": int(workload[f"trans_{name}"] is True) for name in "ab"}
    arrays = {
        name: each.swapaxes(-1, -2) if name in "ab" and workload[f"trans_{name}"] else each
        for name, each in given.items()
    }
    if any(flags.values()):
        product = helper.make_node("FusedMatMul", ["a", "b"], ["0"], domain="com.microsoft", **flags)
    else:
        product = helper.make_node("MatMul", ["a", "b"], ["0"])
    nodes = [product]
    for name in ("bias", "residual"):
        if name in arrays:
            nodes.append(helper.make_node("Add", [nodes[-1].output[0], name], [str(len(nodes))]))
    after = activation[str(workload["activation"])]
    if after:
        domain = "com.microsoft" if after == "Gelu" else ""
        nodes.append(helper.make_node(after, [nodes[-1].output[0]], [str(len(nodes))], domain=domain))
    nodes[-1].output[0] = "c"
    return session(nodes, arrays, {"c": outputs[0]}, constant=constant)


def conv2d(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """In NCHW, the only layout that its Conv has, with what it fuses; data comes in that layout."""
    activation = {"none": None, "relu": "Relu", "relu6": "Clip", "sigmoid": "Sigmoid", "tanh": "Tanh"}
    if workload["residual"] or workload["activation"] not in activation:
        return None
    last = workload["layout"] == "NHWC"
    given = {
        name: channels_first(array) if last and array.ndim == 4 else array
        for name, array in plain_inputs(workload, inputs).items()
    }
    y = channels_first(outputs[0]) if last else outputs[0]
    conv = helper.make_node(
        "Conv",
        list(given),
        ["sum" if activation[str(workload["activation"])] else "y"],
        strides=workload["stride"],
        pads=workload["padding"],
        dilations=workload["dilation"],
        group=workload["groups"],
    )
    after = activation[str(workload["activation"])]
    prepared = () if workload["packed"] == PLAIN else ("w", "bias")
    constant = {name: given.pop(name) for name in prepared if name in given}
    limits = {"low": np.float32(0), "high": np.float32(6)} if after == "Clip" else {}
    nodes = [conv, helper.make_node(after, ["sum", *limits], ["y"])] if after else [conv]
    constant.update({name: np.asarray(limit) for name, limit in limits.items()})
    call = session(nodes, given, {"y": y}, constant=constant)
    return reporting(call, lambda _: np.copyto(outputs[0], np.moveaxis(y, 1, 3))) if last else call


def pool2d(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """In NCHW, the only layout that its operators have; data comes in that layout."""
    if workload["ceil_mode"]:
        return None  # its means count elements beyond the padding
    last, is_max = workload["layout"] == "NHWC", workload["kind"] == MAX
    x, y = (channels_first(array) if last else array for array in (inputs[0], outputs[0]))
    name = "MaxPool" if is_max else "AveragePool"
    if workload["kernel"] == GLOBAL:
        node = helper.make_node(f"Global{name}", ["x"], ["y"])
    else:
        counted = int(workload["count_include_pad"] is True)
        own = {"dilations": workload["dilation"]} if is_max else {"count_include_pad": counted}
        node = helper.make_node(
            name,
            ["x"],
            ["y"],
            kernel_shape=workload["kernel"],
            strides=workload["stride"],
            pads=workload["padding"],
            **own,
        )
    call = session([node], {"x": x}, {"y": y})
    return reporting(call, lambda _: np.copyto(outputs[0], np.moveaxis(y, 1, 3))) if last else call


def softmax(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    if workload["mask_rows"] or workload["scaled"]:
        return None
    name = "LogSoftmax" if workload["log"] else "Softmax"
    return session([helper.make_node(name, ["x"], ["out"], axis=1)], {"x": inputs[0]}, {"out": outputs[0]})


def norm(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """Its operators always have a weight, and have the sum with a residual in another."""
    given = {spec.name: array for spec, array in zip(op_of(workload).inputs(workload), inputs)}
    given.setdefault("weight", np.ones(workload.dims("cols"), np.float32))
    (eps,) = op_of(workload).scalars(workload)
    is_layer = workload.op == "layer_norm"
    if workload["bias"] and not is_layer:
        return None
    bias = ["bias"] if workload["bias"] else []
    results = {spec.name: array for spec, array in zip(op_of(workload).outputs(workload), outputs)}
    if workload["residual"]:
        name = "SkipLayerNormalization" if is_layer else "SkipSimplifiedLayerNormalization"
        names, found, domain = ["x", "residual", "weight", *bias], ["out", "", "", "sum"], "com.microsoft"
        node = helper.make_node(name, names, found, epsilon=eps, domain=domain)
    else:
        name = "LayerNormalization" if is_layer else "SimplifiedLayerNormalization"
        node = helper.make_node(name, ["x", "weight", *bias], ["out"], epsilon=eps, axis=1)
    return session([node], given, results)


def attention(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """The faster of ONNX's Attention and, where no heads share, Microsoft's MultiHeadAttention.

    The latter takes and gives (batch, length, heads * head_dim); data comes in that layout.
    """
    batch, heads, kv_heads, q_len, kv_len = workload.dims("batch", "heads", "kv_heads", "q_len", "kv_len")
    causal = bool(workload["causal"]) and q_len > 1
    if workload["mask"] != "none" or workload["layout"] != BHLD or (causal and q_len != kv_len):
        return None
    given, out = dict(zip("qkv", inputs)), outputs[0]
    node = helper.make_node("Attention", ["q", "k", "v"], ["out"], is_causal=int(causal))
    forms = {"Attention": session([node], given, {"out": out}, opset=23)}
    if heads == kv_heads:
        rows = np.ascontiguousarray(np.swapaxes(inputs[0], 1, 2)).reshape(batch, q_len, -1)
        result = np.empty_like(rows)
        node = helper.make_node(
            "MultiHeadAttention",
            ["q", "k", "v"],
            ["out"],
            domain="com.microsoft",
            num_heads=heads,
            unidirectional=int(causal),
        )
        call = session([node], {**given, "q": rows}, {"out": result})
        as_rows = result.reshape(batch, q_len, heads, -1)
        forms["MultiHeadAttention"] = reporting(call, lambda _: np.copyto(out, np.swapaxes(as_rows, 1, 2)))
    return fastest(forms)


def session(
    nodes: list[Any],
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    opset: int = 17,
    constant: Mapping[str, Any] = MappingProxyType({}),
) -> Call:
    """Return a call of the graph of `nodes` on these arrays; those that are constant are part of it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = physical_cores()
    tensors = [
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in side.items()
        ]
        for side in (inputs, outputs)
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in constant.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", *tensors, initializer=initializers),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)],
        ir_version=11 if opset > 17 else 8,
    )
    runner = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = runner.io_binding()
    for name, array in inputs.items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    for name, array in outputs.items():
        binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    return lambda: (runner.run_with_iobinding(binding), inputs, outputs)  # which keeps the arrays


CALLS: dict[str, MakeCall] = {
    "attention": attention,
    "conv2d": conv2d,
    "matmul": matmul,
    "pool2d": pool2d,
    "softmax": softmax,
    "layer_norm": norm,
    "rms_norm": norm,
}
