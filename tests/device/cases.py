"""A call of every op on a GPU, and what is right for it by PyTorch in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from tvmops.quantize import quantize
from tvmops.runtime.load import Library
from tvmops.runtime.torch import on_device, packed

F = torch.nn.functional
NAMES = (
    "matmul float32",
    "matmul bfloat16",
    "matmul of ragged rows",
    "matmul_int8",
    "matmul_fp8",
    "matmul_weight_only",
    "softmax",
    "layer_norm",
    "add_layer_norm",
    "rms_norm",
    "attention",
    "attention decode",
    "attention of few queries",
    "attention of packed sequences",
    "conv2d NHWC",
    "conv2d NCHW",
    "pool2d",
)
HAS_WORKSPACE = (
    "matmul of ragged rows",
    "attention of few queries",
    "conv2d NCHW",
)  # allocate, from PyTorch's own allocator


@dataclass(frozen=True)
class Case:
    """`arguments` and `attributes` of a library's method, and of the custom op where those differ."""

    method: str
    arguments: tuple[Any, ...]
    expected: Any
    rounding: float  # of results, relative to the largest
    attributes: Mapping[str, Any] = field(default_factory=dict)
    op: str = ""
    op_arguments: tuple[Any, ...] | None = None
    op_attributes: Mapping[str, Any] | None = None

    def call(self, lib: Library, **more: Any) -> Any:
        found = getattr(lib, self.method)(*self.arguments, **self.attributes, **more)
        return found[0] if isinstance(found, tuple) else found

    def of_op(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Return the custom op, and its arguments."""
        arguments = self.arguments if self.op_arguments is None else self.op_arguments
        attributes = self.attributes if self.op_attributes is None else self.op_attributes
        return self.op or self.method, arguments, dict(attributes)

    def check(self, found: Any) -> None:
        assert found.device == self.arguments[0].device
        bound = self.rounding * float(self.expected.abs().max())
        torch.testing.assert_close(found.double(), self.expected, rtol=0, atol=bound)

    def moved(self) -> Case:
        """Return the call with its first array one element behind the beginning of its memory."""
        first, *rest = self.arguments
        memory = torch.empty(first.numel() + 1, dtype=first.dtype, device=first.device)
        memory[1:].copy_(first.reshape(-1))
        return replace(self, arguments=(memory[1:].view(first.shape), *rest))


def make_case(name: str, lib: Library, device: str = "cuda") -> Case:
    """Return the case called `name`, on random arrays on `device`."""
    generator = torch.Generator(device).manual_seed(NAMES.index(name))

    def rand(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Any:
        return (torch.rand(shape, device=device, generator=generator) - 0.5).to(dtype)

    def integers(*shape: int) -> Any:
        return torch.randint(-128, 128, shape, dtype=torch.int8, device=device, generator=generator)

    def product(m: int, n: int, k: int, dtype: torch.dtype, rounding: float) -> Case:
        a, b = rand(m, k, dtype=dtype), rand(k, n, dtype=dtype)
        return Case("matmul", (a, b), a.double() @ b.double(), rounding)

    def attention(q: Any, k: Any, v: Any) -> Case:
        exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), enable_gqa=True)
        return Case("attention", (q, k, v), exact, 2**-6)

    def packed_attention() -> Case:
        ends = [0, 100, 100, 300, 337]
        q = rand(337, 4, 64, dtype=torch.float16)
        k, v = (rand(337, 2, 64, dtype=torch.float16) for _ in "kv")
        alone = [
            [x[first:last].double().transpose(0, 1)[None] for x in (q, k, v)]
            for first, last in pairwise(ends) if last > first
        ]  # fmt: skip
        seen = [F.scaled_dot_product_attention(*each, is_causal=True, enable_gqa=True) for each in alone]
        exact = torch.cat([each[0].transpose(0, 1) for each in seen])
        offsets = torch.tensor(ends, dtype=torch.int32, device=device)
        packing = {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets.clone()}
        bounds = {"max_seqlen_q": 200, "max_seqlen_k": 200}
        return Case("attention", (q, k, v), exact, 2**-9, {"causal": True, **packing, **bounds})

    def conv2d_nhwc() -> Case:
        x, w = rand(2, 14, 14, 64, dtype=torch.float16), rand(64, 3, 3, 64, dtype=torch.float16)
        bias = rand(64, dtype=torch.float16)
        seen = (each.double().permute(0, 3, 1, 2) for each in (x, w))
        exact = F.relu(F.conv2d(*seen, bias.double(), padding=1)).permute(0, 2, 3, 1)
        return Case(
            "conv2d", (x, w, bias), exact, 2**-9, {"padding": 1, "activation": "relu", "layout": "NHWC"}
        )

    def conv2d_nchw() -> Case:
        x, w = rand(1, 32, 14, 14, dtype=torch.float16), rand(64, 32, 3, 3, dtype=torch.float16)
        return Case("conv2d", (x, w), F.conv2d(x.double(), w.double(), padding=1), 2**-9, {"padding": 1})

    def int8() -> Case:
        a, b = integers(64, 128), integers(128, 96)
        return Case("matmul_int8", (a, b), a.double() @ b.double(), 0.0)

    def fp8() -> Case:
        kind = torch.float8_e4m3fn
        a, b = rand(64, 128, dtype=torch.float32).to(kind), rand(96, 128, dtype=torch.float32).to(kind)
        scales = rand(2, dtype=torch.float32).abs() + 0.5
        exact = a.double() @ b.double().T * scales.double().prod()
        return Case("matmul_fp8", (a, b, scales[:1].clone(), scales[1:].clone()), exact, 2**-7)

    def weight_only() -> Case:
        x, w = rand(4, 128), rand(96, 128, dtype=torch.float32)
        quantized = quantize(w.cpu().numpy(), "int4", axis=1, group=32)
        weight = on_device(lib.pack("matmul_weight_only", quantized), device)
        exact = x.double() @ torch.from_numpy(quantized.dequantized()).to(device).double().T
        return Case("matmul_weight_only", (x, weight), exact, 2**-7, {}, "", (x,), packed(weight))

    def layer_norm() -> Case:
        x, weight, bias = (rand(*shape, dtype=torch.float32) for shape in ((64, 304), (304,), (304,)))
        exact = F.layer_norm(x.double(), (304,), weight.double(), bias.double())
        return Case("layer_norm", (x, weight, bias), exact, 1e-5)

    def add_layer_norm() -> Case:
        x, residual = rand(64, 304), rand(64, 304)
        exact = F.layer_norm(x.double() + residual.double(), (304,))
        attributes = {"residual": residual}
        return Case("layer_norm", (x,), exact, 2**-6, attributes, "add_layer_norm", (x, residual), {})

    def rms_norm() -> Case:
        x, weight = rand(64, 304), rand(304)
        return Case("rms_norm", (x, weight), F.rms_norm(x.double(), (304,), weight.double(), 1e-5), 2**-7)

    def softmax() -> Case:
        x = rand(64, 304)
        return Case("softmax", (x,), torch.softmax(x.double(), -1), 2**-7)

    def pool2d() -> Case:
        x = rand(2, 16, 14, 14, dtype=torch.float32)
        return Case("pool2d", (x, 3, 2, 1), F.max_pool2d(x.double(), 3, 2, 1), 0.0)

    made = {
        "matmul float32": lambda: product(128, 96, 64, torch.float32, 1e-5),
        "matmul bfloat16": lambda: product(256, 384, 512, torch.bfloat16, 2**-7),
        "matmul of ragged rows": lambda: product(77, 203, 301, torch.bfloat16, 2**-7),
        "matmul_int8": int8,
        "matmul_fp8": fp8,
        "matmul_weight_only": weight_only,
        "softmax": softmax,
        "layer_norm": layer_norm,
        "add_layer_norm": add_layer_norm,
        "rms_norm": rms_norm,
        "attention": lambda: attention(*(rand(2, 4, 256, 128) for _ in range(3))),
        "attention decode": lambda: attention(
            rand(2, 4, 1, 64, dtype=torch.float16), *(rand(2, 2, 256, 64, dtype=torch.float16) for _ in "kv")
        ),
        "attention of few queries": lambda: attention(
            rand(2, 4, 5, 64, dtype=torch.float16), *(rand(2, 2, 1100, 64, dtype=torch.float16) for _ in "kv")
        ),
        "attention of packed sequences": packed_attention,
        "conv2d NHWC": conv2d_nhwc,
        "conv2d NCHW": conv2d_nchw,
        "pool2d": pool2d,
    }
    return made[name]()
