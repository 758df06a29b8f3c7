"""What each method of a library makes of its arguments, by the op's name."""

from __future__ import annotations

from collections.abc import Callable

from tvmops.runtime.calls import (
    activation,
    attention,
    conv2d,
    matmul,
    matmul_fp8,
    matmul_int8,
    matmul_weight_only,
    norm,
    pool2d,
    softmax,
)
from tvmops.runtime.calls.base import Call
from tvmops.runtime.packed import PackedWeight

# From a method's arguments to the call.
CALLS: dict[str, Callable[..., Call]] = {
    "matmul": matmul.call,
    "matmul_fp8": matmul_fp8.call,
    "matmul_int8": matmul_int8.call,
    "matmul_weight_only": matmul_weight_only.call,
    "attention": attention.call,
    "conv2d": conv2d.call,
    "pool2d": pool2d.call,
    "softmax": softmax.call,
    "layer_norm": norm.layer_norm,
    "rms_norm": norm.rms_norm,
    "activation": activation.call,
}

# The arrays among those arguments, by the names that kernels have for them, in the order in which
# methods hand them on.
_OF_ROWS = ("x", "weight", "bias", "residual")
ARRAYS: dict[str, tuple[str, ...]] = {
    "matmul": ("a", "b", "bias", "residual"),
    "matmul_fp8": ("a", "b", "a_scale", "b_scale"),
    "matmul_int8": ("a", "b", "b_zero_points", "b_scales", "bias"),
    "matmul_weight_only": ("x", "w", "bias"),
    "attention": ("q", "k", "v", "mask", "lengths", "block_table", "cu_seqlens_q", "cu_seqlens_k"),
    "conv2d": ("x", "w", "bias", "residual"),
    "pool2d": ("x",),
    "softmax": ("x", "mask"),
    "layer_norm": _OF_ROWS,
    "rms_norm": _OF_ROWS,
    "activation": ("x",),
}

# And back: from a workload and the arrays of its kernels to a method's arguments.
CALL_ARGUMENTS: dict[str, Callable[..., dict[str, object]]] = {
    "matmul": matmul.arguments,
    "matmul_fp8": matmul_fp8.arguments,
    "matmul_int8": matmul_int8.arguments,
    "matmul_weight_only": matmul_weight_only.arguments,
    "attention": attention.arguments,
    "conv2d": conv2d.arguments,
    "pool2d": pool2d.arguments,
    "softmax": softmax.arguments,
    "layer_norm": norm.arguments,
    "rms_norm": norm.arguments,
    "activation": activation.arguments,
}

# From a weight, as `Library.pack` takes it, to what its kernels read.
PACKS: dict[str, Callable[..., PackedWeight]] = {
    "conv2d": conv2d.pack,
    "matmul": matmul.pack,
    "matmul_int8": matmul_int8.pack,
    "matmul_weight_only": matmul_weight_only.pack,
}

__all__ = ["ARRAYS", "CALLS", "CALL_ARGUMENTS", "PACKS", "Call"]
