"""What PyTorch refuses is refused, and what both take has the same shape: random arguments, good and bad."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tvmops.errors import TvmopsError
from tvmops.runtime.calls import CALLS

torch = pytest.importorskip("torch")

F = torch.nn.functional
DRAWS = 1500
Drawn = tuple[
    tuple[Any, ...], dict[str, Any], Callable[..., Any]
]  # our arguments, and torch's function of them


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


def sizes(rng: random.Random, ranks: tuple[int, ...]) -> list[int]:
    return [rng.choice((0, 1, 2, 3, 4)) for _ in range(rng.choice(ranks))]


def matmul(rng: random.Random) -> Drawn:
    a, b = sizes(rng, (1, 2, 3, 4)), sizes(rng, (1, 2, 3, 4))
    if len(a) > 1 < len(b) and rng.random() < 0.7:
        b[-2] = a[-1]
    return (zeros(*a), zeros(*b)), {}, torch.matmul


def conv2d(rng: random.Random) -> Drawn:
    groups, ci, co = rng.choice((1, 1, 2, 3)), rng.choice((1, 2, 3, 4, 6)), rng.choice((1, 2, 3, 4, 6))
    x = zeros(rng.choice((0, 1, 2)), ci, rng.choice((1, 3, 5, 7)), rng.choice((0, 1, 3, 5)))
    w = zeros(
        co, rng.choice((ci // groups, ci // groups, ci)), rng.choice((0, 1, 1, 3)), rng.choice((1, 2, 3))
    )
    stride = rng.choice((1, 1, 2, 0, -1, (1, 2), (1, 2, 3)))
    padding = rng.choice((0, 1, 1, -1, (1, 0), "valid", "full", "same" if stride == 1 else 0))
    dilation, bias = rng.choice((1, 1, 2, 0, (2, 1))), rng.choice((None, zeros(co), zeros(co), zeros(co + 1)))
    return (x, w, bias, stride, padding, dilation, groups), {}, F.conv2d


def pooling(rng: random.Random, kind: str) -> Drawn:
    x = zeros(
        rng.choice((0, 1, 2)), rng.choice((0, 1, 3)), rng.choice((1, 3, 5, 7)), rng.choice((0, 1, 3, 5))
    )
    kernel, stride = rng.choice((1, 2, 3, 0, -1, (2, 3), (3, 3, 3))), rng.choice((None, 1, 2, 0, -1, (1, 2)))
    padding, ceil_mode = rng.choice((0, 0, 1, 2, -1, (1, 0))), rng.choice((False, True))
    given = {"kind": kind, "ceil_mode": ceil_mode}
    pool = F.max_pool2d if kind == "max" else F.avg_pool2d
    return (x, kernel, stride, padding), given, lambda *args: pool(*args, ceil_mode=ceil_mode)


def softmax(rng: random.Random) -> Drawn:
    x, axis = sizes(rng, (1, 2, 3)), rng.randint(-4, 3)
    mask = zeros(*rng.choice((x, x[1:], x[:1], [1] * len(x), sizes(rng, (1, 2, 3)))))

    def expected(x: Any, axis: int) -> Any:
        return torch.softmax(x + torch.from_numpy(mask).expand_as(x), axis)

    return (zeros(*x), axis), {"mask": mask}, expected


def norm(rng: random.Random) -> Drawn:
    x = sizes(rng, (1, 2, 3))
    weight = rng.choice((x[-1:], x[-2:], sizes(rng, (1, 2))))
    bias = rng.choice((None, zeros(*weight), zeros(*sizes(rng, (1, 2)))))
    return (zeros(*x), zeros(*weight), bias), {}, lambda x, w, b: F.layer_norm(x, w.shape, w, b)


def attention(rng: random.Random) -> Drawn:
    batch, heads, kv_heads = rng.choice((0, 1, 2)), rng.choice((1, 2, 4)), rng.choice((1, 2, 3, 4))
    q_len, kv_len, dim = rng.choice((0, 1, 3)), rng.choice((0, 2, 3)), rng.choice((4, 8))
    k = (rng.choice((batch, batch, 3)), kv_heads, kv_len, rng.choice((dim, dim, 4)))
    v = rng.choice((k, k, (*k[:2], 2, dim)))
    shape = rng.choice(((q_len, kv_len), (batch, 1, 1, kv_len), (2, kv_len), (batch, heads, q_len, 3)))
    mask = rng.choice((None, zeros(*shape), np.ones(shape, bool), np.ones(shape, np.int64)))

    def expected(q: Any, k: Any, v: Any) -> Any:
        given = None if mask is None else torch.from_numpy(mask)
        return F.scaled_dot_product_attention(q, k, v, given, enable_gqa=True)

    return (zeros(batch, heads, q_len, dim), zeros(*k), zeros(*v)), {"mask": mask}, expected


OPS: dict[str, tuple[str, Callable[[random.Random], Drawn]]] = {
    "matmul": ("matmul", matmul),
    "conv2d": ("conv2d", conv2d),
    "max": ("pool2d", lambda rng: pooling(rng, "max")),
    "average": ("pool2d", lambda rng: pooling(rng, "average")),
    "softmax": ("softmax", softmax),
    "layer_norm": ("layer_norm", norm),
    "attention": ("attention", attention),
}


@pytest.mark.parametrize("name", OPS)
def test_what_pytorch_refuses_is_refused(name: str) -> None:
    op, draw = OPS[name]
    rng, refused, taken = random.Random(name), 0, 0
    for _ in range(DRAWS):
        arguments, more, function = draw(rng)
        tensors = [torch.from_numpy(each) if isinstance(each, np.ndarray) else each for each in arguments]
        try:
            expected = tuple(function(*tensors).shape)
        except (RuntimeError, IndexError, ValueError, TypeError):
            with pytest.raises(TvmopsError, match=f"{op}: argument '"):
                CALLS[op](*arguments, **more)
            refused += 1
            continue
        try:
            call = CALLS[op](*arguments, **more)
        except TvmopsError:
            continue  # not all that PyTorch takes has a kernel
        assert tuple(call.shapes[0]) == expected, (arguments, more)
        taken += 1
    assert refused > DRAWS / 20
    assert taken > DRAWS / 20
