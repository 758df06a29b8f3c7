"""Workers: whatever a child does, the parent learns of it and the next request is served."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path

import pytest

from tests.processes import is_running, wait_until
from tvmops.errors import WorkerError
from tvmops.measure.worker import Worker, WorkerDiedError, WorkerTimeoutError

SERVING = "tests.measure.serving"


@pytest.fixture
def start() -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def make(setup: str = "setup", **environment: str) -> Worker:
        workers.append(Worker("test", f"{SERVING}:{setup}", f"{SERVING}:handle", environment))
        return workers[-1]

    yield make
    for worker in workers:
        worker.stop()


@pytest.fixture
def worker(start: Callable[..., Worker]) -> Worker:
    return start()


def test_a_worker_stays_alive_between_requests(worker: Worker) -> None:
    assert worker.call(("echo", [1, "two", b"3" * 1_000_000]), timeout=60) == [1, "two", b"3" * 1_000_000]
    assert worker.call(("pid",), timeout=60) == worker.call(("pid",), timeout=60) == worker.pid
    assert worker.starts == 1


DEATHS = [
    (("signal", signal.SIGSEGV), "killed by SIGSEGV: ready last words"),
    (("signal", signal.SIGKILL), "killed by SIGKILL: ready last words"),
    (("signal", signal.SIGRTMIN + 3), f"killed by signal {signal.SIGRTMIN + 3}: ready last words"),
    (("exit", 0), "exited with code 0: ready"),
    (("exit", 7), "exited with code 7: ready"),
    (("unpicklable",), "exited with code 1: "),
    (("babble", b"\x00garbage\xff" * 10), "its answer can't be read: "),
    (("babble", pickle.dumps(open)[:-1] + b"\xff"), "its answer can't be read: "),
    (("babble", b"cno_such_module\nno_such_name\n."), "its answer can't be read: ModuleNotFoundError"),
]


@pytest.mark.parametrize(("request_", "text"), DEATHS, ids=lambda value: str(value)[:24])
def test_a_death_is_told_and_the_next_request_served(
    worker: Worker, request_: tuple[object, ...], text: str
) -> None:
    with pytest.raises(WorkerDiedError) as death:
        worker.call(request_, timeout=60)
    assert str(death.value).startswith(text)
    assert not death.value.out_of_memory
    assert worker.call(("echo", "again"), timeout=60) == "again"
    assert worker.starts == 2


@pytest.mark.parametrize(
    "request_", [("sleep", 600), ("stop",), ("babble", b"")], ids=["sleeps", "is stopped", "is silent"]
)
def test_a_child_that_never_answers_is_killed(worker: Worker, request_: tuple[object, ...]) -> None:
    worker.await_ready()
    pid = worker.pid
    with pytest.raises(WorkerTimeoutError, match=r"no answer within 0\.3 s"):
        worker.call(request_, timeout=0.3)
    assert pid is not None
    assert not is_running(pid)
    assert worker.call(("echo", 1), timeout=60) == 1


def test_half_an_answer_is_no_reason_to_wait_for_ever(worker: Worker) -> None:
    with pytest.raises(WorkerTimeoutError):
        worker.call(("babble", pickle.dumps(b"x" * 1000)[:-500]), timeout=0.5)
    assert worker.call(("echo", 1), timeout=60) == 1


def test_a_request_is_not_blamed_for_a_death_before_it(worker: Worker) -> None:
    worker.await_ready()
    for _ in range(5):  # the kernel may take a moment to close the dead child's socket
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        assert worker.call(("echo", "innocent"), timeout=60) == "innocent"
    assert worker.starts == 6


def test_an_exception_of_the_child_is_raised_here_and_the_child_kept(worker: Worker) -> None:
    with pytest.raises(ValueError, match="no good"):
        worker.call(("raise",), timeout=60)
    assert worker.call(("echo", 1), timeout=60) == 1
    assert worker.starts == 1


def test_running_out_of_memory_is_told_from_a_crash(start: Callable[..., Worker]) -> None:
    worker = start("setup_with_little_memory")
    with pytest.raises(MemoryError):
        worker.call(("hoard",), timeout=60)
    assert worker.call(("echo", 1), timeout=60) == 1


def test_a_child_is_the_first_to_go_and_can_fill_no_disk(worker: Worker) -> None:
    score, core, largest_file = worker.call(("limits",), timeout=60)
    assert score == 1000
    assert core == 0
    assert 0 < largest_file <= 1 << 30
    with pytest.raises(OSError, match="File too large"):
        worker.call(("print_forever", 1 << 20), timeout=60)


def test_what_a_child_started_ends_with_it(worker: Worker) -> None:
    child, grandchildren = worker.call(("group",), timeout=60)
    worker.stop()
    wait_until(lambda: not any(map(is_running, [child, *grandchildren])))


def test_an_answer_of_a_fast_child_wakes_whoever_waits_for_several(start: Callable[..., Worker]) -> None:
    workers = [start(), start()]
    for number in range(20):  # acknowledgement and answer may arrive together
        for worker in workers:
            worker.send(("echo", number))
        for worker in workers:
            assert wait([worker.connection], timeout=10)
        assert [worker.receive(timeout=10) for worker in workers] == [number, number]


def test_a_child_that_can_not_start_is_one_clear_error(start: Callable[..., Worker]) -> None:
    with pytest.raises(WorkerError, match="test worker could not start: ImportError: no module of that name"):
        start("setup_that_fails").call(("pid",), timeout=60)
    with pytest.raises(WorkerError, match="test worker could not start: killed by SIGABRT: out of luck"):
        start("setup_that_dies").await_ready()


def test_a_start_that_fails_by_chance_is_tried_again(start: Callable[..., Worker], tmp_path: Path) -> None:
    worker = start("setup_that_dies_once", MARKER=str(tmp_path / "marker"))
    assert worker.call(("echo", 1), timeout=60) == 1
    assert worker.starts == 2
