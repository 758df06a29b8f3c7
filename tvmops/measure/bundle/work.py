"""`Run`: verify and time a bundle's candidates, workload by workload, the results in a file as they come."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from tvmops.measure.bundle.clocks import ClockSamples
from tvmops.measure.bundle.content import COPY, Bundle, Entry, Result, append_result, read_results
from tvmops.measure.bundle.device import Device
from tvmops.measure.bundle.on_cpu import Cpu
from tvmops.measure.bundle.problem import Problem
from tvmops.runtime.backend import load_backend, load_cuda_backend, load_kernels
from tvmops.runtime.workspace import kernel_of
from tvmops.workloads import Workload

INPUTS = "inputs"  # what a worker is at before its first candidate
MARKER = "at.json"  # says what it is at
POISONED = 3  # exit code: the device's state is unknown
_SAMPLES = 5
_TURNS = 9  # of a final comparison
_FINALISTS = 3  # besides the default
_BURST = 1e-3  # seconds of a sample
STRETCH = 2.0  # seconds of a sustained turn
_SLOW = 2.0  # times the best: such a candidate is timed once


def open_device(kind: str, folder: Path, compiling: float = 0.0) -> Device:
    """Return the device of this machine for targets of `kind`; see `TorchCuda` for `compiling`."""
    load_backend(folder)
    if kind == "cpu":
        return Cpu()
    from tvmops.measure.bundle.on_torch import TorchCuda

    load_cuda_backend(folder)
    return TorchCuda(compiling)


def load(library: Path) -> Callable[..., object]:
    """Return the kernel in the shared library."""
    return kernel_of(load_kernels(library), "main")


class Run:
    """The work of one worker process."""

    def __init__(
        self,
        folder: Path,
        bundle: Bundle,
        seconds: float,
        device: Device | None = None,
        sustained: float = 0.0,
    ) -> None:
        self._folder, self._bundle, self._sustained = folder, bundle, sustained
        self._deadline = time.monotonic() + seconds
        self._device = device or open_device(bundle.kind, folder)
        self._kernels: dict[str, Callable[..., object]] = {}
        self._known: dict[str, list[Result]] = {}
        for result in read_results(folder):
            self._known.setdefault(result.workload, []).append(result)

    def all(self) -> int:
        """Do what is not done yet; return an exit code."""
        for text, entries in self._bundle.workloads().items():
            code = 0 if self._is_over() else self._one(text, entries)
            if code:
                return code
        return 0

    def _is_over(self) -> bool:
        return time.monotonic() > self._deadline

    def _one(self, text: str, entries: Sequence[Entry]) -> int:
        """Do what is left of one workload."""
        known = {(r.key, r.stage) for r in self._results(text)}
        is_left = self._sustained and "sustained" not in {stage for _, stage in known}
        is_compared = any((key, "final") in known for key in (INPUTS, *(entry.key for entry in entries)))
        if is_compared and not is_left:
            return 0
        self._at(text, INPUTS)
        problem = Problem(Workload.parse(text), self._device, self._bundle)
        if not is_compared:
            for entry in entries:
                if (entry.key, "search") in known:
                    continue
                if self._is_over():
                    return 0
                if self._search(problem, entry).status == "crash" and self._bundle.kind == "cuda":
                    return POISONED
            if code := self._compare(problem, entries):
                return code
        if is_left and not self._is_over():
            self._sustain(problem, entries)
        return 0

    def _at(self, workload: str, key: str) -> None:
        """Say what this worker is at, for the supervisor."""
        marker = self._folder / MARKER
        marker.with_suffix(".new").write_text(json.dumps([workload, key, time.time()]))
        marker.with_suffix(".new").replace(marker)

    def _kernel(self, entry: Entry) -> Callable[..., object]:
        if entry.library not in self._kernels:
            self._kernels[entry.library] = load(self._folder / entry.library)
        return self._kernels[entry.library]

    def _search(self, problem: Problem, entry: Entry) -> Result:
        """Verify and time one candidate, and write what became of it."""
        self._at(entry.workload, entry.key)
        result = Result(entry.workload, entry.key, "search", "ok")
        try:
            call = self._kernel(entry)
            error, complaint = problem.check(call)
            if complaint:
                result = dataclasses.replace(result, status="wrong", error=_finite(error), detail=complaint)
            else:
                result = dataclasses.replace(result, error=error, seconds=self._samples(problem, call))
        except Exception as failure:
            detail = f"{type(failure).__name__}: {failure}"[:500]
            result = dataclasses.replace(result, status="crash", detail=detail)
        self._write(result)
        return result

    def _samples(self, problem: Problem, call: Callable[..., object]) -> tuple[float, ...]:
        clock = self._device.clock(call, problem.sets)
        first = clock(_BURST)
        best = min(
            (
                min(r.seconds)
                for r in self._results(str(problem.workload))
                if r.seconds and r.stage == "search"
            ),
            default=first,
        )
        if first > _SLOW * best:
            return (first,)
        return (first, *(clock(_BURST) for _ in range(_SAMPLES - 1)))

    def _compare(self, problem: Problem, entries: Sequence[Entry]) -> int:
        """Time the leaders, the default and the peers turn by turn; return an exit code."""
        text = str(problem.workload)
        times = {
            r.key: min(r.seconds) for r in self._results(text) if r.stage == "search" and r.status == "ok"
        }
        ranked = sorted((e for e in entries if e.key in times), key=lambda entry: times[entry.key])
        chosen = [*ranked[:_FINALISTS], *(entry for entry in ranked[_FINALISTS:] if entry.default)]
        calls: dict[str, Callable[..., object]] = {entry.key: self._kernel(entry) for entry in chosen}
        if not calls:
            return 0
        failed = {r.key for r in self._results(text) if r.stage == "final" and r.status != "ok"}
        peers = {k: c for k, c in self._device.peers(problem.workload).items() if k not in failed}
        clocks = {}
        for key, call in (calls | peers).items():
            self._at(text, key)
            try:
                clocks[key] = self._device.clock(call, problem.sets)
            except Exception as failure:  # a peer that has nothing for this workload
                if key in calls:
                    raise
                detail = f"{type(failure).__name__}: {failure}"[:500]
                self._write(Result(text, key, "final", "skipped", detail=detail))
                if not _works(problem, next(iter(calls.values()))):
                    return POISONED
        calls |= {key: call for key, call in peers.items() if key in clocks}
        bursts = _turns(clocks, _TURNS, _BURST)
        for key, call in calls.items():
            error = _finite(problem.check(call)[0])
            self._write(Result(text, key, "final", "ok", tuple(bursts[key]), error=error))
        return 0

    def _sustain(self, problem: Problem, entries: Sequence[Entry]) -> None:
        """Time the best kernel and the best peer by turns so long that a GPU lowers its clock."""
        text, own = str(problem.workload), {entry.key: entry for entry in entries}
        finals = {
            r.key: statistics.median(r.seconds)
            for r in self._results(text)
            if (r.stage, r.status) == ("final", "ok") and r.seconds and r.key != COPY
        }
        ranked = sorted(finals, key=lambda key: finals[key])
        kernels, peers = [k for k in ranked if k in own], [k for k in ranked if k not in own]
        if not kernels:
            return
        calls = {kernels[0]: self._kernel(own[kernels[0]])}
        if peers:
            calls[peers[0]] = self._device.peers(problem.workload)[peers[0]]
        clocks = {}
        for key, call in calls.items():
            self._at(text, key)
            clocks[key] = self._device.clock(call, problem.sets)
        turns = max(1, round(self._sustained / (STRETCH * len(clocks))) - 1)  # the first is to get hot
        seconds: dict[str, list[float]] = {key: [] for key in clocks}
        megahertz: dict[str, list[float]] = {key: [] for key in clocks}
        for turn in range(1 + turns):
            for key, clock in clocks.items():
                self._at(text, key)
                with ClockSamples(self._device.megahertz) as samples:
                    mean = clock(STRETCH)
                if turn:
                    seconds[key].append(mean)
                    megahertz[key] += [samples.median] if samples.median is not None else []
        for key in clocks:
            self._write(Result(text, key, "sustained", "ok", tuple(seconds[key]), tuple(megahertz[key])))

    def _results(self, workload: str) -> list[Result]:
        return self._known.get(workload, [])

    def _write(self, result: Result) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        result = dataclasses.replace(result, machine=self._device.machine, when=now)
        self._known.setdefault(result.workload, []).append(result)
        append_result(self._folder, result)


def _works(problem: Problem, call: Callable[..., object]) -> bool:
    """Tell whether `call` still runs after another has failed."""
    try:
        problem.check(call)
    except Exception:
        return False
    return True


def _turns(clocks: dict[str, Callable[[float], float]], turns: int, seconds: float) -> dict[str, list[float]]:
    timings: dict[str, list[float]] = {key: [] for key in clocks}
    for turn in range(turns):
        order = list(clocks) if turn % 2 == 0 else list(reversed(clocks))
        for key in order:
            timings[key].append(clocks[key](seconds))
    return timings


def _finite(error: float) -> float | None:
    return error if error < float("inf") else None
