"""Spread tasks over servers that each do one at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def spread(
    tasks: Sequence[Task],
    servers: Sequence[Callable[[Task], Result]],
    abandon: Callable[[], None],
) -> Iterator[tuple[int, Result]]:
    """Yield the number and the result of each task, as they come.

    A server gets its next task once the caller, who has made sure of all results so far, asks for
    another. `abandon` makes servers return where the caller stops asking before the end.
    """
    waiting, idle = deque(enumerate(tasks)), deque(servers)
    running: dict[Future[Result], tuple[int, Callable[[Task], Result]]] = {}
    with ThreadPoolExecutor(len(servers)) as threads:
        try:
            while waiting or running:
                while waiting and idle:
                    number, task = waiting.popleft()
                    server = idle.popleft()
                    running[threads.submit(server, task)] = number, server
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    number, server = running[future]
                    yield number, future.result()
                    del running[future]
                    idle.append(server)
        except BaseException:
            if running:
                abandon()
            raise
