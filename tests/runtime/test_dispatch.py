"""Which kernel answers, how often a generic one had to, and that this is said."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import tvmops
from tvmops.errors import ArgumentError, CallError, CallTypeError, NotInLibraryError, WorkloadError
from tvmops.manifest import KernelEntry, Variant
from tvmops.runtime.dispatch import Dispatcher
from tvmops.workloads import Workload, workload

UNSEEN = "matmul m=9 n=11 k=10 dtype=float32"


def zeros(*shape: int) -> Any:
    return np.zeros(shape, "float32")


def test_a_tuned_shape_is_answered_by_its_kernel_in_silence(lib: tvmops.Library) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lib.matmul(zeros(17, 61), zeros(61, 31))
    assert lib.misses() == {}


def test_an_unseen_shape_is_named_once_and_counted(lib: tvmops.Library) -> None:
    a, b = zeros(9, 10), zeros(10, 11)
    with pytest.warns(UserWarning) as said:
        for _ in range(3):
            lib.matmul(a, b)
        lib.matmul(a, b, out=zeros(9, 11))
    assert len(said) == 1
    assert f"library {lib.path}: '{UNSEEN}' was not tuned; a generic kernel answers" in str(said[0].message)
    assert said[0].filename == __file__, "the warning must point at the call"
    assert lib.misses() == {UNSEEN: 4}
    with pytest.warns(UserWarning, match="m=3 n=11 k=10"):
        lib.matmul(zeros(3, 10), b)
    assert list(lib.misses().values()) == [4, 1], "most often first"


def test_a_refused_call_is_not_counted(lib: tvmops.Library) -> None:
    with pytest.raises(CallError):
        lib.matmul(zeros(9, 10), zeros(9, 11))
    assert lib.misses() == {}


def test_explain_names_an_exact_kernel(lib: tvmops.Library) -> None:
    explained = lib.explain("matmul", zeros(17, 61), zeros(61, 31))
    assert explained.tier == "exact"
    assert explained.kernel.workload == "matmul m=17 n=31 k=61 dtype=float32"
    text = str(explained)
    for part in (
        "matmul m=17 n=31 k=61 dtype=float32",
        "matmul_m17_n31_k61_float32 (exact: built for this shape)",
        explained.kernel.template,
        *(f"{name}={value}" for name, value in explained.kernel.config.items()),
        "2.00 us",  # the median of the record's samples
        f"{4 * 62 * 2**-24:.2g} (seen: 1e-07)",
        "2026-01-02T03:04:05+00:00 on ",
    ):
        assert part in text
    assert lib.misses() == {}, "to explain is not to call"


def test_explain_names_a_generic_kernel(lib: tvmops.Library) -> None:
    explained = lib.explain(UNSEEN)
    assert explained.tier == "generic"
    assert explained.kernel.seconds is None
    text = str(explained)
    assert "generic: this shape was not tuned" in text
    assert "not measured at this shape" in text
    assert str(lib.explain("matmul", zeros(9, 10), zeros(10, 11))) == text


def test_the_narrowest_generic_kernel_answers(lib: tvmops.Library) -> None:
    """Each kernel states the sizes it is meant for; the first that covers a shape answers it."""
    kernels = lib.manifest.variants[0].kernels
    generic = [entry for entry in kernels if Workload.parse(entry.workload).is_generic]
    assert len({entry.function for entry in generic}) == len(generic)
    assert generic[-1].ranges == {}, "the last takes every shape"
    for m, n, k in [(1, 5000, 3000), (2, 3, 4), (5, 9000, 9000), (900, 900, 901)]:
        shape = {"m": m, "n": n, "k": k}
        fitting = [
            entry
            for entry in generic
            if all(low <= shape[name] <= high for name, (low, high) in entry.ranges.items())
        ]
        assert lib.explain(f"matmul m={m} n={n} k={k}").kernel == fitting[0]


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (("fft", zeros(1), zeros(1)), ArgumentError, "argument 'op' is 'fft'; expected one of matmul"),
        (("matmul", zeros(1, 1)), TypeError, "missing 1 required positional argument: 'b'"),
        (("matmul", zeros(1), zeros(1)), CallError, "argument 'a' is of shape"),
        (("matmul", zeros(2, 3), zeros(2, 3)), CallError, "argument 'b' is of shape"),
        (("matmul", [1], zeros(2, 3)), CallTypeError, "argument 'a' is list"),
        (("matmul m=1 n=2",), WorkloadError, "field 'k' is 'missing'"),
        (("matmul m=1 n=2 k=*",), ArgumentError, "expected sizes that are all known"),
    ],
)
def test_explain_refuses_what_it_can_not_explain(
    lib: tvmops.Library, arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        lib.explain(*arguments)
    assert message in str(caught.value)


def dispatcher(*texts: str) -> Dispatcher:
    entries = tuple(
        KernelEntry(f"f{i}", text, {}, "t@1", {}, None, None, None, "") for i, text in enumerate(texts)
    )
    variant = Variant("toy", "x86_64", (), 256, (), "k.so", "r.so", entries)
    return Dispatcher("lib", variant, lambda name: lambda *arguments: None)


def test_what_no_kernel_answers_is_said_with_what_there_is() -> None:
    small = dispatcher("matmul m=1 n=2 k=3")
    with pytest.raises(NotInLibraryError) as caught:
        small.explain(workload("matmul", m=4, n=5, k=6))
    assert "no kernel answers 'matmul m=4 n=5 k=6 dtype=float32'" in str(caught.value)
    assert "it holds matmul m=1 n=2 k=3" in str(caught.value)
    with pytest.raises(NotInLibraryError, match="it holds no kernels"):
        dispatcher().explain(workload("matmul", m=4, n=5, k=6))


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Let Python turn from thread to thread as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-7)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_threads_share_a_count() -> None:
    generic = dispatcher("matmul m=* n=* k=*")
    work, calls, workers = workload("matmul", m=1, n=2, k=3), 3000, 8

    def call(_: int) -> None:
        for _ in range(calls // 100):
            kernel = generic.find(work)
            for _ in range(100):
                kernel()

    with pytest.warns(UserWarning) as said, ThreadPoolExecutor(workers) as pool:
        list(pool.map(call, range(workers)))
    assert generic.misses() == {str(work): calls * workers}
    assert len(said) == 1


def test_threads_share_a_library(lib: tvmops.Library) -> None:
    """All results right, no call lost from the count, one warning a shape."""
    rng = np.random.default_rng(0)
    problems = []
    for m, n, k in [(8, 8, 8), (17, 31, 61), (256, 256, 256), (9, 11, 10), (40, 50, 60)]:
        a, b = rng.random((m, k), dtype="float32"), rng.random((k, n), dtype="float32")
        problems.append((a, b, a.astype("float64") @ b))
    rounds, workers = 40, 16
    start = threading.Barrier(workers)

    def work(_: int) -> float:
        start.wait()
        worst = 0.0
        for turn in range(rounds):
            for a, b, expected in problems:
                out = np.full(expected.shape, np.nan, "float32") if turn % 2 else None
                worst = max(worst, float(np.abs(lib.matmul(a, b, out=out) - expected).max()))
        return worst

    with pytest.warns(UserWarning) as said, ThreadPoolExecutor(workers) as pool:
        worst = list(pool.map(work, range(workers)))
    assert max(worst) < 1e-3
    assert lib.misses() == {
        "matmul m=40 n=50 k=60 dtype=float32": rounds * workers,
        UNSEEN: rounds * workers,
    }
    assert len(said) == 2
