"""How long does a kernel take? Wall time by the monotonic clock, raw samples kept."""

from __future__ import annotations

import time
from collections.abc import Callable


def time_call(call: Callable[[], object], repeats: int = 1) -> float:
    """Return the mean seconds of `repeats` calls in a row."""
    start = time.perf_counter_ns()
    for _ in range(repeats):
        call()
    return (time.perf_counter_ns() - start) * 1e-9 / repeats


def sample(call: Callable[[], object], samples: int, sample_seconds: float) -> tuple[float, ...]:
    """Return `samples` timings of `call`, each the mean over about `sample_seconds`."""
    once = time_call(call)
    repeats = max(1, round(sample_seconds / max(once, 1e-7)))
    return tuple(time_call(call, repeats) for _ in range(samples))


def interleave(
    calls: list[Callable[[], object]], rounds: int, sample_seconds: float
) -> list[tuple[float, ...]]:
    """Time several calls turn by turn, so that drift of the machine falls on all alike."""
    repeats = [max(1, round(sample_seconds / max(time_call(call), 1e-7))) for call in calls]
    timings: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds):
        order = range(len(calls)) if turn % 2 == 0 else reversed(range(len(calls)))
        for index in order:
            calls[index]()  # what the one before left in the caches is not this one's fault
            timings[index].append(time_call(calls[index], repeats[index]))
    return [tuple(samples) for samples in timings]
