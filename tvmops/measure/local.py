"""`LocalMeasurer`: builders and a runner on this machine, kept alive between trials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tvmops.machine import this_machine
from tvmops.measure.builders import Builders
from tvmops.measure.candidate import Candidate, Outcome, Plan, Problem
from tvmops.measure.link import find_linker
from tvmops.measure.problem import Problems
from tvmops.measure.runner import RunRequest, TimeRequest
from tvmops.measure.running import Runner, turn_by_turn
from tvmops.measure.scratch import Scratch
from tvmops.targets import Target
from tvmops.workloads import Workload


class LocalMeasurer:
    """Measures candidates: all of a batch are built first, side by side, then run in turn.

    Nothing is built while a candidate runs, so that its times are its own. A worker that
    died, or ran a candidate that did anything wrong, is replaced.
    """

    def __init__(self, target: Target, builders: int | None = None) -> None:
        find_linker(bare=True)  # where there is none, no candidate could be built
        self.target, self.machine = target, this_machine().fingerprint
        self._scratch = Scratch()
        self._problems = Problems(self._scratch.path)
        self._builders = Builders(self._scratch.path, builders)
        self._runner = Runner(target.cores)
        self._runner.start()

    def await_ready(self) -> None:
        """Wait until all workers have started; they do when first used, too."""
        self._builders.await_ready()
        self._runner.await_ready()

    def problem(self, workload: Workload) -> Problem:
        """Return inputs and expected result of `workload`, made at its first use."""
        return self._problems.of(workload)

    def measure(self, candidates: Sequence[Candidate], plan: Plan) -> Iterator[Outcome]:
        """Yield the outcome of each candidate, in order, as soon as it is known."""
        built = self._builders.build(candidates)
        for candidate in candidates:
            outcome = built[candidate]
            if outcome.status == "built":
                outcome = self._run([candidate], plan, compare=False)[candidate]
            yield outcome

    def compare(self, candidates: Sequence[Candidate], plan: Plan) -> list[Outcome]:
        """Time candidates of one workload turn by turn, `plan.samples` turns."""
        built = self._builders.build(candidates)
        return turn_by_turn(lambda some, compare: self._run(some, plan, compare), candidates, built)

    def describe(self, candidates: Sequence[Candidate]) -> list[dict[str, float] | None]:
        """Return features of the code of each candidate; None where it can't be had."""
        return self._builders.describe(candidates)

    def time_kernel(self, library: Path, elements: Sequence[int], samples: int) -> tuple[float, ...]:
        """Time the `main` of a library on arrays of float32 of these lengths."""
        self._builders.await_ready()
        return self._runner.time(TimeRequest(library, tuple(elements), samples))

    def _run(self, candidates: Sequence[Candidate], plan: Plan, compare: bool) -> dict[Candidate, Outcome]:
        if not candidates:
            return {}
        problem = self.problem(candidates[0].shape or candidates[0].workload)
        libraries = tuple(self._builders.library(candidate) for candidate in candidates)
        self._builders.await_ready()
        return dict(zip(candidates, self._runner.run(RunRequest(libraries, problem, plan, compare))))

    def close(self) -> None:
        self._builders.close()
        self._runner.stop()
        self._scratch.close()
