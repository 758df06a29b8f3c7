"""`Runner`: the worker that runs candidates. Whatever one does to it becomes that one's outcome."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tvmops.measure.candidate import Candidate, Outcome
from tvmops.measure.runner import RUNTIME_VARIABLE, RunRequest, TimeRequest
from tvmops.measure.worker import Worker, WorkerDiedError, WorkerTimeoutError

TIME_SECONDS = 60.0  # for a kernel to be timed

Run = Callable[[Sequence[Candidate], bool], dict[Candidate, Outcome]]


class Runner(Worker):
    """A runner on `cores` threads; `runtime` is TVM's, where none is installed."""

    def __init__(self, cores: int, runtime: Path | None = None, python: str = sys.executable) -> None:
        environment = {"TVMOPS_NUM_THREADS": str(cores)}
        if runtime:
            environment[RUNTIME_VARIABLE] = str(runtime)
        module = "tvmops.measure.runner"
        super().__init__("runner", f"{module}:setup", f"{module}:handle", environment, python)

    def run(self, request: RunRequest) -> list[Outcome]:
        """Return the outcome of each library. After anything wrong the next one finds a new process."""
        try:
            outcomes: list[Outcome] = self.call(request, request.plan.timeout)
        except WorkerDiedError as death:
            status = "memory" if death.out_of_memory else "crash"
            outcomes = [Outcome(status, detail=str(death))] * len(request.libraries)
        except WorkerTimeoutError as late:
            outcomes = [Outcome("timeout", detail=str(late))] * len(request.libraries)
        if not all(outcome.seconds for outcome in outcomes):
            self.stop()  # who knows what else such a candidate wrote to
            self.start()
        return outcomes

    def time(self, request: TimeRequest) -> tuple[float, ...]:
        """Return samples of a kernel's time."""
        timings: tuple[float, ...] = self.call(request, TIME_SECONDS)
        return timings


def turn_by_turn(
    run: Run, candidates: Sequence[Candidate], built: Mapping[Candidate, Outcome]
) -> list[Outcome]:
    """Compare those that are built; one that spoils it for all is found, and left out."""
    outcomes = dict(built)
    fit = [candidate for candidate in candidates if outcomes[candidate].status == "built"]
    outcomes.update(run(fit, True))
    if fit and not any(outcomes[candidate].seconds for candidate in fit):
        for candidate in fit:
            outcomes.update(run([candidate], False))
        fit = [candidate for candidate in fit if outcomes[candidate].seconds]
        together = run(fit, True)
        outcomes.update({c: outcome for c, outcome in together.items() if outcome.seconds})
    return [outcomes[candidate] for candidate in candidates]
