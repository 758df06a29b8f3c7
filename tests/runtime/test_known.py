"""A call like an earlier one goes straight to its kernel, and says the same as the careful way."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tvmops
from tvmops.errors import CallError, CallTypeError
from tvmops.runtime import load as runtime_load
from tvmops.runtime import plans
from tvmops.runtime.calls import ARRAYS, CALLS
from tvmops.runtime.known import key_of
from tvmops.runtime.load import Library
from tvmops.runtime.operators import Operators
from tvmops.runtime.plans import plan_of

Array = NDArray[Any]


@pytest.fixture
def lib(library: Path) -> Library:
    return tvmops.load(library)


def inputs(seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.random((17, 61), dtype=np.float32), rng.random((61, 31), dtype=np.float32)


@pytest.fixture
def known(lib: Library, monkeypatch: pytest.MonkeyPatch) -> Library:
    """A library that knows the call of `inputs`, and whose careful way is counted."""
    lib.matmul(*inputs())
    careful = runtime_load.CALLS["matmul"]
    lib.careful = 0  # type: ignore[attr-defined]

    def counted(*arguments: Any) -> Any:
        lib.careful += 1  # type: ignore[attr-defined]
        return careful(*arguments)

    monkeypatch.setitem(runtime_load.CALLS, "matmul", counted)
    return lib


def careful_calls(lib: Library) -> int:
    return int(lib.careful)  # type: ignore[attr-defined]


def is_product(c: Array, a: Array, b: Array) -> bool:
    return bool(np.abs(c - a.astype("float64") @ b).max() < 1e-4)


def test_it_takes_new_arrays_of_the_same_shapes(known: Library) -> None:
    a, b = inputs(1)
    assert is_product(known.matmul(a, b), a, b)
    out = np.empty((17, 31), np.float32)
    assert known.matmul(a, b, out=out) is out
    assert is_product(out, a, b)
    assert careful_calls(known) == 0


def test_a_library_returns_what_the_first_input_is(known: Library) -> None:
    torch = pytest.importorskip("torch")
    a, b = (torch.from_numpy(array) for array in inputs(1))
    assert isinstance(known.matmul(a, b), torch.Tensor)  # tensors are known apart
    learned = careful_calls(known)
    assert isinstance(known.matmul(a, b), torch.Tensor)
    assert isinstance(known.matmul(*inputs(1)), np.ndarray)
    assert careful_calls(known) == learned


def test_a_gradient_is_refused_all_the_same(known: Library) -> None:
    torch = pytest.importorskip("torch")
    a, b = (torch.from_numpy(array) for array in inputs(1))
    a.requires_grad_()
    with pytest.raises(CallError, match="requires grad"):
        known.matmul(a, b)
    with torch.no_grad():
        assert is_product(known.matmul(a, b).numpy(), a.numpy(), b.numpy())


def test_tensors_of_known_shapes_go_straight_to_the_kernel(known: Library) -> None:
    torch = pytest.importorskip("torch")
    a, b = (torch.from_numpy(array) for array in inputs(1))
    out = torch.empty(17, 31)
    known.matmul(a, b, out=out)
    learned = careful_calls(known)
    out.zero_()
    assert known.matmul(a, b, out=out) is out
    assert is_product(out.numpy(), a.numpy(), b.numpy())
    assert careful_calls(known) == learned
    for each in (a, b, out):
        each.requires_grad_()
        with pytest.raises(CallError, match="requires grad"):
            known.matmul(a, b, out=out)
        with torch.no_grad():
            known.matmul(a, b, out=out)
        each.requires_grad_(False)


def test_a_tensor_that_is_to_be_negated_is(lib: Library) -> None:
    """One element is dense however it is strided; more may be made so."""
    torch = pytest.importorskip("torch")
    for size in (1, 8):
        a, out = torch.ones(size, size), torch.empty(size, size)
        imaginary = torch.complex(torch.ones(8, 16), torch.ones(8, 16)).conj().imag
        negated = imaginary.as_strided((size, size), (size, 1))
        assert negated.is_neg() and negated.is_contiguous()
        for _ in range(2):
            assert lib.matmul(a, a, out=out).eq(size).all()
            assert lib.matmul(negated, a, out=out).eq(-size).all()
            assert lib.matmul(a, negated, out=out).eq(-size).all()
            with pytest.raises(CallError, match="'out' is strided"):
                lib.matmul(a, a, out=negated)


def test_strided_inputs_are_copied(known: Library) -> None:
    a, b = inputs(1)
    wide = np.zeros((17, 122), np.float32)
    wide[:, ::2] = a
    assert is_product(known.matmul(wide[:, ::2], np.asfortranarray(b)), a, b)


@pytest.mark.parametrize("kind", ["NumPy", "torch"])
def test_strided_inputs_are_remembered_by_their_strides(
    lib: Library, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views of a step, columns of a wider array, transposed ones; then dense ones of the same shapes."""
    a, b = inputs(1)
    wide, steps = np.zeros((17, 70), np.float32), np.zeros((17, 122), np.float32)
    wide[:, 5:66], steps[:, ::2] = a, a
    out: Any = np.empty((17, 31), np.float32)
    forms: list[tuple[Any, Any]] = [
        (steps[:, ::2], b),
        (wide[:, 5:66], b.T.copy().T),
        (a, b.T.copy().T),
        (a.T.copy().T, np.repeat(b, 2, 0)[::2]),
        (a, b),
    ]
    if kind == "torch":
        torch = pytest.importorskip("torch")
        as_tensors = [
            (torch.from_numpy(steps)[:, ::2], torch.from_numpy(b)),
            (torch.from_numpy(wide)[:, 5:66], torch.from_numpy(b.T.copy()).T),
        ]
        forms, out = [*as_tensors, *(tuple(map(torch.from_numpy, form)) for form in forms)], torch.tensor(out)
    for each in forms:
        lib.matmul(*each, out=out)
    product = a.astype("float64") @ b
    monkeypatch.setitem(runtime_load.CALLS, "matmul", None)  # the careful way would fail
    for x, y in forms:
        for times in (1, 2):  # it is read anew
            out[:] = np.nan
            assert lib.matmul(x, y, out=out) is out
            assert np.abs(np.asarray(out) - times * product).max() < 1e-4
            assert np.abs(np.asarray(lib.matmul(x, y)) - times * product).max() < 1e-4
            x *= 2
        x /= 4


