"""Tasks are spread over servers, and none starts before the results so far were taken."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from tvmops.measure.fleet.spread import spread


def test_each_task_is_done_once_and_a_server_waits_for_its_last_result_to_be_taken() -> None:
    started: list[int] = []
    barrier = threading.Barrier(3)

    def serve(task: int) -> int:
        started.append(task)
        if task < 3:
            barrier.wait(30)  # three at the same time
        return 10 * task

    results = spread(range(9), [serve] * 3, abandon=lambda: None)
    taken = []
    for number, result in results:
        assert result == 10 * number
        taken.append(number)
        assert len(started) <= 3 + len(taken) - 1
    assert Counter(taken) == Counter(started) == Counter(range(9))


def test_no_tasks_and_one_server() -> None:
    assert list(spread([], [str], abandon=lambda: None)) == []


@pytest.mark.parametrize("how", ["asks no more", "a server fails"])
def test_servers_are_abandoned(how: str) -> None:
    released = threading.Event()

    def stuck(task: int) -> int:
        assert released.wait(30)
        return task

    def quick(task: int) -> int:
        if how == "a server fails":
            raise ConnectionError("gone")
        return task

    results = spread([0, 1, 2], [stuck, quick], abandon=released.set)
    if how == "a server fails":
        with pytest.raises(ConnectionError, match="gone"):
            next(results)
    else:
        assert next(results) == (1, 1)
        results.close()  # type: ignore[attr-defined]
    assert released.is_set()
