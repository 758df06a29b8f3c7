"""Workloads spread over processes: each is answered for, also where one dies."""

from __future__ import annotations

import fcntl
import sys
from pathlib import Path
from typing import Any

import pytest

from tvmops.measure.bundle.prepare import spread
from tvmops.measure.bundle.torch_compiled import choose_alone

SERVER = """
import os
from tvmops.measure.bundle.prepare import serve

def act(workload):
    print("noise")
    if workload["rows"] == 2:
        raise ValueError("two")
    if workload["rows"] == 3:
        os._exit(7)

raise SystemExit(serve(act))
"""
TEXTS = [f"softmax rows={rows} cols=9" for rows in range(1, 7)]


@pytest.mark.parametrize("jobs", [1, 20])
def test_a_failure_or_a_death_costs_that_workload_alone(jobs: int) -> None:
    failures = spread(TEXTS, [sys.executable, "-c", SERVER], jobs, float("inf"))
    assert failures == {TEXTS[1]: "ValueError: two", TEXTS[2]: "the worker ended with 7"}


def test_when_the_time_is_over_nothing_is_begun() -> None:
    failures = spread(TEXTS, ["/nowhere"], 2, 0.0)
    assert failures == dict.fromkeys(TEXTS, "the time was over")


def test_what_does_not_end_is_ended() -> None:
    slow = "import sys, time; sys.stdin.readline(); time.sleep(600)"
    failures = spread(TEXTS[:1], [sys.executable, "-c", slow], 1, 0.5)
    assert failures == {TEXTS[0]: "the worker ended with -9"}


def test_inductor_times_while_nobody_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmarking = pytest.importorskip("torch._inductor.runtime.benchmarking")
    lock = tmp_path / "lock"

    def is_free() -> bool:
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    def measure(call: Any, **options: Any) -> tuple[Any, Any]:
        assert not is_free()
        return call(), options

    monkeypatch.setattr(benchmarking.benchmarker, "benchmark_gpu", measure)
    choose_alone(lock)
    assert is_free()
    assert benchmarking.benchmarker.benchmark_gpu(lambda: 5, rep=3) == (5, {"rep": 3})
    with pytest.raises(ZeroDivisionError):
        benchmarking.benchmarker.benchmark_gpu(lambda: 1 // 0)
    assert is_free()
