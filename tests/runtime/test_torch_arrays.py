"""Torch tensors in, torch tensors out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tvmops
from tvmops.errors import CallError, CallTypeError
from tvmops.runtime.known import KnownCalls

torch = pytest.importorskip("torch")


def random(*shape: int) -> Any:
    return torch.rand(*shape) - 0.5


def widened(tensor: Any) -> Any:
    wide = torch.full((tensor.shape[0], 2 * tensor.shape[1]), float("nan"))
    wide[:, ::2] = tensor
    return wide[:, ::2]


FORMS = {
    "dense": lambda tensor: tensor,
    "transposed": lambda tensor: tensor.T.contiguous().T,
    "strided": widened,
    "offset": lambda tensor: torch.vstack([tensor[:1], tensor])[1:],
    "parameter": lambda tensor: torch.nn.Parameter(tensor, requires_grad=False),
    "negated view": lambda tensor: torch._neg_view(-tensor),
    "imaginary part": lambda tensor: torch.complex(tensor, -tensor).conj().imag,
    "NumPy": lambda tensor: tensor.numpy(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_input_is_read_right(lib: tvmops.Library, form: str) -> None:
    a, b = random(17, 61), random(61, 31)
    expected = a.double() @ b.double()
    change = FORMS[form]
    for first, second in ((change(a), b), (a, change(b)), (change(a), change(b))):
        made = lib.matmul(first, second)
        assert isinstance(made, np.ndarray if form == "NumPy" and first is not a else torch.Tensor)
        assert (torch.as_tensor(made) - expected).abs().max() < 1e-5
        out = torch.full((17, 31), float("nan"))
        for _ in range(2):
            assert lib.matmul(first, second, out=out) is out
            assert (out - expected).abs().max() < 1e-5


def test_dense_tensors_are_not_copied(lib: tvmops.Library, monkeypatch: pytest.MonkeyPatch) -> None:
    a, out = random(8, 8), torch.empty(8, 8)
    lib.matmul(a, a)
    seen: list[tuple[Any, ...]] = []
    (known,) = lib._kernels
    monkeypatch.setitem(lib._kernels, known, lambda *tensors: seen.append(tensors))
    monkeypatch.setattr(lib, "_known", KnownCalls())  # which would call the kernel that it knows
    lib.matmul(a, a, out=out)
    assert [tensor.data_ptr() for tensor in seen[0]] == [a.data_ptr(), a.data_ptr(), out.data_ptr()]


def test_empty_tensors(lib: tvmops.Library) -> None:
    assert lib.matmul(random(0, 8), random(8, 8)).shape == (0, 8)
    assert lib.matmul(random(8, 0), random(0, 8)).eq(0).all()


def test_a_gradient_is_refused_and_not_dropped(lib: tvmops.Library) -> None:
    a, b = random(8, 8).requires_grad_(), random(8, 8)
    lib.matmul(b, b, out=torch.empty(8, 8))
    with pytest.raises(CallError, match="'a' is a tensor that requires grad; expected a call under torch"):
        lib.matmul(a, b)
    with pytest.raises(CallError, match="'out' is a tensor that requires grad"):
        lib.matmul(b.numpy(), b.numpy(), out=torch.empty(8, 8, requires_grad=True))
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert torch.allclose(lib.matmul(a, b), a @ b, atol=1e-5)


def test_operands_of_two_dtypes_are_refused(lib: tvmops.Library) -> None:
    with pytest.raises(CallTypeError, match="'b' is of dtype float32; expected dtype bfloat16"):
        lib.matmul(random(8, 8).bfloat16(), random(8, 8))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: random(8, 8).double(), "of dtype float64; expected dtype float32"),
        (lambda: random(8, 8).int(), "of dtype int32; expected dtype float32"),
        (lambda: random(8, 8).to_sparse(), "of layout torch.sparse_coo; expected a dense tensor"),
        (lambda: random(8, 8).to_sparse_csr(), "of layout torch.sparse_csr; expected a dense tensor"),
        (lambda: random(8, 8).to_mkldnn(), "of layout torch._mkldnn; expected a dense tensor"),
        (lambda: random(8, 8).to("meta"), "on device meta; expected a tensor on the CPU"),
        (lambda: random(8), "of shape (8,); expected two dimensions"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_what_is_no_such_tensor_is_refused(lib: tvmops.Library, make: Any, message: str) -> None:
    with pytest.raises((CallError, CallTypeError)) as caught:
        lib.matmul(make(), random(8, 8))
    assert f"matmul: argument 'a' is {message}" in str(caught.value)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: torch.zeros(8, 16)[:, ::2], "strided; expected a dense row-major array"),
        (lambda: torch.zeros(8, 8).T, "strided; expected a dense row-major array"),
        (lambda: torch.zeros(1, 8).expand(8, 8), "strided; expected a dense row-major array"),
        (lambda: torch._neg_view(torch.zeros(8, 8)), "strided; expected a dense row-major array"),
        (lambda: torch.zeros(8, 9), "of shape (8, 9); expected shape (8, 8)"),
        (lambda: torch.zeros(8, 8).double(), "of dtype float64; expected dtype float32"),
    ],
)
def test_an_output_that_does_not_fit_is_refused_unwritten(
    lib: tvmops.Library, make: Any, message: str
) -> None:
    a, out = random(8, 8), make()
    lib.matmul(a, a, out=torch.empty(8, 8))
    with pytest.raises((CallError, CallTypeError)) as caught:
        lib.matmul(a, a, out=out)
    assert f"matmul: argument 'out' is {message}" in str(caught.value)
    assert out.eq(0).all()


def test_an_output_that_overlaps_an_input_is_refused_unwritten(lib: tvmops.Library) -> None:
    memory = random(24, 8)
    before = memory.clone()
    with pytest.raises(CallError, match="shares memory with 'b'"):
        lib.matmul(memory[:8], memory[16:], out=memory[9:17])
    assert torch.equal(memory, before)
