"""`Builders`: worker processes that compile candidates, as many side by side as there are cores."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from shutil import disk_usage
from typing import Any, Generic, TypeVar

from tvmops.errors import ScratchError
from tvmops.machine import physical_cores
from tvmops.measure.builder import BuildRequest, DescribeRequest
from tvmops.measure.candidate import Candidate, Outcome
from tvmops.measure.worker import Worker, WorkerDiedError, WorkerTimeoutError

_BUILD_SECONDS = 60.0  # at most; see `_limit`
_DESCRIBE_SECONDS = 10.0
_ROOM = 1 << 20  # bytes that a build may need

Request = TypeVar("Request", BuildRequest, DescribeRequest)


@dataclass(frozen=True)
class _Task(Generic[Request]):
    """What a builder is busy with."""

    request: Request
    started: float


class Builders:
    """Compiles candidates into shared libraries in a folder, each one once.

    A builder that died is replaced.
    """

    def __init__(self, folder: Path, count: int | None = None) -> None:
        self._folder = folder
        self._names = itertools.count()
        self._built: dict[Candidate, Path] = {}
        self._slowest = 0.0
        module = "tvmops.measure.builder"
        self.workers = [
            Worker("builder", f"{module}:setup", f"{module}:handle") for _ in range(count or physical_cores())
        ]
        for worker in self.workers:
            worker.start()

    def await_ready(self) -> None:
        """Wait until all have started: importing the compiler keeps a core busy."""
        for worker in self.workers:
            worker.await_ready()

    def library(self, candidate: Candidate) -> Path:
        """Return what was built of `candidate`."""
        return self._built[candidate.code]

    def build(self, candidates: Sequence[Candidate]) -> dict[Candidate, Outcome]:
        """Build what is not built yet."""
        codes = dict.fromkeys(candidate.code for candidate in candidates)
        outcomes = {code: Outcome("built") for code in codes if code in self._built}
        requests = [BuildRequest(code, self._new_path()) for code in codes if code not in outcomes]
        for request, outcome in self._serve(requests, self._limit()).items():
            outcomes[request.candidate] = outcome
            if outcome.status == "built":
                self._built[request.candidate] = request.path
            elif disk_usage(self._folder).free < _ROOM:  # no candidate is to blame for that
                raise ScratchError(path=self._folder, detail="No space left on device")
        return {candidate: outcomes[candidate.code] for candidate in candidates}

    def describe(self, candidates: Sequence[Candidate]) -> list[dict[str, float] | None]:
        """Return features of the code of each candidate; None where it can't be had."""
        requests = [DescribeRequest(candidate) for candidate in candidates]
        answers = self._serve(requests, _DESCRIBE_SECONDS)
        return [a if isinstance(a, dict) else None for a in (answers[request] for request in requests)]

    def close(self) -> None:
        for worker in self.workers:
            worker.stop()

    def _serve(self, requests: Sequence[Request], limit: float) -> dict[Request, Any]:
        """Have builders answer `requests`, as many at once as there are builders, each in `limit` seconds.

        The answer to one that could not be served is an `Outcome` that says why.
        """
        answers: dict[Request, Any] = {}
        queue, idle = list(requests), list(self.workers)
        busy: dict[Worker, _Task[Request]] = {}
        try:
            while queue or busy:
                idle.sort(key=lambda worker: worker.is_ready)
                while queue and idle:
                    worker, request = idle.pop(), queue.pop(0)
                    worker.send(request)
                    busy[worker] = _Task(request, time.monotonic())
                for worker in _finished(busy, limit):
                    task = busy.pop(worker)
                    answers[task.request] = self._collect(worker, task.started, limit)
                    idle.append(worker)
        finally:
            for worker in busy:  # or its answer would be taken for that to a later request
                worker.stop()
        return answers

    def _new_path(self) -> Path:
        return self._folder / f"k{next(self._names)}.so"

    def _limit(self) -> float:
        """Return the seconds that a build may take: many times the slowest so far."""
        return min(_BUILD_SECONDS, 5 + 20 * self._slowest) if self._slowest else _BUILD_SECONDS

    def _collect(self, worker: Worker, started: float, limit: float) -> Any:
        try:
            answer = worker.receive(max(0.0, started + limit - time.monotonic()))
            self._slowest = max(self._slowest, time.monotonic() - started)
        except WorkerDiedError as death:
            status = "memory" if death.out_of_memory else "compile"
            answer = Outcome(status, detail=f"the compiler died: {death}")
        except WorkerTimeoutError:
            answer = Outcome("timeout", detail=f"compiling took over {limit:.0f} s")
        worker.start()
        return answer


def _finished(busy: Mapping[Worker, _Task[Request]], limit: float) -> list[Worker]:
    """Wait until a builder has answered, died or run out of time; return all such."""
    oldest = min(task.started for task in busy.values())
    patience = max(0.0, oldest + limit - time.monotonic())
    answered = wait([worker.connection for worker in busy], timeout=patience)
    late = time.monotonic() - limit
    return [w for w, task in busy.items() if w.connection in answered or task.started <= late]
