"""A candidate that fails in any way costs itself alone; the run ends with the right winner."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import children, is_running, wait_until
from tests.tuner.faulty_templates import MARKER, STATUSES, Faulty, faulty
from tvmops.errors import ScratchError
from tvmops.measure import builders, problem
from tvmops.measure.candidate import Candidate, Outcome, Plan
from tvmops.measure.local import LocalMeasurer
from tvmops.measure.peak import Peak
from tvmops.records import Record, read_log
from tvmops.space import Config
from tvmops.targets import target
from tvmops.tuner.progress import JobStatus
from tvmops.tuner.session import tune
from tvmops.workloads import workload

ROOT = Path(__file__).parents[2]
WORK = workload("matmul", m=24, n=24, k=24, dtype="float32")
PEAK = Peak(flops=1e11, bandwidth=1e10)
PLAN = Plan(samples=3, timeout=10)


@pytest.fixture(scope="module", autouse=True)
def importable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let workers import this folder's templates, and keep scratch folders where we see them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        folder = tmp_path_factory.mktemp("scratch")
        patch.setattr(tempfile, "tempdir", str(folder))
        patch.setenv(MARKER, str(tmp_path_factory.mktemp("marker") / "running"))
        patch.setattr(builders, "_BUILD_SECONDS", 8.0)
        patch.setattr("tvmops.schedules.TEMPLATES", (Faulty(),))
        yield
        assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def measurer(importable: None) -> Iterator[LocalMeasurer]:
    measurer = LocalMeasurer(target("native"))
    measurer.await_ready()
    yield measurer
    workers = [worker.pid for worker in (*measurer._builders.workers, measurer._runner)]
    measurer.close()
    assert not any(is_running(pid) for pid in workers if pid)


def candidate(config: Config) -> Candidate:
    return Candidate(WORK, target("native"), Faulty().path, config)


def measure(measurer: LocalMeasurer, *configs: Config) -> list[Outcome]:
    return list(measurer.measure([candidate(config) for config in configs], PLAN))


@pytest.fixture(scope="module")
def run(measurer: LocalMeasurer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, list[Record]]:
    """Tune over the whole space, all its faults included; return the winner and the log."""
    threading.Thread(target=kill_runner, args=[measurer], daemon=True).start()
    log = tmp_path_factory.mktemp("log") / "log.jsonl"
    native = target("native")
    winners = tune(WORK, native, log, trials=99, strategy="grid", measurer=measurer, peak=PEAK)
    return winners[WORK], read_log(log)


def kill_runner(measurer: LocalMeasurer) -> None:
    """Kill the runner from outside once the kernel runs that waits for it."""
    marker = Path(os.environ[MARKER])
    wait_until(marker.exists, seconds=600)
    assert measurer._runner.pid
    os.kill(measurer._runner.pid, signal.SIGKILL)


def test_a_run_with_all_faults_ends_with_the_right_winner(run: tuple[Record, list[Record]]) -> None:
    winner, records = run
    assert winner.config == {"fault": "", "burden": 1}
    assert winner.stage == "final"
    finals = [record for record in records if record.stage == "final"]
    assert {record.status for record in finals} == {"ok"}
    assert all(len(r.seconds) == len(r.cold_seconds) > 0 for r in finals)


@pytest.mark.parametrize("fault", STATUSES)
def test_each_fault_is_logged_with_its_status_and_a_reason(
    run: tuple[Record, list[Record]], fault: str
) -> None:
    [record] = [record for record in run[1] if record.config["fault"] == fault]
    assert record.status == STATUSES[fault]
    assert record.detail
    assert not record.seconds


def test_no_config_is_lost_or_logged_twice(run: tuple[Record, list[Record]]) -> None:
    logged = [record.config_key for record in run[1] if record.stage == "search"]
    assert sorted(logged) == sorted(config.key for config in Faulty().space(WORK, target("native")))


REASONS = {
    "raises": ("ValueError: a compiler's long complaint", "and the reason"),
    "exits": ("the compiler died: exited with code 3",),
    "segfaults": ("the compiler died: killed by SIGSEGV",),
    "never ends": ("compiling took over",),
    "leaves a symbol open": ("undefined symbol: no_such_function_anywhere",),
    "wild store": ("killed by SIGSEGV", "__tvm_ffi_main"),
    "endless loop": ("no answer within",),
    "100 GB": ("bad_alloc",),
    "exit": ("exited with code 0",),
    "abort": ("killed by SIGABRT",),
    "killed": ("killed by SIGKILL",),
    "one wrong value": ("differs by 1; at most",),
    "unwritten row": ("left 24 of 576 elements unwritten",),
    "unwritten": ("left 576 of 576 elements unwritten",),
    "writes to input": ("wrote to input 0",),
    "writes outside": ("wrote outside its output",),
    "overwrites inputs": ("wrote to input 1",),
}


@pytest.mark.parametrize("fault", REASONS)
def test_reasons_help(run: tuple[Record, list[Record]], fault: str) -> None:
    [record] = [record for record in run[1] if record.config["fault"] == fault]
    for part in REASONS[fault]:
        assert part in record.detail


def test_a_comparison_leaves_out_who_breaks_it(measurer: LocalMeasurer) -> None:
    configs = [faulty("", 1), faulty("wild store"), faulty("", 20), faulty("wrong values"), faulty("raises")]
    outcomes = measurer.compare([candidate(config) for config in configs], PLAN)
    assert [outcome.status for outcome in outcomes] == ["ok", "crash", "ok", "wrong", "compile"]
    assert len(outcomes[0].cold_seconds) == len(outcomes[2].seconds) == PLAN.samples


def test_a_kernel_that_fails_only_now_and_then_is_no_winner(measurer: LocalMeasurer) -> None:
    [outcome] = measure(measurer, faulty("crashes at the third call"))
    assert outcome.status == "crash"


def test_workers_killed_between_candidates_are_replaced_and_nobody_is_blamed(
    measurer: LocalMeasurer,
) -> None:
    for worker in (*measurer._builders.workers, measurer._runner):
        worker.await_ready()
        assert worker.pid
        os.kill(worker.pid, signal.SIGKILL)
    configs = [faulty("", 40), faulty("wrong values"), faulty("", 1)]
    assert [outcome.status for outcome in measure(measurer, *configs)] == ["ok", "wrong", "ok"]


def test_a_wrong_kernel_costs_the_runner_its_place(measurer: LocalMeasurer) -> None:
    measure(measurer, faulty("", 1))
    before = measurer._runner.pid
    measure(measurer, faulty("", 20))
    assert measurer._runner.pid == before
    measure(measurer, faulty("overwrites inputs"))
    assert measurer._runner.pid != before


def test_a_full_disk_is_one_error_and_no_candidates_fault(
    measurer: LocalMeasurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(problem, "make_problem", fail)
        with pytest.raises(ScratchError, match=r"scratch folder .*No space left on device"):
            measurer.problem(workload("matmul", m=2, n=2, k=2))
    with monkeypatch.context() as patch:
        patch.setattr(builders, "_ROOM", 1 << 62)
        with pytest.raises(ScratchError, match="No space left on device"):
            measure(measurer, faulty("raises"), faulty("", 1))
    assert [outcome.status for outcome in measure(measurer, faulty("", 1))] == ["ok"]


class Raises:
    """An observer that breaks the run off at its third trial."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def update(self, jobs: list[JobStatus], running: str, elapsed: float, budget: float | None) -> None:
        if jobs[0].trials >= 3:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=repr)
def test_a_run_that_is_broken_off_leaves_no_process_behind(tmp_path: Path, error: BaseException) -> None:
    before = children()
    log = tmp_path / "log.jsonl"
    with pytest.raises(type(error)):
        tune(WORK, "native", log, trials=3, strategy="random", observer=Raises(error), peak=PEAK)
    assert children() == before
    assert len(read_log(log)) == 3
