"""`FleetMeasurer`: builders here, and the devices of a tracker, all at the same time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tvmops.errors import FleetError, NoDeviceError
from tvmops.measure.builders import Builders
from tvmops.measure.candidate import Candidate, Outcome, Plan
from tvmops.measure.failure import tells_of_memory
from tvmops.measure.fleet.line import Line, most_frequent
from tvmops.measure.fleet.spread import spread
from tvmops.measure.fleet.store import name_of
from tvmops.measure.fleet.tasks import outcomes_of, task_of
from tvmops.measure.fleet.wire import Message
from tvmops.measure.link import find_linker
from tvmops.measure.problem import Problems
from tvmops.measure.runner import RunRequest, TimeRequest
from tvmops.measure.running import TIME_SECONDS, turn_by_turn
from tvmops.measure.runtimes import runtime_file
from tvmops.measure.scratch import Scratch
from tvmops.targets import Target

_CACHES = ("l1_bytes", "l2_bytes", "l3_bytes")
_PATIENCE = 60.0  # seconds without any device or the tracker, in which one may come back


class FleetMeasurer:
    """Measures candidates on all devices of a tracker that are of one kind.

    That is, for one target and of one fingerprint: of several, the one of which there are most.

    Raises
    ------
    FleetError
        There is no tracker, or it does not hold the same token.
    NoDeviceError
        It has no device for the target.
    NoCrossLinkerError, RuntimeDownloadError
        Nothing can be built for it here.
    """

    def __init__(
        self,
        target: Target,
        tracker: str,
        token: bytes,
        builders: int | None = None,
        patience: float = _PATIENCE,
    ) -> None:
        find_linker(bare=True, arch=target.arch)
        self._tracker, self._token, self._patience = tracker, token, patience
        self._lines = [Line(tracker, token)]
        kinds = self._lines[0].devices()
        kind = most_frequent(kinds, target.name)
        if kind is None:
            devices = ", ".join(sorted({f"'{kind.target}'" for kind in kinds})) or "none"
            raise NoDeviceError(tracker=tracker, target=target.name, devices=devices)
        self._lines[0].patience = patience  # from now on: a tracker that was never there is an error at once
        self.machine = kind.machine
        caches = {name: getattr(kind, name) or getattr(target, name) for name in _CACHES}
        self.target = dataclasses.replace(target, cores=kind.cores, **caches)
        self._runtime = runtime_file(target.arch)
        self._files: dict[str, Path] = {}
        self._names: dict[Path, str] = {}
        self._scratch = Scratch()
        self._problems = Problems(self._scratch.path)
        self._builders = Builders(self._scratch.path, builders)

    def as_completed(self, candidates: Sequence[Candidate], plan: Plan) -> Iterator[tuple[int, Outcome]]:
        """Yield the number and the outcome of each candidate, as soon as it is known.

        No device goes on before its last outcome was taken and the next one asked for.
        """
        built = self._builders.build(candidates)
        for number, candidate in enumerate(candidates):
            if built[candidate].status != "built":
                yield number, built[candidate]
        fit = [number for number, candidate in enumerate(candidates) if built[candidate].status == "built"]
        requests = [self._run_request([candidates[number]], plan, compare=False) for number in fit]
        for index, answer in spread(requests, self._servers(len(fit)), self._hang_up):
            yield fit[index], _outcomes(answer, 1)[0]

    def measure(self, candidates: Sequence[Candidate], plan: Plan) -> Iterator[Outcome]:
        """Yield the outcome of each candidate, in order, as soon as it and all before are known."""
        known: dict[int, Outcome] = {}
        following = 0
        for number, outcome in self.as_completed(candidates, plan):
            known[number] = outcome
            while following in known:
                yield known[following]
                following += 1

    def compare(self, candidates: Sequence[Candidate], plan: Plan) -> list[Outcome]:
        """Time candidates of one workload turn by turn, all on one device."""

        def run(some: Sequence[Candidate], compare: bool) -> dict[Candidate, Outcome]:
            if not some:
                return {}
            answer = self._servers(1)[0](self._run_request(some, plan, compare))
            return dict(zip(some, _outcomes(answer, len(some))))

        return turn_by_turn(run, candidates, self._builders.build(candidates))

    def describe(self, candidates: Sequence[Candidate]) -> list[dict[str, float] | None]:
        """Return features of the code of each candidate; None where it can't be had."""
        return self._builders.describe(candidates)

    def time_kernel(self, library: Path, elements: Sequence[int], samples: int) -> tuple[float, ...]:
        """Time the `main` of a library on a device, on arrays of float32 of these lengths."""
        request = self._request(TimeRequest(library, tuple(elements), samples), TIME_SECONDS)
        answer = self._servers(1)[0](request)
        if "seconds" not in answer:
            raise FleetError(tracker=self._tracker, detail=f"a device could not be timed: {answer}")
        return tuple(answer["seconds"])

    def close(self) -> None:
        self._builders.close()
        for line in self._lines:
            line.close()
        self._scratch.close()

    def _servers(self, most: int) -> list[Callable[[Message], Message]]:
        """Return a way to a device for each that is there, but one at least."""
        own = (self.target.name, self.machine)
        there = sum((kind.target, kind.machine) == own for kind in self._lines[0].devices())
        count = max(1, min(most, there))
        self._lines += [
            Line(self._tracker, self._token, self._patience) for _ in range(count - len(self._lines))
        ]
        return [functools.partial(self._do, line) for line in self._lines[:count]]

    def _do(self, line: Line, request: Message) -> Message:
        answer = line.do(request, self._files)
        if "none" in answer:
            devices = f"had none for {self._patience:.3g} s"
            raise NoDeviceError(tracker=self._tracker, target=self.target.name, devices=devices)
        return answer

    def _run_request(self, candidates: Sequence[Candidate], plan: Plan, compare: bool) -> Message:
        libraries = tuple(self._builders.library(candidate) for candidate in candidates)
        problem = self._problems.of(candidates[0].shape or candidates[0].workload)
        return self._request(RunRequest(libraries, problem, plan, compare), plan.timeout)

    def _request(self, request: RunRequest | TimeRequest, limit: float) -> Message:
        return {
            "target": self.target.name,
            "machine": self.machine,
            "patience": self._patience,
            "limit": limit,
            "task": task_of(request, self._runtime, self._name),
        }

    def _name(self, path: Path) -> str:
        if path not in self._names:
            name = name_of(path.read_bytes(), path.suffix)
            self._names[path], self._files[name] = name, path
        return self._names[path]

    def _hang_up(self) -> None:
        for line in self._lines:
            line.hang_up()


def _outcomes(answer: Message, count: int) -> list[Outcome]:
    if "lost" in answer:
        return [Outcome("crash", detail=f"took {answer['lost']} devices with it")] * count
    if "failed" in answer:
        status = "memory" if tells_of_memory(answer["failed"]) else "crash"
        return [Outcome(status, detail=answer["failed"])] * count
    return outcomes_of(answer["outcomes"])
