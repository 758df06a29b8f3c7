"""A library's operators as custom ops of PyTorch: `torch.ops.<namespace>.<op>`.

`torch.compile` and `torch.export` trace through them: they know of a call nothing but its schema
and, by the functions below, the shape and dtype of its result. An op finds its library by its
namespace; who loads an exported program registers a library under the same name first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tvmops.errors import ArgumentError
from tvmops.runtime.arrays import gradient_error
from tvmops.runtime.load import Library
from tvmops.runtime.packed import PackedWeight
from tvmops.runtime.torch.fakes import FAKES

_PACKED = "*, str? packed=None, SymInt[]? shape=None"
# The method's parameters; a packed weight comes as its tensor, the name of its layout, and the
# shape that the weight had.
_SCHEMAS = {
    "matmul": "(Tensor a, Tensor b, Tensor? bias=None, str? activation=None, bool trans_a=False, "
    f"bool trans_b=False, Tensor? residual=None, {_PACKED}, str? out_dtype=None) -> Tensor",
    "matmul_fp8": "(Tensor a, Tensor b, Tensor a_scale, Tensor b_scale, str? out_dtype=None) -> Tensor",
    "matmul_int8": "(Tensor a, Tensor b, int a_zero_point=0, float? a_scale=None, Tensor? b_scale=None, "
    "Tensor? bias=None, str? activation=None, str? out_dtype=None, float out_scale=1.0, "
    "int out_zero_point=0, bool trans_b=False, int b_zero_point=0, Tensor? b_zero_points=None, "
    f"{_PACKED}) -> Tensor",
    "matmul_weight_only": "(Tensor x, Tensor w, str packed, SymInt[] shape, int x_bits=24, "
    "Tensor? bias=None, str? activation=None) -> Tensor",
    "attention": "(Tensor q, Tensor k, Tensor v, bool causal=False, float? scale=None, Tensor? mask=None, "
    "str align='bottom-right', Tensor? lengths=None, Tensor? block_table=None, Tensor? cu_seqlens_q=None, "
    "Tensor? cu_seqlens_k=None, SymInt? max_seqlen_q=None, SymInt? max_seqlen_k=None) -> Tensor",
    "conv2d": "(Tensor x, Tensor w, Tensor? bias=None, int[2] stride=1, int[4] padding=0, "
    "int[2] dilation=1, int groups=1, str? activation=None, Tensor? residual=None, str layout='NCHW', "
    f"{_PACKED}) -> Tensor",
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
    implementations = _Implementations(lib)
    for name, schema in _SCHEMAS.items():
        ops.define(name + schema)
        for device in ("CPU", "CUDA"):
            ops.impl(name, implementations.of(name), device)
        qualified = f"{namespace}::{name}"
        torch.library.register_fake(qualified, FAKES[name], lib=ops)
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
    return {name: array, "packed": weight.layout, "shape": list(weight.shape)}


def on_device(weight: PackedWeight, device: torch.device | str) -> PackedWeight:
    """Return a packed weight that lies on `device`: "cuda", or such."""
    return replace(weight, array=torch.as_tensor(weight.array).to(device))


def _weight(op: str, dtype: str, array: Tensor, packed: str | None, shape: Sequence[int] | None) -> Any:
    """Return the weight that `array` is, or holds in the layout `packed`."""
    if packed is None or shape is None:
        return array
    return PackedWeight(op, tuple(shape), dtype, packed, array)


class _Implementations:
    """What computes each op: the library's methods, but for packed weights and pairs of results."""

    def __init__(self, lib: Library) -> None:
        self._lib = lib

    def of(self, op: str) -> Callable[..., Any]:
        made: Callable[..., Any] = getattr(self if op in vars(_Implementations) else self._lib, op)
        return made

    def matmul(
        self, a: Tensor, b: Tensor, *rest: Any, packed: str | None = None, shape: Any = None, **more: Any
    ) -> Any:
        dtype = str(a.dtype).removeprefix("torch.")
        return self._lib.matmul(a, _weight("matmul", dtype, b, packed, shape), *rest, **more)

    def matmul_int8(
        self,
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
        shape: Any = None,
    ) -> Any:
        weight = _weight("matmul_int8", "int8", b, packed, shape)
        # one number goes by value: reading it from a GPU waits, so that it had better lie on the CPU
        scale = b_scale.item() if b_scale is not None and b_scale.ndim == 0 else b_scale
        zeros = b_zero_point if b_zero_points is None else b_zero_points
        rest = bias, activation, out_dtype, out_scale, out_zero_point, trans_b, zeros
        return self._lib.matmul_int8(a, weight, a_zero_point, a_scale, scale, *rest)

    def matmul_weight_only(
        self, x: Tensor, w: Tensor, packed: str, shape: Any, *rest: Any, **more: Any
    ) -> Any:
        weight = _weight("matmul_weight_only", f"int{packed.split()[0]}", w, packed, shape)
        return self._lib.matmul_weight_only(x, weight, *rest, **more)

    def conv2d(
        self,
        x: Tensor,
        w: Tensor,
        *rest: Any,
        packed: str | None = None,
        shape: Any = None,
        **attributes: Any,
    ) -> Any:
        weight = _weight("conv2d", "float32", w, packed, shape)
        return self._lib.conv2d(x, weight, *map(_hashable, rest), **_each_hashable(attributes))

    def pool2d(self, x: Tensor, *rest: Any, **attributes: Any) -> Any:
        return self._lib.pool2d(x, *map(_hashable, rest), **_each_hashable(attributes))

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        causal: bool = False,
        scale: float | None = None,
        mask: Tensor | None = None,
        align: str = "bottom-right",
        *sequences: Any,
        **more: Any,
    ) -> Any:
        names = ("lengths", "block_table", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
        given = dict(zip(names, sequences))  # which PyTorch passes by position
        return self._lib.attention(q, k, v, causal, scale, mask, align, **given, **more)

    def add_layer_norm(
        self,
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Any:
        return self._lib.layer_norm(x, weight, bias, eps, residual)

    def add_rms_norm(
        self,
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Any:
        return self._lib.rms_norm(x, weight, bias, eps, residual)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _each_hashable(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: _hashable(value) for name, value in attributes.items()}
