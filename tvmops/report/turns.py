"""Time several ways to do one thing turn by turn, each undisturbed by the one before."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvmops.measure.timing import time_call

_PAUSE_SECONDS = 0.06  # thread pools of BLAS libraries and of TVM spin that long for more work
# After a pause a system may run all threads of a pool on one core, and take some 20 ms to spread them.
_WARM_SECONDS = 0.05
_TURN_SECONDS = 0.03
_LONG_SECONDS, _FAR, _FEW_TURNS = 0.1, 20, 3


@dataclass(frozen=True)
class Timing:
    """Seconds a call, one sample a round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Half the range of the middle half of the samples, as a share of the median."""
        low, _, high = statistics.quantiles(self.samples, n=4)
        return (high - low) / 2 / self.median


def take_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time each of `calls` once a round, after a pause and warm calls; rounds rotate the order.

    One that takes long, and 20 times as long as the fastest, has no more than three turns.
    """
    names = list(calls)
    once = {name: _seconds(calls[name]) for name in names}
    repeats = {name: max(1, round(_TURN_SECONDS / max(once[name], 1e-7))) for name in names}
    limit = max(_LONG_SECONDS, _FAR * min(once.values()))
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            if turn >= _FEW_TURNS and once[name] > limit:
                continue
            _warm(calls[name])
            samples[name].append(time_call(calls[name], repeats[name]))
    return {name: Timing(tuple(own)) for name, own in samples.items()}


def _seconds(call: Callable[[], object]) -> float:
    _warm(call)
    return time_call(call)


def _warm(call: Callable[[], object]) -> None:
    """Wait until nothing else runs, then call until the caches are filled and the threads spread."""
    time.sleep(_PAUSE_SECONDS)
    end = time.perf_counter() + _WARM_SECONDS
    call()
    while time.perf_counter() < end:
        call()