def test_a_strided_batch_takes_the_careful_way_again(lib: Library) -> None:
    """Rows of its matrices are rows of one: of a copy."""
    a, b = np.random.default_rng(2).random((4, 3, 16), dtype=np.float32)[..., ::2], inputs()[1][:8, :8].copy()
    for _ in range(2):
        assert is_product(lib.matmul(a, b), a, b)


@pytest.fixture(scope="module")
def packed_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.libraries import default_record, write_log

    target, folder = tvmops.target("native"), tmp_path_factory.mktemp("packed")
    work = [tvmops.workload("matmul", m=17, n=31, k=61, packed="panels", bias=bias) for bias in (False, True)]
    log = write_log(folder / "log.jsonl", *(default_record(each, target) for each in work))
    return tvmops.export(work, target, [log], folder / "library")


@pytest.mark.parametrize("kind", ["NumPy", "torch"])
def test_packed_weights_are_remembered(
    packed_library: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one weight and then with another of its shape, whether or not there is a bias."""
    lib = tvmops.load(packed_library)
    a, b = inputs(1)
    out, bias = np.empty((17, 31), np.float32), np.arange(31, dtype=np.float32)
    given = (a, bias, out)
    if kind == "torch":
        torch = pytest.importorskip("torch")
        given = tuple(torch.from_numpy(array) for array in given)
    x, more, y = given
    weights = [(b, lib.pack("matmul", b)), (2 * b, lib.pack("matmul", 2 * b))]
    lib.matmul(x, weights[0][1], out=y)
    lib.matmul(x, weights[0][1], bias=more, out=y)
    monkeypatch.setitem(runtime_load.CALLS, "matmul", None)  # the careful way would fail
    for weight, packed in weights:
        out[:] = np.nan
        assert lib.matmul(x, packed, out=y) is y
        assert is_product(out, a, weight)
        assert is_product(np.asarray(lib.matmul(x, packed)), a, weight)
        assert lib.matmul(x, packed, bias=more, out=y) is y
        assert is_product(out - bias, a, weight)


def test_a_packed_weight_that_does_not_fit_is_refused(packed_library: Path) -> None:
    lib = tvmops.load(packed_library)
    a, b = inputs(1)
    packed, out = lib.pack("matmul", b), np.empty((17, 31), np.float32)
    lib.matmul(a, packed, out=out)
    with pytest.raises(CallTypeError, match="'b' is PackedWeight"):
        lib.matmul(a.view("uint16")[:, ::2].copy(), packed, out=out.view("uint16")[:, ::2].copy())
    with pytest.raises(CallError, match="'out' is strided"):
        lib.matmul(a, packed, out=np.empty((17, 62), np.float32)[:, ::2])
    with pytest.raises(CallError, match="shares memory"):
        lib.matmul(a, packed, out=packed.array.reshape(-1)[: 17 * 31].reshape(17, 31))
    with pytest.raises(CallError, match="'b' is of shape"):
        lib.matmul(a[:, :60].copy(), packed, out=out)


def test_what_does_not_fit_is_refused_by_name(known: Library) -> None:
    a, b = inputs(1)
    with pytest.raises(CallTypeError, match="'a' is of dtype float64"):
        known.matmul(a.astype("float64"), b)
    with pytest.raises(CallError, match="'out' is of shape"):
        known.matmul(a, b, out=np.empty((31, 17), np.float32))
    with pytest.raises(CallError, match="'out' is read-only"):
        out = np.empty((17, 31), np.float32)
        out.setflags(write=False)
        known.matmul(a, b, out=out)
    with pytest.raises(CallError, match="'out' is strided"):
        known.matmul(a, b, out=np.empty((17, 62), np.float32)[:, ::2])
    with pytest.raises(CallError, match="shares memory with 'a'"):
        known.matmul(a, b, out=a.reshape(-1)[: 17 * 31].reshape(17, 31))


@pytest.mark.parametrize("kind", ["NumPy", "torch"])
def test_one_array_given_twice_is_known_by_its_arguments(
    lib: Library, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As both factors, turned or not; later they are two arrays."""
    a, b = np.random.default_rng(2).random((2, 8, 8), dtype=np.float32)
    forms = [
        (lambda x, y: (x, y.T), a.astype("float64") @ b.T),
        (lambda x, y: (x.T, y), a.T.astype("float64") @ b),
        (lambda x, y: (x, y), a.astype("float64") @ b),
    ]
    given: tuple[Any, ...] = (a, b)
    if kind == "torch":
        torch = pytest.importorskip("torch")
        given = tuple(map(torch.from_numpy, given))
    for arrange, _ in forms:
        lib.matmul(*arrange(given[0], given[0]))
    monkeypatch.setitem(runtime_load.CALLS, "matmul", None)  # the careful way would fail
    for arrange, expected in forms:
        assert np.abs(np.asarray(lib.matmul(*arrange(*given))) - expected).max() < 1e-4


def test_a_batch_is_reshaped_again(lib: Library) -> None:
    """Kernels have rows where callers have batches."""
    a, b = np.random.default_rng(2).random((3, 2, 4, 8), dtype=np.float32)[:2], inputs()[1][:8, :8].copy()
    out = np.empty((2, 2, 4, 8), np.float32)
    for _ in range(2):
        assert is_product(lib.matmul(a, b, out=out), a, b)
        holes = np.empty((2, 2, 4, 16), np.float32)[..., ::2]
        with pytest.raises(CallError, match="'out' is strided"):
            lib.matmul(a, b, out=holes)


def test_attributes_that_do_not_hash_take_the_careful_way(known: Library) -> None:
    a, b = inputs(1)
    with pytest.raises(CallError, match="activation"):
        known.matmul(a, b, activation=["relu"])  # type: ignore[arg-type]


class Recorded:
    """Stands for a kernel: keeps what it was called with."""

    def __init__(self) -> None:
        self.arguments: tuple[Any, ...] = ()

    def __call__(self, *arguments: Any) -> None:
        self.arguments = arguments


def test_a_factor_may_be_the_residual() -> None:
    a, b, residual = (np.full((4, 4), value, np.float32) for value in range(3))
    kernel = Recorded()
    plan = plan_of({"a": a, "b": b, "bias": None, "residual": a}, CALLS["matmul"](a, b, residual=a), kernel)
    assert plan is not None
    plan.answer((a, b, None, residual), (None,))
    assert [each[0, 0] for each in kernel.arguments[:3]] == [0, 1, 2]


def test_offsets_of_queries_may_be_those_of_keys() -> None:
    """Packed self-attention; a table of two pages that is the offsets of one sequence, too."""
    q, ends, other = np.zeros((8, 2, 16), np.float32), np.array([0, 3, 8], np.int32), np.zeros(3, np.int32)
    packing = {"cu_seqlens_q": ends, "max_seqlen_q": 5, "cu_seqlens_k": ends, "max_seqlen_k": 5}
    call = CALLS["attention"](q, q, q, **packing)
    given = dict(zip(ARRAYS["attention"], (q, q, q, None, None, None, ends, ends)))
    kernel = Recorded()
    plan = plan_of(given, call, kernel)
    assert plan is not None
    k, v = q + 1, q + 2
    plan.answer((q, k, v, None, None, None, ends, other), (None,))
    assert all(seen is meant for seen, meant in zip(kernel.arguments, (q, k, v, ends, other)))

    pool, lengths, ends = np.zeros((4, 16, 2, 16), np.float32).swapaxes(1, 2), other[:1], ends[::2].copy()
    table = ends.reshape(1, 2)
    pages = {"lengths": lengths, "block_table": table, "cu_seqlens_q": ends, "max_seqlen_q": 8}
    call = CALLS["attention"](q, pool, pool, **pages)
    plan = plan_of(dict(zip(ARRAYS["attention"], (q, pool, pool, None, lengths, table, ends))), call, kernel)
    assert plan is not None
    plan.answer((q, pool, pool, None, lengths, table + 1, ends), (None,))
    assert [each.tolist() for each in kernel.arguments[3:6]] == [[0, 8], [0], [[1, 9]]]


def test_heads_within_positions_are_known() -> None:
    """Views of (batch, length, heads, head_dim) go to a kernel for that as they lie."""
    rows = np.random.default_rng(2).random((3, 1, 5, 2, 8), dtype=np.float32)
    views = tuple(each.swapaxes(1, 2) for each in rows)
    kernel = Recorded()
    plan = plan_of(dict(zip("qkv", views)), CALLS["attention"](*views), kernel)
    assert plan is not None
    plan.answer(views, (None,))
    assert all(np.shares_memory(seen, meant) for seen, meant in zip(kernel.arguments, rows))
    assert [each.shape for each in kernel.arguments[:3]] == [each.shape for each in rows]


class Named(str):
    """Stands for an array: the name of an argument."""

    shape = (1,)


@pytest.mark.parametrize("op", CALLS)
def test_methods_hand_arrays_on_in_the_order_of_their_names(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Listening(Operators):
        def _tuned(self, op: str) -> Any:
            return ()

        def _answer(self, key: Any, arrays: Any, call: Any, outs: Any) -> Any:
            seen.extend(arrays)
            return (None, None)

    monkeypatch.setitem(CALLS, op, lambda *_: None)
    method = getattr(Listening(), op)
    method(**{name: Named(name) for name in inspect.signature(method).parameters if name != "out"})
    of_channels = [name.replace("b_zero_points", "b_zero_point") for name in ARRAYS[op]]
    assert seen == [name.replace("b_scales", "b_scale") for name in of_channels]


def test_bits_of_tensors_go_where_kernels_take_bits() -> None:
    torch = pytest.importorskip("torch")
    a, b = torch.ones(3, 4, dtype=torch.bfloat16), torch.ones(4, 5, dtype=torch.bfloat16)
    kernel = Recorded()
    plan = plan_of({"a": a, "b": b}, CALLS["matmul"](a, b), kernel)
    assert plan is not None
    answered = plan.answer((a, b), (None,))
    assert answered is not None
    assert [each.dtype for each in kernel.arguments] == [torch.uint16] * 3
    assert [each.data_ptr() for each in kernel.arguments] == [each.data_ptr() for each in (a, b, answered[0])]
    assert answered[0].dtype is torch.bfloat16
    with pytest.raises(TypeError):  # the kernel sees bits alone
        plan.answer((a, b.half()), (None,))
    with pytest.raises(TypeError):
        plan.answer((a, b), (torch.empty(3, 5, dtype=torch.float16),))


def test_what_a_kernel_of_a_gpu_does_not_check_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(plans, "device_of", lambda array: "cuda:0")
    a, b = torch.ones(4, 4), torch.ones(4, 4)
    kernel = Recorded()
    plan = plan_of({"a": a, "b": b}, CALLS["matmul"](a, b), kernel)
    assert plan is not None
    assert not plan.is_direct
    assert plan.answer((a, b), (b,)) is None, "it overlaps an input"
    assert not kernel.arguments
    out = torch.empty(4, 4)
    assert plan.answer((a, b), (out,)) == (out,)
    assert kernel.arguments == (a, b, out)


def test_calls_on_several_devices_are_known_apart() -> None:
    torch = pytest.importorskip("torch")
    here, elsewhere = torch.ones(4, 4), torch.ones(4, 4, device="meta")
    assert key_of("matmul", (here, here), ()) != key_of("matmul", (elsewhere, elsewhere), ())
    assert key_of("matmul", (here, here), ()) == key_of("matmul", (here + 1, here), ())
