"""The runner worker: a shared library in, its error and its timings out.

It loads the runtime alone, never the compiler, so that a replacement for one that died
is there in a fraction of a second.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tvmops.measure.candidate import Outcome, Plan, Problem
from tvmops.measure.timing import interleave, sample
from tvmops.measure.verify import poison, verify
from tvmops.runtime.backend import load_backend, load_kernels, ready_threads

_MEMORY_SHARE = 0.8  # of what is free when the worker starts


@dataclass(frozen=True)
class RunRequest:
    libraries: tuple[Path, ...]  # one: verify and time it; several: compare them turn by turn
    problem: Problem
    plan: Plan


@dataclass(frozen=True)
class TimeRequest:
    library: Path
    elements: tuple[int, ...]  # lengths of the float32 arrays that its `main` takes
    samples: int


def setup() -> None:
    load_backend()
    ready_threads()
    limit = int(_MEMORY_SHARE * _free_memory()) + _own_memory()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


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


def _run(request: RunRequest) -> list[Outcome]:
    """Verify each library; time one alone, several turn by turn."""
    arrays = _arrays(request.problem)
    kernels = [load_kernels(path)["main"] for path in request.libraries]
    if len(kernels) == 1:
        return [_measure(kernels[0], arrays, request)]
    outcomes = [_check(kernel, arrays, request.problem)[0] for kernel in kernels]
    right = [index for index, outcome in enumerate(outcomes) if outcome.status == "ok"]
    calls = [_call(kernels[index], arrays) for index in right]
    timings = interleave(calls, request.plan.samples, request.plan.sample_seconds)
    for index, seconds in zip(right, timings):
        outcomes[index] = Outcome("ok", seconds, error=outcomes[index].error)
    return outcomes


@dataclass(frozen=True)
class _Arrays:
    inputs: list[Any]
    pristine: list[Any]
    expected: Any
    output: Any


@lru_cache(maxsize=1)
def _arrays(problem: Problem) -> _Arrays:
    pristine = [np.load(path) for path in problem.inputs]
    expected = np.load(problem.expected)
    output = np.empty(expected.shape, problem.output_dtype)
    return _Arrays([array.copy() for array in pristine], pristine, expected, output)


def _call(kernel: Any, arrays: _Arrays) -> Callable[[], object]:
    arguments = (*arrays.inputs, arrays.output)
    return lambda: kernel(*arguments)


def _check(kernel: Any, arrays: _Arrays, problem: Problem) -> tuple[Outcome, float]:
    """Run the kernel once; return what it is, and how long that run took."""
    poison(arrays.output)
    start = time.perf_counter()
    elapsed = 0.0

    def timed(*arguments: Any) -> None:
        nonlocal start, elapsed
        start = time.perf_counter()
        kernel(*arguments)
        elapsed = time.perf_counter() - start

    try:
        error, complaint = verify(
            timed, arrays.inputs, arrays.pristine, arrays.output, arrays.expected, problem.tolerance
        )
    except MemoryError as failure:
        return Outcome("memory", detail=str(failure)[:500]), 0.0
    except Exception as failure:
        text = f"{type(failure).__name__}: {failure}"[:500]
        return Outcome(
            "memory" if "bad_alloc" in text or "alloc" in text.lower() else "wrong", detail=text
        ), 0.0
    if complaint:
        for array, original in zip(arrays.inputs, arrays.pristine):
            array[...] = original
        return Outcome("wrong", error=error, detail=complaint), elapsed
    return Outcome("ok", error=error), elapsed


def _measure(kernel: Any, arrays: _Arrays, request: RunRequest) -> Outcome:
    outcome, first = _check(kernel, arrays, request.problem)
    if outcome.status != "ok":
        return outcome
    if first > request.plan.give_up_above:
        return Outcome("slow", (first,), error=outcome.error)
    seconds = sample(_call(kernel, arrays), request.plan.samples, request.plan.sample_seconds)
    return Outcome("ok", seconds, error=outcome.error)


def _free_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 40


def _own_memory() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
