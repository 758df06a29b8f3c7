"""Every form of a matmul through an exported library, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvmops
from tvmops.errors import ArgumentError, CallError, CallTypeError, NotInLibraryError, WorkloadError

pytest.importorskip("tvm", reason="exports a library")
pytestmark = pytest.mark.filterwarnings("ignore:library")

M, N, K = 6, 40, 20
RNG = np.random.default_rng(0)


def random(*shape: int) -> Any:
    return RNG.random(shape, dtype="float32") - np.float32(0.5)


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> tvmops.Library:
    """A library of one workload of each form; other shapes are answered by generic kernels."""
    from tests.libraries import default_record, write_log
    from tvmops.library.export import export

    sizes, machine = {"m": M, "n": N, "k": K}, tvmops.target("native")
    fields: list[dict[str, object]] = [
        {},
        {"trans_b": True},
        {"packed": "panels", "bias": True, "activation": "relu"},
        {"batch": 3},
        {"bias": True, "residual": True, "activation": "gelu"},
    ]
    work = [tvmops.workload("matmul", **sizes, **each) for each in fields]
    folder = tmp_path_factory.mktemp("forms")
    log = write_log(folder / "log.jsonl", *(default_record(each, machine) for each in work))
    return tvmops.load(export(work, machine, [log], folder / "library"))


@pytest.mark.parametrize("m", [M, 9], ids=["exact", "generic"])
def test_a_transposed_b_is_recognised_by_flag_and_by_view(forms: tvmops.Library, m: int) -> None:
    a, w = random(m, K), random(N, K)
    for result in (forms.matmul(a, w, trans_b=True), forms.matmul(a, w.T)):
        np.testing.assert_allclose(result, a @ w.T, atol=1e-5)
    assert forms.explain("matmul", a, w.T).workload["trans_b"] is True
    assert forms.explain("matmul", a, w.T.copy()).workload["trans_b"] is False


def test_what_the_library_has_no_transposed_kernel_for_is_copied(forms: tvmops.Library) -> None:
    a, b = random(K, M), random(K, N)
    assert forms.explain("matmul", a, b, trans_a=True).workload["trans_a"] is False
    np.testing.assert_allclose(forms.matmul(a, b, trans_a=True), a.T @ b, atol=1e-5)
    np.testing.assert_allclose(forms.matmul(a.T, b), a.T @ b, atol=1e-5)


@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("m", [M, 1, 33])
def test_a_packed_weight_serves_every_m(forms: tvmops.Library, m: int, trans_b: bool) -> None:
    a, w, bias = random(m, K), random(N, K) if trans_b else random(K, N), random(N)
    packed = forms.pack("matmul", w, trans_b=trans_b)
    assert (packed.op, packed.shape, packed.layout) == ("matmul", (K, N), "panels")
    expected = np.maximum(a @ (w.T if trans_b else w) + bias, 0)
    for _ in range(2):
        out = np.full((m, N), np.nan, "float32")
        assert forms.matmul(a, packed, bias, activation="relu", out=out) is out
        np.testing.assert_allclose(out, expected, atol=1e-5)


SHAPES = [
    ((3, M, K), (3, K, N)),
    ((3, M, K), (K, N)),
    ((2, 3, M, K), (2, 1, K, N)),
    ((M, K), (3, K, N)),
    ((2, 1, M, K), (3, K, N)),
    ((1, M, K), (1, K, N)),
    ((0, M, K), (K, N)),
    ((0, M, K), (0, K, N)),
]


@pytest.mark.parametrize("shapes", [pair for pair in SHAPES if pair[0] != (M, K)], ids=str)
def test_batches_broadcast_as_numpys_do(forms: tvmops.Library, shapes: Any) -> None:
    a, b = (random(*shape) for shape in shapes)
    expected = a @ b
    for _ in range(2):
        made = forms.matmul(a, b)
        assert made.shape == expected.shape
        np.testing.assert_allclose(made, expected, atol=1e-5)


def test_a_batch_of_rows_is_one_a(forms: tvmops.Library) -> None:
    assert str(forms.explain("matmul", random(2, 3, K), random(K, N)).workload) == (
        f"matmul m=6 n={N} k={K} dtype=float32"
    )


def test_bias_residual_and_activation(forms: tvmops.Library) -> None:
    from tvmops.ops.activations import activated

    a, b, bias, residual = random(M, K), random(K, N), random(N), random(M, N)
    expected = activated("gelu", (a @ b + bias + residual).astype("float64"))
    made = forms.matmul(a, b, bias, "gelu", residual=residual)
    np.testing.assert_allclose(made, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["arrays", "tensors"])
def test_a_product_of_nothing_is_what_is_added_to_it(forms: tvmops.Library, kind: str) -> None:
    from tvmops.ops.activations import activated

    a, b, bias, residual = random(M, 0), random(0, N), random(N), random(M, N)
    expected = activated("gelu", (bias + residual).astype("float64"))
    given = [a, b, bias, residual]
    if kind == "tensors":
        torch = pytest.importorskip("torch")
        given = [torch.from_numpy(each) for each in given]
    for left, right, is_turned in ((*given[:2], False), (given[0].T, given[1].T, True)):
        flags = {"trans_a": is_turned, "trans_b": is_turned}
        made = forms.matmul(left, right, given[2], "gelu", residual=given[3], **flags)
        assert type(made) is type(given[0])
        np.testing.assert_allclose(np.asarray(made), expected, atol=1e-6)
    assert (np.asarray(forms.matmul(*given[:2])) == 0).all()


def test_a_form_that_was_not_exported_is_named(forms: tvmops.Library) -> None:
    with pytest.raises(NotInLibraryError, match="activation=tanh"):
        forms.matmul(random(M, K), random(K, N), activation="tanh")


def test_kernels_that_let_bits_go_must_have_been_exported(forms: tvmops.Library) -> None:
    a, b = random(M, K), random(K, N)
    with pytest.raises(NotInLibraryError, match="precision=tf32"):
        forms.matmul(a, b, precision="tf32")
    np.testing.assert_allclose(forms.matmul(a, b, precision="full"), a @ b, atol=1e-5)


def test_no_library_for_a_cpu_holds_such_kernels(tmp_path: Path) -> None:
    from tvmops.library.export import export

    work = tvmops.workload("matmul", m=M, n=N, k=K, precision="tf32")
    with pytest.raises(WorkloadError, match="field 'precision' is 'tf32'; expected full on x86-64-v3"):
        export(work, tvmops.target("x86-64-v3"), [], tmp_path / "library")


def test_only_float32_has_bits_to_let_go(forms: tvmops.Library) -> None:
    torch = pytest.importorskip("torch")
    a, b = (torch.ones(shape, dtype=torch.bfloat16) for shape in ((M, K), (K, N)))
    expected = "argument 'precision' is 'tf32'; expected full, unless a and b are float32"
    with pytest.raises(CallError, match=expected):
        forms.matmul(a, b, precision="tf32")


@pytest.mark.parametrize(
    "changes, argument, message",
    [
        ({"precision": "tf16"}, "precision", "expected one of full, tf32"),
        ({"bias": random(N + 1)}, "bias", rf"of shape \({N + 1},\); expected shape \({N},\)"),
        ({"residual": random(M, N + 1)}, "residual", rf"of shape \({M}, {N + 1}\); expected shape"),
        ({"activation": "swish"}, "activation", "expected one of none, relu"),
        ({"b": random(4, K, N), "a": random(3, M, K)}, "b", r"of batch \(4,\); expected batch"),
        ({"b": random(N + 1, K + 1), "trans_b": True}, "b", f"expected {K} columns, the columns of a"),
    ],
)
def test_what_does_not_fit_is_refused(
    forms: tvmops.Library, changes: dict[str, Any], argument: str, message: str
) -> None:
    with pytest.raises(CallError, match=f"argument '{argument}' is .*{message}"):
        forms.matmul(**{"a": random(M, K), "b": random(K, N), **changes})


def test_what_can_not_be_packed_is_refused(forms: tvmops.Library) -> None:
    with pytest.raises(ArgumentError, match="'softmax'"):
        forms.pack("softmax", random(K, N))
    with pytest.raises(CallError, match=r"of shape \(20,\); expected two dimensions"):
        forms.pack("matmul", random(K))
    with pytest.raises(CallError, match=r"of shape \(0, 40\); expected no size of 0"):
        forms.pack("matmul", random(0, N))
    with pytest.raises(CallError, match=r"of shape \(40, 0\); expected no size of 0"):
        forms.pack("matmul_int8", np.zeros((N, 0), "int8"))
    with pytest.raises(CallTypeError, match="of dtype float64; expected dtype float32"):
        forms.pack("matmul", np.zeros((K, N)))
    with pytest.raises(CallError, match=r"'packed' is .*tiles.*expected one of panels"):
        forms.pack("matmul", random(K, N), packed="tiles")
