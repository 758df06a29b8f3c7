"""Turns are fair, results are checked, and nobody is left out in silence."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tvmops.errors import ArgumentError
from tvmops.report import compare as compare_module
from tvmops.report import peers, turns
from tvmops.report.compare import OURS, compare, geometric_mean
from tvmops.report.turns import Timing, take_turns
from tvmops.workloads import Workload, workload

WORK = workload("matmul", m=5, n=6, k=7)


class FakeLibrary:
    """Answers as a `Library` does, by NumPy, `error` off."""

    def __init__(self, error: float) -> None:
        self.error = error

    def explain(self, text: str) -> Any:
        return types.SimpleNamespace(tier="exact", kernel=types.SimpleNamespace(function="fake"))

    def matmul(self, a: Any, b: Any, out: Any) -> Any:
        np.matmul(a, b, out=out)
        out[0, 0] += self.error
        return out


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(turns, "_WARM_SECONDS", 0.0)
    monkeypatch.setattr(turns, "_TURN_SECONDS", 0.0)


def recorded_turns(names: str, rounds: int) -> list[str]:
    called: list[str] = []

    def call(name: str) -> Callable[[], object]:
        return lambda: called.append(name)

    take_turns({name: call(name) for name in names}, rounds)
    return called


def test_rounds_rotate_the_order_and_warm_each_call() -> None:
    called = recorded_turns("abc", 3)
    assert "".join(called[6:]) == "aabbcc" + "bbccaa" + "ccaabb"


def test_who_is_far_behind_has_few_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"a": 0.01, "b": 0.19, "c": 0.3}  # 19 and 30 times as long
    monkeypatch.setattr(turns, "time_call", lambda call, repeats=1: seconds[call()])
    timings = take_turns({name: lambda name=name: name for name in seconds}, rounds=9)
    assert {name: len(timing.samples) for name, timing in timings.items()} == {"a": 9, "b": 9, "c": 3}
    seconds.update(a=0.001, b=0.09, c=0.01)  # none of them takes long
    timings = take_turns({name: lambda name=name: name for name in seconds}, rounds=9)
    assert {len(timing.samples) for timing in timings.values()} == {9}


def test_median_and_spread() -> None:
    timing = Timing((1.0, 2.0, 3.0, 4.0, 100.0))
    assert timing.median == 3.0
    assert timing.spread == pytest.approx((52.0 - 1.5) / 2 / 3)


def run(library: FakeLibrary, names: list[str], work: Workload = WORK) -> compare_module.Comparison:
    (result,) = compare(library, [work], names, rounds=2)  # type: ignore[arg-type]
    return result


def test_a_right_result_and_the_ratio_to_the_best_peer() -> None:
    result = run(FakeLibrary(0.0), ["numpy"])
    assert result.wrong == []
    assert result.best_peer == "numpy"
    assert result.ratio == pytest.approx(result.timings["numpy"].median / result.timings[OURS].median)


@pytest.mark.parametrize("error", [1e-3, np.nan])
def test_a_wrong_result_is_named(error: float) -> None:
    assert run(FakeLibrary(error), ["numpy"]).wrong == [OURS]


def test_a_peer_that_is_not_installed_has_no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    result = run(FakeLibrary(0.0), ["torch"])
    assert list(result.timings) == [OURS]
    assert (result.best_peer, result.ratio) == (None, None)


def test_an_unknown_peer_is_refused() -> None:
    with pytest.raises(ArgumentError, match="expected names among numpy, onnxruntime, openvino, torch"):
        run(FakeLibrary(0.0), ["abacus"])


@pytest.mark.parametrize("peer", peers.PEERS)
def test_every_installed_peer_writes_to_the_array_it_is_given(peer: str) -> None:
    a, b = np.random.default_rng(0).random((2, 4, 4), dtype=np.float32)
    out = np.full((4, 4), np.nan, dtype=np.float32)
    call = peers.peer_call(peer, workload("matmul", m=4, n=4, k=4), (a, b), (out,))
    if call is None:
        pytest.skip(f"{peer} is not installed")
    call()
    np.testing.assert_allclose(out, a @ b, rtol=1e-5)
    a[:] = 0  # the inputs are read anew with each call
    call()
    assert not out.any()


def test_geometric_mean() -> None:
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
