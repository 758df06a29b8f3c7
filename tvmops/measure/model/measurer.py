"""`ModelMeasurer`: tells candidates apart without the machine that they are for.

A candidate runs once, under emulation, and is checked as on a real machine. How often each
of its blocks ran is exact, and a model of the core gives their cycles: the same config has
the same number on every host. Wall time under emulation says nothing, and is not looked at.

Misses of a modelled first and second cache, cold at the start, stand beside the cycles and are no
part of them. Arguments begin pages, so that theirs are exact; the stack and descriptions of arrays,
which lie where they happen to, add a few lines that may differ from run to run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from tvmops.errors import ArgumentError
from tvmops.measure.builders import Builders
from tvmops.measure.candidate import Candidate, Outcome, Plan
from tvmops.measure.link import find_linker
from tvmops.measure.model.counter import CountRequest
from tvmops.measure.model.cycles import Counts, analyser, cycles, peak_macs
from tvmops.measure.model.emulator import CPUS, environment, set_up
from tvmops.measure.peak import Peak
from tvmops.measure.problem import Problems
from tvmops.measure.runtimes import runtime_file
from tvmops.measure.scratch import Scratch
from tvmops.measure.worker import Worker, WorkerDiedError, WorkerTimeoutError
from tvmops.records import NOMINAL_HERTZ
from tvmops.targets import Target

_TIMEOUT = 120.0  # seconds; emulation is some hundred times slower than a core
_NO_LIMIT = 1e30  # bytes a second: the model knows no bandwidth


class ModelMeasurer:
    """Counts what candidates for one core execute.

    Raises
    ------
    ArgumentError
        There is no model of the target.
    ModelToolsError, NoCrossLinkerError, RuntimeDownloadError
        Something that this needs is not here.
    """

    def __init__(self, target: Target, builders: int | None = None) -> None:
        if target.name not in CPUS:
            expected = f"one that can be modelled: {', '.join(CPUS)}"
            raise ArgumentError(argument="target", value=target.name, expected=expected)
        python = set_up() / "python"
        find_linker(bare=True, arch=target.arch)
        self.target = dataclasses.replace(target, cores=1)
        self._core = str(target.tvm["mcpu"])
        self.machine = f"model of one {self._core}, llvm-mca {analyser()[2]}"
        self.peak = Peak(flops=2 * peak_macs(self._core) * NOMINAL_HERTZ, bandwidth=_NO_LIMIT)
        self._scratch = Scratch()
        self._problems = Problems(self._scratch.path)
        self._builders = Builders(self._scratch.path, builders)
        self._known: dict[Candidate, Outcome] = {}
        module = "tvmops.measure.model.counter"
        variables = environment(target, self._scratch.path / "counts", runtime_file(target.arch))
        self._counter = Worker("counter", f"{module}:setup", f"{module}:handle", variables, str(python))
        self._counter.start()

    def measure(self, candidates: Sequence[Candidate], plan: Plan) -> Iterator[Outcome]:
        """Yield the outcome of each candidate, in order, as soon as it is known."""
        built = self._builders.build([each for each in candidates if each not in self._known])
        for candidate in candidates:
            if candidate not in self._known:
                is_built = built[candidate].status == "built"
                self._known[candidate] = self._count(candidate) if is_built else built[candidate]
            yield self._known[candidate]

    def compare(self, candidates: Sequence[Candidate], plan: Plan) -> list[Outcome]:
        """Return the outcomes; there is no noise that a comparison could take away."""
        return list(self.measure(candidates, plan))

    def describe(self, candidates: Sequence[Candidate]) -> list[dict[str, float] | None]:
        """Return features of the code of each candidate; None where it can't be had."""
        return self._builders.describe(candidates)

    def _count(self, candidate: Candidate) -> Outcome:
        problem, library = (
            self._problems.of(candidate.shape or candidate.workload),
            self._builders.library(candidate),
        )
        try:
            counted = self._counter.call(CountRequest(library, problem), _TIMEOUT)
        except WorkerDiedError as death:
            return Outcome("memory" if death.out_of_memory else "crash", detail=str(death))
        except WorkerTimeoutError as late:
            return Outcome("timeout", detail=str(late))
        outcome: Outcome = counted.outcome
        if outcome.status != "ok":
            self._counter.stop()  # who knows what else such a candidate wrote to
            return outcome
        counts = Counts.parse(counted.raw)
        found = {
            "instructions": counts.instructions,
            "accesses": counts.accesses,
            "l1_misses": counts.l1_misses,
            "l2_misses": counts.l2_misses,
        }
        return dataclasses.replace(
            outcome, kind="modelled", cycles=cycles(counts, self._core), counts=found, clock="llvm-mca"
        )

    def close(self) -> None:
        self._builders.close()
        self._counter.stop()
        self._scratch.close()
