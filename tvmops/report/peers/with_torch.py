"""PyTorch as a peer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from tvmops.machine import physical_cores
from tvmops.ops import op_of
from tvmops.report.peers.base import (
    Call,
    MakeCall,
    fastest,
    matmul_operands,
    plain_inputs,
    reporting,
)
from tvmops.signatures.attention import BLHD
from tvmops.signatures.dtypes import BFLOAT16
from tvmops.signatures.layouts import PLAIN
from tvmops.signatures.pool2d import GLOBAL, MAX
from tvmops.signatures.softmax import SCALE
from tvmops.workloads import Workload


def matmul(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """Constant weights of bfloat16 also as oneDNN packs them."""
    if workload["dtype"] not in ("float32", BFLOAT16):
        return None
    torch.set_num_threads(physical_cores())
    dtype = str(workload["dtype"])
    given = {name: _tensor(array) for name, array in matmul_operands(workload, inputs).items()}
    out, a, b = _tensor(outputs[0]), given["a"], given["b"]
    bias, residual = given.get("bias"), given.get("residual")
    activation = _ACTIVATIONS[str(workload["activation"])]
    if bias is residual is activation is None:
        forms: dict[str, Call] = {"plain": lambda: torch.matmul(a, b, out=out)}
        if dtype == BFLOAT16 and workload["packed"] != PLAIN:
            forms["packed"] = _packed_by_onednn(a, b, out)
        return fastest(forms)

    def compute() -> torch.Tensor:
        with torch.inference_mode():
            result = functional.linear(a, b.mT, bias) if b.ndim == 2 else torch.matmul(a, b)
            if bias is not None and b.ndim > 2:
                result += bias
            if residual is not None:
                result += residual
            return activation(result) if activation else result

    return reporting(compute, out.copy_)


def _packed_by_onednn(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> Call:
    """Return the product by a constant b as PyTorch's compiler calls it."""
    weight = torch.ops.mkldnn._reorder_linear_weight(b.T.contiguous(), len(a))

    def compute() -> torch.Tensor:
        with torch.inference_mode():
            return torch.ops.mkldnn._linear_pointwise(a, weight, None, "none", [], "")

    return reporting(compute, out.copy_)


