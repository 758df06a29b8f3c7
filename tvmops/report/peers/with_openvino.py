"""OpenVINO as a peer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from tvmops.machine import physical_cores
from tvmops.ops import op_of
from tvmops.report.peers.base import Call, MakeCall, channels_first, matmul_operands, plain_inputs, reporting
from tvmops.signatures.attention import BHLD
from tvmops.signatures.dtypes import BFLOAT16
from tvmops.signatures.layouts import PLAIN
from tvmops.signatures.pool2d import GLOBAL, MAX
from tvmops.workloads import Workload


def matmul(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """Numbers of bfloat16 by instructions for those, all others in float32."""
    if workload["dtype"] not in ("float32", BFLOAT16):
        return None
    given = matmul_operands(workload, inputs)
    constant = {"b": given.pop("b")} if workload["packed"] != PLAIN else {}
    turned = {name for name in "ab" if workload[f"trans_{name}"]}
    arrays = {name: each.swapaxes(-1, -2) if name in turned else each for name, each in given.items()}
    short = workload["dtype"] == BFLOAT16
    kind = ov.Type.bf16 if short else ov.Type.f32
    parameters = {name: ops.parameter(array.shape, kind) for name, array in arrays.items()}
    nodes = {
        **parameters,
        **{
            name: ops.constant(ov.Tensor(array, array.shape, kind), shared_memory=False)
            for name, array in constant.items()
        },
    }
    node = ops.matmul(nodes["a"], nodes["b"], "a" in turned, "b" in turned)
    for name in given.keys() - {"a", "b"}:
        node = ops.add(node, nodes[name])
    node = _ACTIVATIONS[str(workload["activation"])](node)
    precision = "bf16" if short else "f32"
    return request(node, list(parameters.values()), list(arrays.values()), outputs[0], precision)


def conv2d(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """In NCHW, the only layout that its operators have; data comes in that layout."""
    if workload["residual"] or workload["activation"] not in _ACTIVATIONS:
        return None
    last, groups = workload["layout"] == "NHWC", workload.dims("groups")[0]
    given = [
        channels_first(array) if last and array.ndim == 4 else array
        for array in plain_inputs(workload, inputs).values()
    ]
    y = channels_first(outputs[0]) if last else outputs[0]
    if groups > 1:
        given[1] = given[1].reshape(groups, -1, *given[1].shape[1:])
    varying = 1 if workload["packed"] != PLAIN else len(given)
    parameters = [ops.parameter(array.shape, array.dtype) for array in given[:varying]]
    nodes = [*parameters, *map(ops.constant, given[varying:])]
    stride, padding, dilation = (list(workload[name]) for name in ("stride", "padding", "dilation"))  # type: ignore[arg-type]
    convolution = ops.group_convolution if groups > 1 else ops.convolution
    node = convolution(*nodes[:2], stride, padding[:2], padding[2:], dilation)
    if workload["bias"]:
        node = ops.add(node, ops.unsqueeze(nodes[2], [0, 2, 3]))
    node = _ACTIVATIONS[str(workload["activation"])](node)
    call = request(node, parameters, given[:varying], y)
    return reporting(call, lambda _: np.copyto(outputs[0], np.moveaxis(y, 1, 3))) if last else call


def pool2d(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """In NCHW, the only layout that its operators have; data comes in that layout."""
    last, is_max = workload["layout"] == "NHWC", workload["kind"] == MAX
    if workload["ceil_mode"]:
        return None
    x, y = (channels_first(array) if last else array for array in (inputs[0], outputs[0]))
    parameter = ops.parameter(x.shape, x.dtype)
    if workload["kernel"] == GLOBAL:
        node = (ops.reduce_max if is_max else ops.reduce_mean)(parameter, [2, 3], keep_dims=True)
    else:
        names = ("kernel", "stride", "padding", "dilation")
        kernel, stride, padding, dilation = (list(workload[name]) for name in names)  # type: ignore[arg-type]
        sides = padding[:2], padding[2:]
        if is_max:
            node = ops.max_pool(parameter, stride, dilation, *sides, kernel).output(0)
        else:
            excluded = workload["count_include_pad"] is False
            node = ops.avg_pool(parameter, stride, *sides, kernel, excluded)
    call = request(node, [parameter], [x], y)
    return reporting(call, lambda _: np.copyto(outputs[0], np.moveaxis(y, 1, 3))) if last else call


def softmax(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    if workload["mask_rows"] or workload["scaled"]:
        return None
    x = ops.parameter(inputs[0].shape, inputs[0].dtype)
    return request((ops.log_softmax if workload["log"] else ops.softmax)(x, 1), [x], inputs, outputs[0])


def norm(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """As the graph that it fuses to one operator."""
    if workload["residual"]:
        return None
    specs = op_of(workload).inputs(workload)
    given = {s.name: ops.parameter(array.shape, array.dtype) for s, array in zip(specs, inputs)}
    (eps,) = op_of(workload).scalars(workload)
    x = given["x"]
    if workload.op == "layer_norm":
        node = ops.mvn(x, [1], True, eps, "inside_sqrt")
    else:
        square = ops.reduce_mean(ops.power(x, np.float32(2)), [1], keep_dims=True)
        node = ops.multiply(x, ops.divide(np.float32(1), ops.sqrt(ops.add(square, np.float32(eps)))))
    if "weight" in given:
        node = ops.multiply(node, given["weight"])
    if "bias" in given:
        node = ops.add(node, given["bias"])
    return request(node, list(given.values()), inputs, outputs[0])


def attention(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """Its operator; heads that share k and v by the broadcast that its language models use."""
    batch, heads, kv_heads, q_len, kv_len = workload.dims("batch", "heads", "kv_heads", "q_len", "kv_len")
    (head_dim,) = workload.dims("head_dim")
    causal = bool(workload["causal"]) and q_len > 1
    if workload["mask"] != "none" or workload["layout"] != BHLD or (causal and q_len != kv_len):
        return None
    parameters = [ops.parameter(array.shape, array.dtype) for array in inputs]
    q, k, v = parameters
    if kv_heads < heads:
        spread = [batch, kv_heads, heads // kv_heads, kv_len, head_dim]
        whole = ops.constant(np.array([batch, heads, kv_len, head_dim], np.int64))
        k, v = (
            ops.reshape(
                ops.broadcast(
                    ops.unsqueeze(each, 2), np.array(spread, np.int64), broadcast_spec="BIDIRECTIONAL"
                ),
                whole,
                False,
            )
            for each in (k, v)
        )
    node = ops.scaled_dot_product_attention(q, k, v, causal=causal)
    return request(node, parameters, list(inputs), outputs[0])


def activation(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call:
    x = ops.parameter(inputs[0].shape, inputs[0].dtype)
    return request(_ACTIVATIONS[str(workload["activation"])](x), [x], inputs, outputs[0])


def request(
    node: Any,
    parameters: list[Any],
    inputs: Sequence[Any],
    output: Any,
    precision: str = "f32",
    **settings: object,
) -> Call:
    """Return a call of the graph that ends in `node`, on these arrays, with what `settings` say besides."""
    model = ov.Model([node], parameters)
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": physical_cores(),
        "INFERENCE_PRECISION_HINT": precision,  # by itself it takes bf16 where the CPU has it
        **settings,
    }
    made = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    for index, (parameter, array) in enumerate(zip(parameters, inputs)):
        made.set_input_tensor(index, _shared(array, parameter.get_element_type()))
    made.set_output_tensor(0, _shared(output, node.get_element_type()))
    return lambda: (made.infer(), inputs, output)  # which keeps the arrays


def _shared(array: Any, kind: Any) -> Any:
    """Return a tensor in the memory of `array`."""
    if kind == ov.Type.bf16:
        return ov.Tensor(array, array.shape, kind)
    return ov.Tensor(array, shared_memory=True)


_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "none": lambda x: x,
    "relu": ops.relu,
    "relu6": lambda x: ops.clamp(x, 0, 6),
    "gelu": lambda x: ops.gelu(x, "erf"),
    "gelu_tanh": lambda x: ops.gelu(x, "tanh"),
    "silu": ops.swish,
    "hardswish": ops.hswish,
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
}

CALLS: dict[str, MakeCall] = {
    "attention": attention,
    "conv2d": conv2d,
    "matmul": matmul,
    "pool2d": pool2d,
    "softmax": softmax,
    "layer_norm": norm,
    "rms_norm": norm,
    "activation": activation,
}
