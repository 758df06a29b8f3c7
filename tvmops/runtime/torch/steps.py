"""Steps of a model that a library may compute: how PyTorch does, and the calls that do the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from tvmops.runtime.calls import CALLS, PACKS
from tvmops.runtime.packed import PackedWeight
from tvmops.signatures.winograd import TAPS
from tvmops.workloads import Workload

_NHWC, _NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
_WINOGRAD_CHANNELS = 16  # with fewer, F(4x4, 3x3) is not as exact as convolutions have to be
_EAGER: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "hardswish": functional.hardswish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class Form:
    """A call of an op: some of its arrays are inputs of the step, by their index, the rest constants."""

    op: str
    inputs: Mapping[str, int]
    constants: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    channels_last: bool = False  # its images are the inputs as they lie in that memory format

    def arguments(self, given: Sequence[Tensor]) -> dict[str, Any]:
        """Return the arguments of the op's method."""
        arrays = {name: self.array(given[index]) for name, index in self.inputs.items()}
        return {**arrays, **self.constants, **self.attributes}

    def array(self, given: Tensor) -> Tensor:
        """Return what the method takes of an input; a copy only where it lies in another way."""
        return (given.permute(_NHWC) if self.channels_last else given).contiguous()

    def result(self, returned: Tensor) -> Tensor:
        """Return the step's result from what the method gives back."""
        return returned.permute(_NCHW) if self.channels_last else returned

    def workload(self, given: Sequence[Tensor]) -> Workload:
        """Return the workload that the call is. Raises CallError if the arrays fit no call."""
        return CALLS[self.op](**self.arguments(given)).workload


