"""`LocalMeasurer`: builders and a runner on this machine, kept alive between trials."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path

from tvmops.machine import physical_cores
from tvmops.measure.builder import BuildRequest
from tvmops.measure.candidate import Candidate, Outcome, Plan, Problem
from tvmops.measure.problem import make_problem
from tvmops.measure.runner import RunRequest, TimeRequest
from tvmops.measure.worker import Worker, WorkerDiedError, WorkerTimeoutError
from tvmops.targets import Target
from tvmops.workloads import Workload

_BUILD_SECONDS = 60.0  # no template here takes a tenth of it


class LocalMeasurer:
    """Measures candidates: all of a batch are built first, side by side, then run in turn.

    Nothing is built while a candidate runs, so that its times are its own.
    """

    def __init__(self, target: Target, builders: int | None = None) -> None:
        self.target = target
        self._folder = Path(tempfile.mkdtemp(prefix="tvmops-"))
        self._names = itertools.count()
        self._built: dict[Candidate, Path] = {}
        self._problems: dict[Workload, Problem] = {}
        module = "tvmops.measure"
        self._builders = [
            Worker("builder", f"{module}.builder:setup", f"{module}.builder:handle")
            for _ in range(builders or physical_cores())
        ]
        threads = {"TVMOPS_NUM_THREADS": str(target.cores)}
        self._runner = Worker("runner", f"{module}.runner:setup", f"{module}.runner:handle", threads)
        for worker in (*self._builders, self._runner):
            worker.start()

    def problem(self, workload: Workload) -> Problem:
        """Return inputs and expected result of `workload`, made at its first use."""
        if workload not in self._problems:
            name = f"problem{len(self._problems)}"
            self._problems[workload] = make_problem(workload, self._folder / name, seed=0)
        return self._problems[workload]

    def measure(self, candidates: Sequence[Candidate], plan: Plan) -> Iterator[Outcome]:
        """Yield the outcome of each candidate, in order, as soon as it is known."""
        built = self._build(candidates)
        for candidate in candidates:
            outcome = built[candidate]
            if outcome.status == "built":
                outcome = self._run([candidate], plan)[0]
            yield outcome

    def compare(self, candidates: Sequence[Candidate], plan: Plan) -> list[Outcome]:
        """Time candidates of one workload turn by turn, `plan.samples` turns."""
        built = self._build(candidates)
        bad = {c: outcome for c, outcome in built.items() if outcome.status != "built"}
        good = [candidate for candidate in candidates if candidate not in bad]
        outcomes = dict(zip(good, self._run(good, plan))) if good else {}
        return [bad[candidate] if candidate in bad else outcomes[candidate] for candidate in candidates]

    def time_kernel(self, library: Path, elements: Sequence[int], samples: int) -> tuple[float, ...]:
        """Time the `main` of a library on arrays of float32 of these lengths."""
        self._settle()
        timings: tuple[float, ...] = self._runner.call(
            TimeRequest(library, tuple(elements), samples), timeout=60
        )
        return timings

    def _run(self, candidates: Sequence[Candidate], plan: Plan) -> list[Outcome]:
        problem = self.problem(candidates[0].workload)
        libraries = tuple(self._built[candidate] for candidate in candidates)
        self._settle()
        try:
            outcomes: list[Outcome] = self._runner.call(RunRequest(libraries, problem, plan), plan.timeout)
            return outcomes
        except WorkerDiedError as death:
            return [Outcome("crash", detail=str(death))] * len(candidates)
        except WorkerTimeoutError as timeout:
            return [Outcome("timeout", detail=str(timeout))] * len(candidates)

    def _build(self, candidates: Sequence[Candidate]) -> dict[Candidate, Outcome]:
        """Build what is not built yet, as many at once as there are builders."""
        outcomes = {c: Outcome("built") for c in candidates if c in self._built}
        queue = [c for c in dict.fromkeys(candidates) if c not in outcomes]
        idle = list(self._builders)
        busy: dict[Worker, tuple[Candidate, Path, float]] = {}
        while queue or busy:
            while queue and idle:
                worker, candidate = idle.pop(), queue.pop(0)
                path = self._folder / f"k{next(self._names)}.so"
                worker.send(BuildRequest(candidate, path))
                busy[worker] = candidate, path, time.monotonic() + _BUILD_SECONDS
            for worker in self._finished(busy):
                candidate, path, deadline = busy.pop(worker)
                outcomes[candidate] = self._collect(worker, deadline)
                if outcomes[candidate].status == "built":
                    self._built[candidate] = path
                idle.append(worker)
        return outcomes

    def _finished(self, busy: dict[Worker, tuple[Candidate, Path, float]]) -> list[Worker]:
        """Wait until a builder has answered, died or run out of time; return all such."""
        nearest = min(deadline for _, _, deadline in busy.values())
        readable = wait([w.connection for w in busy], timeout=max(0.0, nearest - time.monotonic()))
        now = time.monotonic()
        return [w for w, (_, _, deadline) in busy.items() if w.connection in readable or deadline <= now]

    def _collect(self, worker: Worker, deadline: float) -> Outcome:
        try:
            outcome: Outcome = worker.receive(max(0.0, deadline - time.monotonic()))
            return outcome
        except WorkerDiedError as death:
            return Outcome("compile", detail=f"the compiler was {death}")
        except WorkerTimeoutError:
            return Outcome("compile", detail=f"compiling took over {_BUILD_SECONDS:.0f} s")

    def _settle(self) -> None:
        """Wait for builders that are starting: importing the compiler keeps a core busy."""
        for worker in self._builders:
            worker.await_ready()

    def close(self) -> None:
        for worker in (*self._builders, self._runner):
            worker.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
