"""What a tracer sees of the custom ops instead of their results: shapes and dtypes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def _matmul(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    trans_a: bool = False,
    trans_b: bool = False,
    residual: Tensor | None = None,
    *,
    packed: str | None = None,
    shape: Sequence[int] | None = None,
    out_dtype: str | None = None,
) -> Tensor:
    m, dtype = a.shape[-1 if trans_a else -2], getattr(torch, out_dtype) if out_dtype else a.dtype
    if shape is not None:
        return a.new_empty((*a.shape[:-2], m, shape[1]), dtype=dtype)
    n = b.shape[-2 if trans_b else -1]
    return a.new_empty((*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), m, n), dtype=dtype)


def _matmul_fp8(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, out_dtype: str | None = None
) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[0]), dtype=getattr(torch, out_dtype or "bfloat16"))


def _matmul_int8(
    a: Tensor,
    b: Tensor,
    a_zero_point: int = 0,
    a_scale: float | None = None,
    b_scale: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
    out_dtype: str | None = None,
    out_scale: float = 1.0,
    out_zero_point: int = 0,
    trans_b: bool = False,
    b_zero_point: int = 0,
    b_zero_points: Tensor | None = None,
    *,
    packed: str | None = None,
    shape: Sequence[int] | None = None,
) -> Tensor:
    scaled = a_scale is not None or b_scale is not None or bias is not None
    dtype = out_dtype or ("float32" if scaled else "int32")
    n = b.shape[0 if trans_b else 1] if shape is None else shape[1]
    return a.new_empty((a.shape[0], n), dtype=getattr(torch, dtype))


def _matmul_weight_only(
    x: Tensor, w: Tensor, packed: str, shape: Sequence[int], *_: Any, **__: Any
) -> Tensor:
    return x.new_empty((x.shape[0], shape[0]))


def _conv2d(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    activation: str | None = None,
    residual: Tensor | None = None,
    layout: str = "NCHW",
    *,
    packed: str | None = None,
    shape: Sequence[int] | None = None,
) -> Tensor:
    at = 1 if layout == "NHWC" else 2
    kernel = w.shape[at : at + 2] if shape is None else shape[2:]
    size = _sizes(x.shape[at : at + 2], kernel, stride, padding, dilation)
    co = w.shape[0] if shape is None else shape[0]
    return x.new_empty((x.shape[0], *size, co) if layout == "NHWC" else (x.shape[0], co, *size))


def _pool2d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] | None = None,
    padding: Sequence[int] = (0, 0),
    kind: str = "max",
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    layout: str = "NCHW",
) -> Tensor:
    at = 1 if layout == "NHWC" else 2
    size = _sizes(x.shape[at : at + 2], kernel, stride or kernel, padding, dilation, ceil_mode)
    c = x.shape[3 if layout == "NHWC" else 1]
    return x.new_empty((x.shape[0], *size, c) if layout == "NHWC" else (x.shape[0], c, *size))


def _sizes(
    image: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool = False,
) -> list[int]:
    """Return the height and width of what a window makes of an image."""
    sides = tuple(padding) if len(padding) == 4 else (*padding, *padding)
    sizes = []
    for axis, extent in enumerate(image):
        before, step = sides[axis], stride[axis]
        span = extent + before + sides[axis + 2] - dilation[axis] * (kernel[axis] - 1) - 1
        count = (span + (step - 1 if ceil_mode else 0)) // step + 1
        if ceil_mode and (count - 1) * step >= extent + before:
            count -= 1  # a window begins within the image or before it
        sizes.append(count)
    return sizes


def _like(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.new_empty(x.shape)


def _like_both(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


FAKES: dict[str, Callable[..., Any]] = {
    "matmul": _matmul,
    "matmul_fp8": _matmul_fp8,
    "matmul_int8": _matmul_int8,
    "matmul_weight_only": _matmul_weight_only,
    "attention": _like,
    "conv2d": _conv2d,
    "pool2d": _pool2d,
    "softmax": _like,
    "layer_norm": _like,
    "rms_norm": _like,
    "add_layer_norm": _like_both,
    "add_rms_norm": _like_both,
    "activation": lambda activation, x: _like(x),
}
