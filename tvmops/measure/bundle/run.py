"""Run a bundle: verify and time its candidates, the results in a file as they come.

A worker process does it, workload by workload; a supervisor starts another one past a
candidate that crashes or hangs. What `results.jsonl` holds already is not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from tvmops.gpu import runs
from tvmops.machine import this_machine
from tvmops.measure.bundle.clocks import ClockSamples
from tvmops.measure.bundle.content import COPY, RESULTS, Bundle, Entry, Result, read_results
from tvmops.measure.bundle.device import Device
from tvmops.measure.bundle.on_cpu import Cpu
from tvmops.measure.bundle.problem import Problem
from tvmops.runtime.backend import load_backend, load_cuda_backend, load_kernels
from tvmops.runtime.workspace import kernel_of
from tvmops.workloads import Workload

_SAMPLES = 5
_TURNS = 9  # of a final comparison
_FINALISTS = 3  # besides the default
_BURST = 1e-3  # seconds of a sample
_STRETCH = 2.0  # seconds of a sustained turn
_SUSTAINED = 16.0  # seconds of all of a workload's
_SLOW = 2.0  # times the best: such a candidate is timed once
_STALL = 60.0  # seconds without a line from the worker
_COMPILING = 60.0  # of a peer
_INPUTS = "inputs"
_POISONED = 3  # exit code: the device's state is unknown


def main(folder: Path) -> int:
    """Run the bundle at `folder`; the arguments come from the command line."""
    parser = argparse.ArgumentParser(description="Verify and time the candidates of this bundle.")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after as many")
    parser.add_argument(
        "--compile",
        type=float,
        nargs="?",
        const=_COMPILING,
        default=0.0,
        metavar="SECONDS",
        help=f"torch.compile as a peer, too; given up after as many a workload ({_COMPILING:g})",
    )
    parser.add_argument(
        "--sustained",
        type=float,
        nargs="?",
        const=_SUSTAINED,
        default=0.0,
        metavar="SECONDS",
        help="then run the best kernel and the best peer by turns of "
        f"{_STRETCH:g} s each, for as many a workload ({_SUSTAINED:g})",
    )
    arguments = parser.parse_args()
    if arguments.worker:
        bundle = Bundle.read(folder)
        device = open_device(bundle.kind, folder, arguments.compile)
        return Run(folder, bundle, arguments.seconds, device, arguments.sustained).all()
    return supervise(folder, arguments.seconds, arguments.compile, arguments.sustained)


def supervise(folder: Path, seconds: float, compiling: float = 0.0, sustained: float = 0.0) -> int:
    """Start workers until all is done or the time is over."""
    bundle = Bundle.read(folder)
    missing = [need for need in bundle.needs if need not in this_machine().features and not runs(need)]
    if missing:
        print(f"this machine lacks {', '.join(missing)}, which {bundle.target} needs", file=sys.stderr)
        return 1
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        code, blamed = _watch(folder, left, compiling, sustained)
        if code == 0 or left <= 0:
            return _summary(folder, bundle)
        if blamed is None:
            print(f"the worker ended with {code} before it ran anything", file=sys.stderr)
            return 1
        _blame(folder, blamed, code)


def _blame(folder: Path, blamed: tuple[str, str], code: int) -> None:
    """Write down what the worker died of, so that the next one passes over it."""
    workload, key = blamed
    known = {(r.key, r.stage) for r in read_results(folder) if r.workload == workload}
    stage = "final" if (key, "search") in known or key == _INPUTS else "search"
    stage = "sustained" if (key, "final") in known else stage
    if code != _POISONED or stage == "search":  # else its crash is written already
        status, detail = "timeout" if code == -9 else "crash", f"the worker ended with {code}"
        _append(folder, Result(workload, key, stage, status, detail=detail))


def _watch(
    folder: Path, seconds: float, compiling: float, sustained: float
) -> tuple[int, tuple[str, str] | None]:
    """Run one worker; return its exit code and what it was at."""
    limits = {"seconds": seconds, "compile": compiling, "sustained": sustained}
    options = [f"--{name}={value}" for name, value in limits.items()]
    command = [sys.executable, str(folder / "run.py"), "--worker", *options]
    worker = subprocess.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    marker, heard = folder / "at.json", time.monotonic()
    marker.unlink(missing_ok=True)
    seen = ""
    while worker.poll() is None:
        time.sleep(0.2)
        now = marker.read_text() if marker.is_file() else ""
        if now != seen:
            seen, heard = now, time.monotonic()
        if time.monotonic() - heard > _STALL + compiling:
            worker.kill()
    return worker.wait(), tuple(json.loads(seen)[:2]) if seen else None


def open_device(kind: str, folder: Path, compiling: float = 0.0) -> Device:
    """Return the device of this machine for targets of `kind`; see `TorchCuda` for `compiling`."""
    load_backend(folder)
    if kind == "cpu":
        return Cpu()
    from tvmops.measure.bundle.on_torch import TorchCuda

    load_cuda_backend(folder)
    return TorchCuda(compiling)


def _append(folder: Path, result: Result) -> None:
    with (folder / RESULTS).open("a") as file:
        file.write(json.dumps(dataclasses.asdict(result)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _summary(folder: Path, bundle: Bundle) -> int:
    results = read_results(folder)
    done = {(r.workload, r.key) for r in results if r.stage == "search"}
    counts: dict[str, int] = {}
    for result in results:
        counts[result.status] = counts.get(result.status, 0) + 1
    print(f"{len(done)} of {len(bundle.entries)} candidates:", counts)
    return 0


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
        stages = {stage for _, stage in known}
        is_left = self._sustained and "sustained" not in stages
        if "final" in stages and not is_left:
            return 0
        self._at(text, _INPUTS)
        problem = Problem(Workload.parse(text), self._device, self._bundle)
        if "final" not in stages:
            for entry in entries:
                if (entry.key, "search") in known:
                    continue
                if self._is_over():
                    return 0
                if self._search(problem, entry).status == "crash" and self._bundle.kind == "cuda":
                    return _POISONED
            self._compare(problem, entries)
        if is_left and not self._is_over():
            self._sustain(problem, entries)
        return 0

    def _at(self, workload: str, key: str) -> None:
        """Say what this worker is at, for the supervisor."""
        marker = self._folder / "at.json"
        marker.with_suffix(".new").write_text(json.dumps([workload, key, time.time()]))
        marker.with_suffix(".new").replace(marker)

    def _kernel(self, entry: Entry) -> Callable[..., object]:
        if entry.library not in self._kernels:
            self._kernels[entry.library] = kernel_of(load_kernels(self._folder / entry.library), "main")
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

    def _compare(self, problem: Problem, entries: Sequence[Entry]) -> None:
        """Time the leaders, the default and the peers turn by turn."""
        text = str(problem.workload)
        times = {
            r.key: min(r.seconds) for r in self._results(text) if r.stage == "search" and r.status == "ok"
        }
        ranked = sorted((e for e in entries if e.key in times), key=lambda entry: times[entry.key])
        chosen = [*ranked[:_FINALISTS], *(entry for entry in ranked[_FINALISTS:] if entry.default)]
        calls: dict[str, Callable[..., object]] = {entry.key: self._kernel(entry) for entry in chosen}
        if not calls:
            return
        peers = self._device.peers(problem.workload)
        clocks = {}
        for key, call in (calls | peers).items():
            self._at(text, key)
            try:
                clocks[key] = self._device.clock(call, problem.sets)
            except Exception as failure:  # a peer that has nothing for this workload
                if key in calls:
                    raise
                self._write(
                    Result(text, key, "final", "skipped", detail=f"{type(failure).__name__}: {failure}"[:500])
                )
        calls |= {key: call for key, call in peers.items() if key in clocks}
        bursts = _turns(clocks, _TURNS, _BURST)
        for key, call in calls.items():
            error = _finite(problem.check(call)[0])
            self._write(Result(text, key, "final", "ok", tuple(bursts[key]), error=error))

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
        turns = max(1, round(self._sustained / (_STRETCH * len(clocks))) - 1)  # the first is to get hot
        seconds: dict[str, list[float]] = {key: [] for key in clocks}
        megahertz: dict[str, list[float]] = {key: [] for key in clocks}
        for turn in range(1 + turns):
            for key, clock in clocks.items():
                self._at(text, key)
                with ClockSamples(self._device.megahertz) as samples:
                    mean = clock(_STRETCH)
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
        _append(self._folder, result)


def _turns(clocks: dict[str, Callable[[float], float]], turns: int, seconds: float) -> dict[str, list[float]]:
    timings: dict[str, list[float]] = {key: [] for key in clocks}
    for turn in range(turns):
        order = list(clocks) if turn % 2 == 0 else list(reversed(clocks))
        for key in order:
            timings[key].append(clocks[key](seconds))
    return timings


def _finite(error: float) -> float | None:
    return error if error < float("inf") else None
