"""A prepared call computes what the library's method does, and refuses what it was not prepared for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tvmops
from tvmops.errors import ArgumentError, CallError, CallTypeError

Array = NDArray[Any]


def operands(seed: int, m: int = 17, n: int = 31, k: int = 61) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.random((m, k), dtype=np.float32), rng.random((k, n), dtype=np.float32)


def is_product(c: Array, a: Array, b: Array) -> bool:
    return bool(np.abs(c - a.astype("float64") @ b).max() < 1e-4)


def test_it_computes_on_other_arrays_of_the_same_shapes(lib: tvmops.Library) -> None:
    step = lib.prepare("matmul", *operands(0), out=np.empty((17, 31), np.float32))
    assert str(step.workload) == "matmul m=17 n=31 k=61 dtype=float32"
    a, b = operands(1)
    out = np.empty((17, 31), np.float32)
    assert step(a, b, out=out) is out
    assert is_product(out, a, b)
    assert is_product(step(a, b), a, b)


def test_nothing_is_dispatched(lib: tvmops.Library, monkeypatch: pytest.MonkeyPatch) -> None:
    step = lib.prepare("matmul", *operands(0))
    monkeypatch.setattr(tvmops.Library, "_call", lambda *_: pytest.fail("was dispatched"))
    monkeypatch.setattr(tvmops.Library, "_answer", lambda *_: pytest.fail("was dispatched"))
    a, b = operands(1)
    assert is_product(step(a, b), a, b)


def test_a_batch_is_reshaped(lib: tvmops.Library) -> None:
    b = operands(0, 2, 8, 8)[1]
    a = np.random.default_rng(0).random((2, 4, 8), dtype=np.float32)
    step = lib.prepare("matmul", a, b)
    out = np.empty((2, 4, 8), np.float32)
    assert is_product(step(a, b, out=out), a, b)
    with pytest.raises(CallError, match="'out' is strided"):
        step(a, b, out=np.empty((2, 4, 16), np.float32)[..., ::2])


def test_generic_kernels_are_counted_all_the_same(lib: tvmops.Library) -> None:
    with pytest.warns(UserWarning, match="was not tuned"):
        step = lib.prepare("matmul", *operands(0, 3, 4, 5))
    for _ in range(2):
        step(*operands(0, 3, 4, 5))
    assert lib.misses() == {"matmul m=3 n=4 k=5 dtype=float32": 2}


def test_what_it_was_not_prepared_for_is_refused_by_name(lib: tvmops.Library) -> None:
    a, b = operands(0)
    step = lib.prepare("matmul", a, b)
    with pytest.raises(CallError, match=r"'a' is of shape \(16, 61\); expected shape \(17, 61\), as when"):
        step(a[:16], b)
    with pytest.raises(CallTypeError, match="'b' is of dtype float64; expected dtype float32, as when"):
        step(a, b.astype("float64"), out=np.empty((17, 31), np.float32))
    with pytest.raises(CallError, match="'b' is strided"):
        step(a, np.asfortranarray(b), out=np.empty((17, 31), np.float32))
    with pytest.raises(CallTypeError, match="'arrays' is 1 of them; expected 2: a, b"):
        step(a)
    with pytest.raises(CallError, match="'out' is of shape"):
        step(a, b, out=np.empty((31, 17), np.float32))
    with pytest.raises(CallError, match="'out' is an array that shares memory with 'a'"):
        step(a, b, out=a.reshape(-1)[: 17 * 31].reshape(17, 31))
    with pytest.raises(CallTypeError, match="'a' is list"):
        step([1.0], b)


def test_preparing_with_what_does_not_fit_is_refused(lib: tvmops.Library) -> None:
    a, b = operands(0)
    with pytest.raises(ArgumentError, match="'op' is 'cross'"):
        lib.prepare("cross", a, b)
    with pytest.raises(CallTypeError, match="missing a required argument: 'b'"):
        lib.prepare("matmul", a)
    with pytest.raises(CallError, match="expected 61 rows"):
        lib.prepare("matmul", a, b[:60])
    with pytest.raises(CallError, match="'a' is strided"):
        lib.prepare("matmul", np.concatenate([a, a], axis=1)[:, ::2], b)
    with pytest.raises(CallError, match="'out' is of shape"):
        lib.prepare("matmul", a, b, out=np.empty((1, 1), np.float32))


def test_one_array_may_be_given_twice(lib: tvmops.Library) -> None:
    a, b = np.random.default_rng(0).random((2, 8, 8), dtype=np.float32)
    step = lib.prepare("matmul", a, a)
    assert is_product(step(a, a), a, a)
    assert is_product(step(a, b), a, b)


def test_tensors_and_their_gradients(lib: tvmops.Library) -> None:
    torch = pytest.importorskip("torch")
    a, b = (torch.from_numpy(array) for array in operands(0))
    out = torch.empty(17, 31)
    step = lib.prepare("matmul", a, b)
    assert step(a, b, out=out) is out
    assert isinstance(step(a, b), torch.Tensor)
    assert is_product(out.numpy(), a.numpy(), b.numpy())
    a.requires_grad_()
    for given in ({}, {"out": out}):
        with pytest.raises(CallError, match="'a' is a tensor that requires grad"):
            step(a, b, **given)
    with torch.inference_mode():
        assert is_product(step(a, b).numpy(), a.numpy(), b.numpy())
    negated = torch._neg_view(a.detach())
    with pytest.raises(CallError, match="'a' is to be negated"):
        step(negated, b, out=out)