def conv2d(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """The faster of both memory layouts."""
    torch.set_num_threads(physical_cores())
    padding = workload["padding"]
    assert isinstance(padding, tuple)
    if padding[:2] != padding[2:]:
        return None
    given = {name: torch.from_numpy(array) for name, array in plain_inputs(workload, inputs).items()}
    y = torch.from_numpy(outputs[0])
    if workload["layout"] == "NHWC":  # the same memory, seen as NCHW in channels_last
        given = {name: each.permute(0, 3, 1, 2) if each.ndim == 4 else each for name, each in given.items()}
        y = y.permute(0, 3, 1, 2)
    attributes: dict[str, Any] = {name: workload[name] for name in ("stride", "dilation", "groups")}
    activation = _ACTIVATIONS[str(workload["activation"])]

    def form(memory: torch.memory_format) -> Call:
        x, w = (given[name].contiguous(memory_format=memory) for name in "xw")
        residual = given["residual"].contiguous(memory_format=memory) if workload["residual"] else None

        def compute() -> torch.Tensor:
            with torch.inference_mode():
                result = functional.conv2d(x, w, given.get("bias"), padding=padding[:2], **attributes)
                if residual is not None:
                    result += residual
                return activation(result) if activation else result

        return reporting(compute, y.copy_)

    return _faster_layout(form)


def _faster_layout(form: Callable[[torch.memory_format], Call]) -> Call:
    """Return the faster of what `form` gives for both memory layouts."""
    forms = {
        "contiguous": form(torch.contiguous_format),
        "channels_last": form(torch.channels_last),
    }
    return fastest(forms)


def pool2d(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """The faster of both memory layouts."""
    torch.set_num_threads(physical_cores())
    padding = workload["padding"]
    assert isinstance(padding, tuple)
    if padding[:2] != padding[2:]:
        return None
    given, y = torch.from_numpy(inputs[0]), torch.from_numpy(outputs[0])
    if workload["layout"] == "NHWC":  # the same memory, seen as NCHW in channels_last
        given, y = given.permute(0, 3, 1, 2), y.permute(0, 3, 1, 2)
    is_max, is_global = workload["kind"] == MAX, workload["kernel"] == GLOBAL
    attributes: dict[str, Any] = {"ceil_mode": workload["ceil_mode"], "padding": padding[:2]}
    own = "dilation" if is_max else "count_include_pad"
    attributes |= {"kernel_size": workload["kernel"], "stride": workload["stride"], own: workload[own]}

    def form(memory: torch.memory_format) -> Call:
        x = given.contiguous(memory_format=memory)

        def compute() -> torch.Tensor:
            with torch.inference_mode():
                if is_global:
                    return x.amax((2, 3), True) if is_max else x.mean((2, 3), True)
                return (functional.max_pool2d if is_max else functional.avg_pool2d)(x, **attributes)

        return reporting(compute, y.copy_)

    return _faster_layout(form)


def softmax(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call:
    torch.set_num_threads(physical_cores())
    given = _tensors(workload, inputs)
    x, mask, out = given["x"], given.get("mask"), _tensor(outputs[0])
    if mask is not None:
        mask = mask.repeat(len(x) // len(mask), *[1] * (x.ndim - 1))
    compute = torch.log_softmax if workload["log"] else torch.softmax

    def call() -> None:
        with torch.inference_mode():
            value = x * SCALE if workload["scaled"] else x
            compute(value if mask is None else value + mask, 1, out=out)

    return call


def layer_norm(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call:
    return _norm(torch.layer_norm, workload, inputs, outputs)


def rms_norm(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    return None if workload["bias"] else _norm(functional.rms_norm, workload, inputs, outputs)


def activation(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call:
    torch.set_num_threads(physical_cores())
    x, function = _tensor(inputs[0]), _OUT_OF_PLACE[str(workload["activation"])]

    def compute() -> torch.Tensor:
        with torch.inference_mode():
            return function(x)

    return reporting(compute, _tensor(outputs[0]).copy_)


_OUT_OF_PLACE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "hardswish": functional.hardswish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def _norm(
    function: Callable[..., torch.Tensor],
    workload: Workload,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
) -> Call:
    torch.set_num_threads(physical_cores())
    given = _tensors(workload, inputs)
    (eps,) = op_of(workload).scalars(workload)
    x, residual = given["x"], given.get("residual")
    affine = [given.get(name) for name in _AFFINE[workload.op]]
    total = _tensor(outputs[1]) if residual is not None else x

    def compute() -> torch.Tensor:
        with torch.inference_mode():
            if residual is not None:
                torch.add(x, residual, out=total)
            return function(total, x.shape[1:], *affine, eps=eps)

    return reporting(compute, _tensor(outputs[0]).copy_)


_AFFINE = {"layer_norm": ("weight", "bias"), "rms_norm": ("weight",)}


def _tensors(workload: Workload, inputs: Sequence[Any]) -> dict[str, torch.Tensor]:
    specs = op_of(workload).inputs(workload)
    return {spec.name: _tensor(array) for spec, array in zip(specs, inputs)}


def _tensor(array: Any) -> torch.Tensor:
    """Return `array` as a tensor of the same memory; bits are bfloat16."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor


def attention(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call:
    """As it is; without masks also with the queries of heads that share k and v as those of one head."""
    torch.set_num_threads(physical_cores())
    q, k, v, *masks = map(_tensor, inputs)
    if workload["layout"] == BLHD:
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    out = _tensor(outputs[0])
    batch, heads, kv_heads, q_len, kv_len = workload.dims("batch", "heads", "kv_heads", "q_len", "kv_len")
    mask = masks[0].bool() if workload["mask"] == "bool" else masks[0].to(q.dtype) if masks else None
    causal = bool(workload["causal"]) and q_len > 1
    top_left = q_len == kv_len or workload["align"] == "top-left"
    if causal and (mask is not None or not top_left):
        seen = torch.ones(q_len, kv_len, dtype=torch.bool).tril(0 if top_left else kv_len - q_len)
        if mask is None:
            mask = seen
        else:
            mask = mask & seen if mask.dtype == torch.bool else torch.where(seen, mask, -torch.inf)
        causal = False

    def compute() -> torch.Tensor:
        with torch.inference_mode():
            return functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=kv_heads < heads
            )

    def compute_grouped() -> torch.Tensor:
        with torch.inference_mode():
            rows = q.reshape(batch, kv_heads, heads // kv_heads * q_len, -1)
            return functional.scaled_dot_product_attention(rows, k, v).reshape(q.shape)

    forms = {"plain": reporting(compute, out.copy_)}
    if mask is None and not causal and kv_heads < heads:
        forms["grouped"] = reporting(compute_grouped, out.copy_)
    return fastest(forms)


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor] | None] = {
    "none": None,
    "relu": functional.relu_,
    "relu6": lambda x: functional.relu6(x, inplace=True),
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": lambda x: functional.silu(x, inplace=True),
    "hardswish": lambda x: functional.hardswish(x, inplace=True),
    "sigmoid": torch.sigmoid_,
    "tanh": torch.tanh_,
}

CALLS: dict[str, MakeCall] = {
    "attention": attention,
    "conv2d": conv2d,
    "matmul": matmul,
    "pool2d": pool2d,
    "softmax": softmax,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "activation": activation,
}
