"""The runner worker: a shared library in, its error and its timings out.

It loads the runtime alone, never the compiler, so that a replacement for one that died
is there in a fraction of a second.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tvmops.machine import one_cpu_a_core, this_machine
from tvmops.measure.arguments import Arguments
from tvmops.measure.candidate import Outcome, Plan, Problem
from tvmops.measure.failure import describe, tells_of_memory
from tvmops.measure.limits import limit_memory
from tvmops.measure.timing import interleave, sample, time_call
from tvmops.runtime.backend import load_backend, load_kernels, ready_threads

RUNTIME_VARIABLE = "TVMOPS_RUNNER_RUNTIME"  # names the file of TVM's runtime, where none is installed
_MEMORY_SHARE = 0.8
_SOME_CACHE = 32 << 20  # bytes, where the system does not say


@dataclass(frozen=True)
class RunRequest:
    libraries: tuple[Path, ...]
    problem: Problem
    plan: Plan
    compare: bool  # turn by turn; else each apart


@dataclass(frozen=True)
class TimeRequest:
    library: Path
    elements: tuple[int, ...]  # lengths of the float32 arrays that its `main` takes
    samples: int


def setup() -> None:
    brought = os.environ.get(RUNTIME_VARIABLE)
    if brought:
        load_backend(Path(brought).parent, Path(brought).name)
    else:
        load_backend()
    _start_pinned_threads()
    limit_memory(_MEMORY_SHARE)


def _start_pinned_threads() -> None:
    """Start the kernels' threads, each on a core of its own.

    Left to itself, the system now and then lets two share a core for as long as a candidate
    is measured, which halves its speed and says nothing about it.
    """
    before = _threads()
    ready_threads()
    workers = sorted(_threads() - before)
    cpus = one_cpu_a_core()
    if len(workers) < len(cpus):
        for thread, cpu in zip([os.getpid(), *workers], cpus):
            os.sched_setaffinity(thread, {cpu})


def _threads() -> set[int]:
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}


def handle(request: RunRequest | TimeRequest) -> Any:
    """Answer either request: outcomes of candidates, or samples of a kernel's time."""
    if isinstance(request, TimeRequest):
        return _time(request)
    return _run(request)


def _time(request: TimeRequest) -> tuple[float, ...]:
    kernel = load_kernels(request.library)["main"]
    arrays = [_random(length) for length in request.elements]
    return sample(lambda: kernel(*arrays), request.samples, sample_seconds=0.01)


@lru_cache(maxsize=2)
def _random(length: int) -> Any:
    return np.random.default_rng(0).random(length, dtype=np.float32)


_arguments = lru_cache(maxsize=1)(Arguments)


@dataclass(frozen=True)
class _Checked:
    """A kernel that ran once."""

    outcome: Outcome  # "ok", or what is wrong with it
    call: Callable[..., object]
    seconds: float  # of that first run


def _run(request: RunRequest) -> list[Outcome]:
    """Verify each library, and time those that are right."""
    arguments, plan = _arguments(request.problem), request.plan
    checked = [_check(path, arguments) for path in request.libraries]
    try:
        if request.compare:
            return _compare(checked, arguments, plan)
        return [_time_alone(each, arguments, plan) for each in checked]
    except Exception as failure:  # right at first, and then not
        detail = describe(failure)
        return [Outcome("memory" if tells_of_memory(detail) else "crash", detail=detail)] * len(checked)


def _check(library: Path, arguments: Arguments) -> _Checked:
    """Load a kernel, run it once and judge what it did."""
    try:
        kernel = load_kernels(library)["main"]
    except Exception as failure:
        return _Checked(Outcome("compile", detail=describe(failure)), print, 0.0)
    arguments.poison()
    start = time.perf_counter()
    try:
        kernel(*arguments.all)
        seconds = time.perf_counter() - start
        error, complaint = arguments.judge()
        status = "wrong" if complaint else "ok"
    except Exception as failure:
        seconds, error, complaint = 0.0, math.inf, describe(failure)
        status = "memory" if tells_of_memory(complaint) else "crash"
    if status != "ok":
        arguments.restore()
    outcome = Outcome(status, error=error if math.isfinite(error) else None, detail=complaint)
    return _Checked(outcome, kernel, seconds)


def _time_alone(checked: _Checked, arguments: Arguments, plan: Plan) -> Outcome:
    outcome, given = checked.outcome, arguments.all
    if outcome.status != "ok":
        return outcome
    if checked.seconds > plan.give_up_above:  # once more, lest a stall of the machine be its fate
        again = time_call(lambda: checked.call(*given))
        if again > plan.give_up_above:
            return dataclasses.replace(outcome, status="slow", seconds=(checked.seconds, again))
    seconds = sample(lambda: checked.call(*given), plan.samples, plan.sample_seconds, plan.promising_below)
    return dataclasses.replace(outcome, seconds=seconds)


def _compare(checked: list[_Checked], arguments: Arguments, plan: Plan) -> list[Outcome]:
    """Time those that are right turn by turn: on the same arrays each time, and, cold, on rotating ones."""
    right = [each for each in checked if each.outcome.status == "ok"]
    calls = [_calling(each.call, itertools.repeat(arguments.all)) for each in right]
    if plan.cold:
        rotation = arguments.rotation(this_machine().l3_bytes or _SOME_CACHE)
        calls += [_calling(each.call, rotation) for each in right]
    timings = interleave(calls, plan.samples, plan.sample_seconds)
    timings += [()] * (2 * len(right) - len(timings))
    timed = {
        id(each): dataclasses.replace(each.outcome, seconds=seconds, cold_seconds=cold_seconds)
        for each, seconds, cold_seconds in zip(right, timings, timings[len(right) :])
    }
    return [timed.get(id(each), each.outcome) for each in checked]


def _calling(kernel: Callable[..., object], arguments: Iterator[tuple[Any, ...]]) -> Callable[[], object]:
    return lambda: kernel(*next(arguments))
