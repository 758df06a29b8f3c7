"""A library's operators as custom ops of PyTorch: `torch.ops.<namespace>.<op>`.

`torch.compile` and `torch.export` trace through them: they know of a call nothing but its schema
and, by the functions below, the shape and dtype of its result. An op finds its library by its
namespace; who loads an exported program registers a library under the same name first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tvmops.errors import ArgumentError
from tvmops.runtime.arrays import gradient_error
from tvmops.runtime.load import Library
from tvmops.runtime.packed import PackedWeight
from tvmops.signatures.winograd import TAPS

_PACKED = "str? packed=None, SymInt? columns=None"
# The method's parameters; a packed weight comes as its tensor, the name of its layout, and how many
# columns (for conv2d: output channels) the weight had.
_SCHEMAS = {
    "matmul": "(Tensor a, Tensor b, Tensor? bias=None, str? activation=None, bool trans_a=False, "
    f"bool trans_b=False, Tensor? residual=None, {_PACKED}) -> Tensor",
    "matmul_int8": "(Tensor a, Tensor b, int a_zero_point=0, float? a_scale=None, Tensor? b_scale=None, "
    "Tensor? bias=None, str? activation=None, str? out_dtype=None, float out_scale=1.0, "
    f"int out_zero_point=0, *, {_PACKED}) -> Tensor",
    "matmul_weight_only": "(Tensor x, Tensor w, str packed, SymInt columns, int x_bits=24) -> Tensor",
    "attention": "(Tensor q, Tensor k, Tensor v, bool causal=False, float? scale=None, Tensor? mask=None, "
    "str align='bottom-right') -> Tensor",
    "conv2d": "(Tensor x, Tensor w, Tensor? bias=None, int[2] stride=1, int[4] padding=0, "
    "int[2] dilation=1, int groups=1, str? activation=None, Tensor? residual=None, str layout='NCHW', "
    f"*, {_PACKED}) -> Tensor",
    "pool2d": "(Tensor x, int[2] kernel, int[2]? stride=None, int[4] padding=0, str kind='max', "
    "int[2] dilation=1, bool ceil_mode=False, bool count_include_pad=True, str layout='NCHW') -> Tensor",
    "softmax": "(Tensor x, int axis=-1, float? scale=None, Tensor? mask=None, bool log=False) -> Tensor",
    "layer_norm": "(Tensor x, Tensor? weight=None, Tensor? bias=None, float eps=1e-5) -> Tensor",
    "rms_norm": "(Tensor x, Tensor? weight=None, Tensor? bias=None, float eps=1e-5) -> Tensor",
    "add_layer_norm": "(Tensor x, Tensor residual, Tensor? weight=None, Tensor? bias=None, "
    "float eps=1e-5) -> (Tensor, Tensor)",
    "add_rms_norm": "(Tensor x, Tensor residual, Tensor? weight=None, Tensor? bias=None, "
    "float eps=1e-5) -> (Tensor, Tensor)",
    "activation": "(str activation, Tensor x) -> Tensor",
}

_REGISTERED: dict[str, tuple[Library, torch.library.Library]] = {}  # by namespace, for the whole process


def register(lib: Library, namespace: str = "tvmops") -> Any:
    """Make each operator of `lib` a custom op and return `torch.ops.<namespace>`, which holds them.

    Inference alone: a tensor that requires grad is refused outside `no_grad` and
    `inference_mode`. What `lib.pack` returns goes to an op by `packed(...)`.

    Parameters
    ----------
    namespace
        A Python identifier. The same library may be registered again under it; another one not.

    Raises
    ------
    ArgumentError
        The namespace is no identifier, or has ops of something else.
    """
    earlier = _REGISTERED.get(namespace)
    if earlier is not None and earlier[0] is lib:
        return getattr(torch.ops, namespace)
    if not namespace.isidentifier() or earlier is not None:
        expected = "an identifier that no other library is registered under"
        raise ArgumentError(argument="namespace", value=namespace, expected=expected)
    try:
        ops = torch.library.Library(namespace, "DEF")
    except RuntimeError:
        expected = "a namespace that PyTorch does not know yet"
        raise ArgumentError(argument="namespace", value=namespace, expected=expected) from None
    implementations = _implementations(lib)
    for name, schema in _SCHEMAS.items():
        ops.define(name + schema)
        for device in ("CPU", "CUDA"):
            ops.impl(name, implementations[name], device)
        qualified = f"{namespace}::{name}"
        torch.library.register_fake(qualified, _FAKES[name], lib=ops)
        refuse = _refusal(name, getattr(getattr(torch.ops, namespace), name).default)
        torch.library.register_autograd(qualified, refuse, setup_context=refuse, lib=ops)
    _REGISTERED[namespace] = lib, ops
    return getattr(torch.ops, namespace)


def _refusal(name: str, op: torch._ops.OpOverload) -> Callable[..., Any]:
    """Return what refuses a call whose result would need a gradient."""
    names = [argument.name for argument in op._schema.arguments]

    def refuse(ctx: Any, inputs: Sequence[Any], output: Any, keyword_only_inputs: Any = None) -> None:
        needs = [each for each, value in zip(names, inputs) if getattr(value, "requires_grad", False)]
        raise gradient_error(name, needs[0] if needs else names[0])

    return refuse


def packed(weight: PackedWeight) -> dict[str, Any]:
    """Return the arguments that stand for a packed weight in a call of a custom op.

        ops.matmul(a, bias=bias, **packed(lib.pack("matmul", b)))

    The tensor shares the memory of `weight`.
    """
    name = "b" if weight.op in ("matmul", "matmul_int8") else "w"
    array = weight.array if isinstance(weight.array, Tensor) else torch.from_numpy(weight.array)
    columns = weight.shape[1] if name == "b" else weight.shape[0]
    return {name: array, "packed": weight.layout, "columns": columns}


def _implementations(lib: Library) -> dict[str, Callable[..., Any]]:
    """Return what computes each op: the library's methods, but for packed weights and pairs of results."""

    def matmul(
        a: Tensor,
        b: Tensor,
        bias: Tensor | None = None,
        activation: str | None = None,
        trans_a: bool = False,
        trans_b: bool = False,
        residual: Tensor | None = None,
        packed: str | None = None,
        columns: int | None = None,
    ) -> Any:
        weight: Any = b
        if packed is not None and columns is not None:
            k, dtype = a.shape[-2 if trans_a else -1], str(a.dtype).removeprefix("torch.")
            weight = PackedWeight("matmul", (k, columns), dtype, packed, b)
        return lib.matmul(a, weight, bias, activation, trans_a, trans_b, residual)

    def matmul_int8(
        a: Tensor,
        b: Tensor,
        a_zero_point: int = 0,
        a_scale: float | None = None,
        b_scale: Tensor | None = None,
        *rest: Any,
        packed: str | None = None,
        columns: int | None = None,
    ) -> Any:
        weight: Any = b
        if packed is not None and columns is not None:
            weight = PackedWeight("matmul_int8", (a.shape[-1], columns), "int8", packed, b)
        scale = b_scale.item() if b_scale is not None and b_scale.ndim == 0 else b_scale
        return lib.matmul_int8(a, weight, a_zero_point, a_scale, scale, *rest)

    def matmul_weight_only(x: Tensor, w: Tensor, packed: str, columns: int, x_bits: int = 24) -> Any:
        shape, dtype = (columns, x.shape[-1]), f"int{packed.split()[0]}"
        return lib.matmul_weight_only(x, PackedWeight("matmul_weight_only", shape, dtype, packed, w), x_bits)

    def conv2d(x: Tensor, w: Tensor, *rest: Any, **attributes: Any) -> Any:
        weight: Any = w
        packed, columns = attributes.pop("packed", None), attributes.pop("columns", None)
        if packed is not None:
            ci = x.shape[3 if attributes.get("layout") == "NHWC" else 1]
            weight = PackedWeight("conv2d", (columns, ci, TAPS, TAPS), "float32", packed, w)
        return lib.conv2d(x, weight, *map(_hashable, rest), **_each_hashable(attributes))

    def pool2d(x: Tensor, *rest: Any, **attributes: Any) -> Any:
        return lib.pool2d(x, *map(_hashable, rest), **_each_hashable(attributes))

    def add_layer_norm(
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Any:
        return lib.layer_norm(x, weight, bias, eps, residual)

    def add_rms_norm(
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Any:
        return lib.rms_norm(x, weight, bias, eps, residual)

    own = (matmul, matmul_int8, matmul_weight_only, conv2d, pool2d, add_layer_norm, add_rms_norm)
    named: dict[str, Callable[..., Any]] = {each.__name__: each for each in own}
    return {name: named.get(name) or getattr(lib, name) for name in _SCHEMAS}


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _each_hashable(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: _hashable(value) for name, value in attributes.items()}


# --- what a tracer sees instead: shapes and dtypes --------------------------------------


def _fake_matmul(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    trans_a: bool = False,
    trans_b: bool = False,
    residual: Tensor | None = None,
    packed: str | None = None,
    columns: int | None = None,
) -> Tensor:
    m = a.shape[-1 if trans_a else -2]
    if packed is not None:
        return a.new_empty((*a.shape[:-2], m, columns))
    n = b.shape[-2 if trans_b else -1]
    return a.new_empty((*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), m, n))


def _fake_matmul_int8(
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
    packed: str | None = None,
    columns: int | None = None,
) -> Tensor:
    scaled = a_scale is not None or b_scale is not None or bias is not None
    dtype = out_dtype or ("float32" if scaled else "int32")
    n = b.shape[1] if packed is None else columns
    return a.new_empty((a.shape[0], n), dtype=getattr(torch, dtype))


def _fake_matmul_weight_only(x: Tensor, w: Tensor, packed: str, columns: int, x_bits: int = 24) -> Tensor:
    return x.new_empty((x.shape[0], columns))


def _fake_conv2d(
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
    packed: str | None = None,
    columns: int | None = None,
) -> Tensor:
    at = 1 if layout == "NHWC" else 2
    kernel = (TAPS, TAPS) if packed else w.shape[at : at + 2]
    size = _sizes(x.shape[at : at + 2], kernel, stride, padding, dilation)
    co = columns if packed else w.shape[0]
    return x.new_empty((x.shape[0], *size, co) if layout == "NHWC" else (x.shape[0], co, *size))


def _fake_pool2d(
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


_FAKES: dict[str, Callable[..., Any]] = {
    "matmul": _fake_matmul,
    "matmul_int8": _fake_matmul_int8,
    "matmul_weight_only": _fake_matmul_weight_only,
    "attention": _like,
    "conv2d": _fake_conv2d,
    "pool2d": _fake_pool2d,
    "softmax": _like,
    "layer_norm": _like,
    "rms_norm": _like,
    "add_layer_norm": _like_both,
    "add_rms_norm": _like_both,
    "activation": lambda activation, x: _like(x),
}
