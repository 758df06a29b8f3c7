"""How long does a kernel take? Wall time by the monotonic clock, raw samples kept."""

from __future__ import annotations

import time
from collections.abc import Callable

_FEW = 2  # samples tell that a kernel is out of the running


def time_call(call: Callable[[], object], repeats: int = 1) -> float:
    """Return the mean seconds of `repeats` calls in a row."""
    start = time.perf_counter_ns()
    for _ in range(repeats):
        call()
    return (time.perf_counter_ns() - start) * 1e-9 / repeats


def sample(
    call: Callable[[], object],
    samples: int,
    sample_seconds: float,
    promising_below: float = float("inf"),
) -> tuple[float, ...]:
    """Return timings of `call`, each the mean over about `sample_seconds`.

    There are `samples` of them; fewer if none of the first is below `promising_below`.
    """
    once = time_call(call)
    repeats = _repeats(once, sample_seconds)
    timings = [once] if repeats == 1 else []
    while len(timings) < samples:
        if len(timings) >= _FEW and min(timings) >= promising_below:
            break
        timings.append(time_call(call, repeats))
    return tuple(timings)


def interleave(
    calls: list[Callable[[], object]], rounds: int, sample_seconds: float
) -> list[tuple[float, ...]]:
    """Time several calls turn by turn, so that drift of the machine falls on all alike."""
    repeats = [_repeats(time_call(call), sample_seconds) for call in calls]
    timings: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds):
        order = range(len(calls)) if turn % 2 == 0 else reversed(range(len(calls)))
        for index in order:
            calls[index]()  # what the one before left in the caches is not this one's fault
            timings[index].append(time_call(calls[index], repeats[index]))
    return [tuple(samples) for samples in timings]


def _repeats(once: float, sample_seconds: float) -> int:
    return max(1, round(sample_seconds / max(once, 1e-7)))
