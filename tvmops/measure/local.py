"""`LocalMeasurer`: builders and a runner on this machine, kept alive between trials."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from shutil import disk_usage
from typing import Any, Generic, TypeVar

from tvmops.errors import ScratchError
from tvmops.machine import physical_cores
from tvmops.measure.builder import BuildRequest, DescribeRequest
from tvmops.measure.candidate import Candidate, Outcome, Plan, Problem
from tvmops.measure.link import find_linker
from tvmops.measure.problem import make_problem
from tvmops.measure.runner import RunRequest, TimeRequest
from tvmops.measure.scratch import Scratch
from tvmops.measure.worker import Worker, WorkerDiedError, WorkerTimeoutError
from tvmops.targets import Target
from tvmops.workloads import Workload

_BUILD_SECONDS = 60.0  # at most; see `_build_limit`
_DESCRIBE_SECONDS = 10.0
_ROOM = 1 << 20  # bytes that a build may need


Request = TypeVar("Request", BuildRequest, DescribeRequest)


@dataclass(frozen=True)
class _Task(Generic[Request]):
    """What a builder is busy with."""

    request: Request
    started: float


class LocalMeasurer:
    """Measures candidates: all of a batch are built first, side by side, then run in turn.

    Nothing is built while a candidate runs, so that its times are its own. A worker that
    died, or ran a candidate that did anything wrong, is replaced.
    """

    def __init__(self, target: Target, builders: int | None = None) -> None:
        find_linker(bare=True)  # where there is none, no candidate could be built
        self.target = target
        self._scratch = Scratch()
        self._names = itertools.count()
        self._built: dict[Candidate, Path] = {}
        self._problems: dict[Workload, Problem] = {}
        self._slowest_build = 0.0
        module = "tvmops.measure"
        self._builders = [
            Worker("builder", f"{module}.builder:setup", f"{module}.builder:handle")
            for _ in range(builders or physical_cores())
        ]
        threads = {"TVMOPS_NUM_THREADS": str(target.cores)}
        self._runner = Worker("runner", f"{module}.runner:setup", f"{module}.runner:handle", threads)
        for worker in (*self._builders, self._runner):
            worker.start()

    def await_ready(self) -> None:
        """Wait until all workers have started; they do when first used, too."""
        for worker in (*self._builders, self._runner):
            worker.await_ready()

    def problem(self, workload: Workload) -> Problem:
        """Return inputs and expected result of `workload`, made at its first use."""
        if workload not in self._problems:
            folder = self._scratch.path / f"problem{len(self._problems)}"
            try:
                self._problems[workload] = make_problem(workload, folder, seed=0)
            except OSError as error:
                raise ScratchError(path=folder.parent, detail=error.strerror) from None
        return self._problems[workload]

    def measure(self, candidates: Sequence[Candidate], plan: Plan) -> Iterator[Outcome]:
        """Yield the outcome of each candidate, in order, as soon as it is known."""
        built = self._build(candidates)
        for candidate in candidates:
            outcome = built[candidate]
            if outcome.status == "built":
                outcome = self._run([candidate], plan, compare=False)[candidate]
            yield outcome

    def compare(self, candidates: Sequence[Candidate], plan: Plan) -> list[Outcome]:
        """Time candidates of one workload turn by turn, `plan.samples` turns."""
        outcomes = self._build(candidates)
        fit = [candidate for candidate in candidates if outcomes[candidate].status == "built"]
        outcomes.update(self._run(fit, plan, compare=True))
        if fit and not any(outcomes[candidate].seconds for candidate in fit):  # one spoilt it for all
            for candidate in fit:
                outcomes.update(self._run([candidate], plan, compare=False))
            fit = [candidate for candidate in fit if outcomes[candidate].seconds]
            together = self._run(fit, plan, compare=True)
            outcomes.update({c: outcome for c, outcome in together.items() if outcome.seconds})
        return [outcomes[candidate] for candidate in candidates]

    def describe(self, candidates: Sequence[Candidate]) -> list[dict[str, float] | None]:
        """Return features of the code of each candidate; None where it can't be had."""
        requests = [DescribeRequest(candidate) for candidate in candidates]
        answers = self._serve(requests, _DESCRIBE_SECONDS)
        return [a if isinstance(a, dict) else None for a in (answers[request] for request in requests)]

    def time_kernel(self, library: Path, elements: Sequence[int], samples: int) -> tuple[float, ...]:
        """Time the `main` of a library on arrays of float32 of these lengths."""
        self._settle()
        timings: tuple[float, ...] = self._runner.call(
            TimeRequest(library, tuple(elements), samples), timeout=60
        )
        return timings

    def _run(self, candidates: Sequence[Candidate], plan: Plan, compare: bool) -> dict[Candidate, Outcome]:
        if not candidates:
            return {}
        problem = self.problem(candidates[0].workload)
        libraries = tuple(self._built[candidate] for candidate in candidates)
        self._settle()
        try:
            answer = self._runner.call(RunRequest(libraries, problem, plan, compare), plan.timeout)
            outcomes: dict[Candidate, Outcome] = dict(zip(candidates, answer))
        except WorkerDiedError as death:
            status = "memory" if death.out_of_memory else "crash"
            outcomes = dict.fromkeys(candidates, Outcome(status, detail=str(death)))
        except WorkerTimeoutError as late:
            outcomes = dict.fromkeys(candidates, Outcome("timeout", detail=str(late)))
        if not all(outcome.seconds for outcome in outcomes.values()):
            self._runner.stop()  # who knows what else such a candidate wrote to
            self._runner.start()
        return outcomes

    def _build(self, candidates: Sequence[Candidate]) -> dict[Candidate, Outcome]:
        """Build what is not built yet."""
        outcomes = {c: Outcome("built") for c in candidates if c in self._built}
        requests = [BuildRequest(c, self._new_path()) for c in dict.fromkeys(candidates) if c not in outcomes]
        for request, outcome in self._serve(requests, self._build_limit()).items():
            outcomes[request.candidate] = outcome
            if outcome.status == "built":
                self._built[request.candidate] = request.path
            elif disk_usage(self._scratch.path).free < _ROOM:  # no candidate is to blame for that
                raise ScratchError(path=self._scratch.path, detail="No space left on device")
        return outcomes

    def _serve(self, requests: Sequence[Request], limit: float) -> dict[Request, Any]:
        """Have builders answer `requests`, as many at once as there are builders, each in `limit` seconds.

        The answer to one that could not be served is an `Outcome` that says why.
        """
        answers: dict[Request, Any] = {}
        queue, idle = list(requests), list(self._builders)
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
        return self._scratch.path / f"k{next(self._names)}.so"

    def _build_limit(self) -> float:
        """Return the seconds that a build may take: many times the slowest so far."""
        return min(_BUILD_SECONDS, 5 + 20 * self._slowest_build) if self._slowest_build else _BUILD_SECONDS

    def _collect(self, worker: Worker, started: float, limit: float) -> Any:
        try:
            answer = worker.receive(max(0.0, started + limit - time.monotonic()))
            self._slowest_build = max(self._slowest_build, time.monotonic() - started)
        except WorkerDiedError as death:
            status = "memory" if death.out_of_memory else "compile"
            answer = Outcome(status, detail=f"the compiler died: {death}")
        except WorkerTimeoutError:
            answer = Outcome("timeout", detail=f"compiling took over {limit:.0f} s")
        worker.start()
        return answer

    def _settle(self) -> None:
        """Wait for builders that are starting: importing the compiler keeps a core busy."""
        for worker in self._builders:
            worker.await_ready()

    def close(self) -> None:
        for worker in (*self._builders, self._runner):
            worker.stop()
        self._scratch.close()


def _finished(busy: Mapping[Worker, _Task[Request]], limit: float) -> list[Worker]:
    """Wait until a builder has answered, died or run out of time; return all such."""
    oldest = min(task.started for task in busy.values())
    patience = max(0.0, oldest + limit - time.monotonic())
    answered = wait([worker.connection for worker in busy], timeout=patience)
    late = time.monotonic() - limit
    return [w for w, task in busy.items() if w.connection in answered or task.started <= late]
