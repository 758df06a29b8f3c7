"""Timing: how often a kernel is called, on a clock of our own."""

from __future__ import annotations

import pytest

from tvmops.measure import timing
from tvmops.measure.timing import interleave, sample, time_call


class Kernel:
    """Takes `seconds` a call by the clock that `timing` reads."""

    now = 0.0

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        Kernel.now += self.seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: round(Kernel.now * 1e9))


def test_a_call_is_timed_by_the_mean_of_its_repeats() -> None:
    assert time_call(Kernel(0.25), repeats=4) == pytest.approx(0.25)


def test_a_short_call_is_repeated_until_a_sample_is_long_enough() -> None:
    kernel = Kernel(1e-5)
    assert sample(kernel, samples=3, sample_seconds=0.002) == pytest.approx((1e-5,) * 3)
    assert kernel.calls == 1 + 3 * 200


def test_a_long_call_is_not_made_in_vain() -> None:
    kernel = Kernel(0.1)
    assert sample(kernel, samples=3, sample_seconds=0.002) == pytest.approx((0.1,) * 3)
    assert kernel.calls == 3


@pytest.mark.parametrize(("seconds", "taken"), [(0.1, 2), (1e-4, 2), (0.01, 5)])
def test_a_kernel_that_is_out_of_the_running_gets_two_samples(seconds: float, taken: int) -> None:
    bound = 1.1 * seconds if taken == 5 else 0.9 * seconds
    assert len(sample(Kernel(seconds), 5, 0.002, promising_below=bound)) == taken


def test_one_good_sample_of_two_keeps_a_kernel_in_the_running() -> None:
    kernel = Kernel(0.2)

    def call() -> None:
        kernel()
        kernel.seconds = 0.1  # the machine stalled in the first call

    assert len(sample(call, 5, 0.002, promising_below=0.15)) == 5


def test_kernels_are_timed_turn_by_turn() -> None:
    kernels = [Kernel(0.1), Kernel(0.2), Kernel(0.001)]
    timings = interleave([*kernels], rounds=4, sample_seconds=0.002)
    assert timings == [pytest.approx((k.seconds,) * 4) for k in kernels]
    assert [kernel.calls for kernel in kernels] == [1 + 4 * 2, 1 + 4 * 2, 1 + 4 * 3]


def test_drift_of_the_machine_falls_on_all_alike() -> None:
    kernels = [Kernel(0.1), Kernel(0.1)]

    def drifting(index: int) -> None:
        kernels[index]()
        for kernel in kernels:
            kernel.seconds *= 1.01

    first, second = interleave([lambda: drifting(0), lambda: drifting(1)], rounds=10, sample_seconds=0.01)
    ratios = [b / a for a, b in zip(first, second)]
    assert max(ratios) > 1 > min(ratios)  # each is first in turn
