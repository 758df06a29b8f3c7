"""Limits of workers, and how a kill for want of memory is told."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tvmops.measure import limits, worker
from tvmops.measure.worker import Worker, WorkerDiedError


def run(code: str) -> str:
    code = f"import resource\nfrom tvmops.measure.limits import limit_harm, limit_memory\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def test_memory_beyond_the_share_is_refused() -> None:
    assert run("limit_memory(0.5); bytearray(1 << 50); print('had it')") == "MemoryError"
    assert run("limit_memory(0.5); bytearray(1 << 20); print('had it')") == "had it"


def test_a_limit_that_is_lower_already_stays() -> None:
    lower = "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); limit_harm()"
    assert run(f"{lower}; print(resource.getrlimit(resource.RLIMIT_FSIZE))") == "(4096, 4096)"


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(limits, "_PROC", tmp_path)
    return tmp_path


def test_kills_for_memory_are_counted_where_the_kernel_says_so(proc: Path) -> None:
    assert limits.kills_for_memory() == 0
    (proc / "vmstat").write_text("pgfault 12\noom_kill 3\nnr_oom_kill_extra 9\n")
    assert limits.kills_for_memory() == 3


@pytest.fixture
def child() -> Iterator[Worker]:
    made = Worker("test", "tests.measure.serving:setup", "tests.measure.serving:handle")
    yield made
    made.stop()


@pytest.mark.parametrize(("number", "for_memory"), [(signal.SIGKILL, True), (signal.SIGSEGV, False)])
def test_a_kill_while_the_kernel_was_short_of_memory_is_one_for_memory(
    child: Worker, monkeypatch: pytest.MonkeyPatch, number: int, for_memory: bool
) -> None:
    kills = iter(range(100))
    monkeypatch.setattr(worker, "kills_for_memory", lambda: next(kills))
    with pytest.raises(WorkerDiedError) as death:
        child.call(("signal", number), timeout=60)
    assert death.value.out_of_memory == for_memory
    assert ("out of memory" in str(death.value)) == for_memory