class Step:
    """An operator with its weights. `activation` is what follows it, if that is computed with it."""

    name: ClassVar[str]
    takes_residual: ClassVar[bool] = False
    takes_activation: ClassVar[bool] = False

    def __init__(self) -> None:
        self.activation: str | None = None
        self._packed: dict[str, PackedWeight] = {}

    def compute(self, given: Sequence[Tensor]) -> Tensor:
        """Return what PyTorch makes of the step's inputs, without what follows."""
        raise NotImplementedError

    def forms(self, given: Sequence[Tensor], residual: int | None, activation: str | None) -> list[Form]:
        """Return calls that compute the step and what follows: those first that are likely the fastest.

        Parameters
        ----------
        residual
            The index of the input that is added, if one is.
        """
        raise NotImplementedError

    def finish(self, result: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
        """Return what PyTorch makes of a result."""
        if residual is not None:
            result = result + residual
        return result if activation is None else _EAGER[activation](result)

    def _pack(self, op: str, weight: Tensor, packed: str, **attributes: Any) -> PackedWeight:
        """Return `weight` packed; once a layout."""
        made = self._packed.get(packed)
        if made is None:
            made = PACKS[op](weight.detach(), packed=packed, **attributes)
            self._packed[packed] = made
        return made


def _is_channels_last(image: Tensor) -> bool:
    """Say whether an image lies in memory channels last, and in that way alone."""
    return not image.is_contiguous() and image.is_contiguous(memory_format=torch.channels_last)


class Linear(Step):
    name, takes_residual, takes_activation = "linear", True, True

    def __init__(self, module: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = module.weight, module.bias

    def compute(self, given: Sequence[Tensor]) -> Tensor:
        return functional.linear(given[0], self.weight, self.bias)

    def forms(self, given: Sequence[Tensor], residual: int | None, activation: str | None) -> list[Form]:
        inputs = {"a": 0} | ({} if residual is None else {"residual": residual})
        bias = {} if self.bias is None else {"bias": self.bias.detach()}
        packed = self._pack("matmul", self.weight, "panels", trans_b=True)
        attributes = {"activation": activation}
        return [
            Form("matmul", inputs, {"b": packed, **bias}, attributes),
            Form("matmul", inputs, {"b": self.weight.detach(), **bias}, {**attributes, "trans_b": True}),
        ]


class Conv2d(Step):
    name, takes_residual, takes_activation = "conv2d", True, True

    def __init__(self, module: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = module.weight, module.bias
        padding = module.padding if isinstance(module.padding, str) else tuple(module.padding)
        self.attributes = {
            "stride": tuple(module.stride),
            "padding": padding,
            "dilation": tuple(module.dilation),
            "groups": module.groups,
        }

    def fold(self, norm: nn.BatchNorm2d) -> None:
        """Take a batch norm that follows into the weights, as it is now."""
        weight, bias = fuse_conv_bn_weights(
            self.weight, self.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        self.weight, self.bias = weight, bias

    def compute(self, given: Sequence[Tensor]) -> Tensor:
        return functional.conv2d(given[0], self.weight, self.bias, **self.attributes)

    def forms(self, given: Sequence[Tensor], residual: int | None, activation: str | None) -> list[Form]:
        inputs = {"x": 0} | ({} if residual is None else {"residual": residual})
        bias = {} if self.bias is None else {"bias": self.bias.detach()}
        attributes = {**self.attributes, "activation": activation}
        weight = self.weight.detach()
        forms = [Form("conv2d", inputs, {"w": weight, **bias}, attributes)]
        if self._is_winograd:
            packed = self._pack("conv2d", weight, "winograd4")
            forms.insert(0, Form("conv2d", inputs, {"w": packed, **bias}, attributes))
        if _is_channels_last(given[0]):
            last = {**attributes, "layout": "NHWC"}
            weights = [weight.permute(_NHWC).contiguous()]
            if self.attributes["groups"] == 1:
                weights.insert(0, self._pack("conv2d", weights[0], "panels-nhwc", layout="NHWC"))
            forms[:0] = [Form("conv2d", inputs, {"w": w, **bias}, last, channels_last=True) for w in weights]
        return forms

    @property
    def _is_winograd(self) -> bool:
        """Say whether F(4x4, 3x3) computes it, and as exactly as convolutions have to be."""
        ones = (self.attributes["stride"], self.attributes["dilation"], self.attributes["groups"])
        taps = self.weight.shape[2:] == (TAPS, TAPS)
        return taps and ones == ((1, 1), (1, 1), 1) and self.weight.shape[1] >= _WINOGRAD_CHANNELS


class MaxPool2d(Step):
    name = "max_pool2d"

    def __init__(self, module: nn.MaxPool2d) -> None:
        super().__init__()
        self.module = module

    def compute(self, given: Sequence[Tensor]) -> Tensor:
        result: Tensor = self.module(given[0])
        return result

    def forms(self, given: Sequence[Tensor], residual: int | None, activation: str | None) -> list[Form]:
        names = {"kernel": "kernel_size", "stride": "stride", "padding": "padding"}
        names |= {"dilation": "dilation", "ceil_mode": "ceil_mode"}
        attributes = {ours: getattr(self.module, its) for ours, its in names.items()}
        forms = [Form("pool2d", {"x": 0}, {}, attributes)]
        if _is_channels_last(given[0]):
            last = {**attributes, "layout": "NHWC"}
            forms.insert(0, Form("pool2d", {"x": 0}, {}, last, channels_last=True))
        return forms


class LayerNorm(Step):
    name = "layer_norm"

    def __init__(self, module: nn.LayerNorm) -> None:
        super().__init__()
        self.module = module

    def compute(self, given: Sequence[Tensor]) -> Tensor:
        result: Tensor = self.module(given[0])
        return result

    def forms(self, given: Sequence[Tensor], residual: int | None, activation: str | None) -> list[Form]:
        names = [name for name in ("weight", "bias") if getattr(self.module, name) is not None]
        affine = {name: getattr(self.module, name).detach() for name in names}
        if not affine and len(self.module.normalized_shape) > 1:
            return []  # without weights the op takes the last dimension
        return [Form("layer_norm", {"x": 0}, affine, {"eps": self.module.eps})]


class Softmax(Step):
    name = "softmax"

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def compute(self, given: Sequence[Tensor]) -> Tensor:
        return functional.softmax(given[0], self.axis)

    def forms(self, given: Sequence[Tensor], residual: int | None, activation: str | None) -> list[Form]:
        return [Form("softmax", {"x": 0}, {}, {"axis": self.axis})]


class Attention(Step):
    name = "scaled_dot_product_attention"

    def __init__(self, causal: bool, scale: float | None, grouped: bool) -> None:
        super().__init__()
        self.causal, self.scale, self.grouped = causal, scale, grouped

    def compute(self, given: Sequence[Tensor]) -> Tensor:
        q, k, v, mask = (*given, None)[:4]
        return functional.scaled_dot_product_attention(
            q, k, v, mask, is_causal=self.causal, scale=self.scale, enable_gqa=self.grouped
        )

    def forms(self, given: Sequence[Tensor], residual: int | None, activation: str | None) -> list[Form]:
        inputs = dict(zip(("q", "k", "v", "mask"), range(len(given))))
        attributes = {"causal": self.causal, "scale": self.scale, "align": "top-left"}
        return [Form("attention", inputs, {}, attributes)]
