"""What a tuning run refuses before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvmops.errors import ArgumentError
from tvmops.machine import this_machine
from tvmops.targets import Target
from tvmops.workloads import Workload


def check_arguments(
    work: Sequence[Workload],
    trials: int,
    seconds: float | None,
    weights: Mapping[Workload, float],
) -> None:
    """Raise ArgumentError where an argument of `tune` does not fit."""
    if not work:
        raise ArgumentError(argument="work", value=[], expected="at least one workload")
    for workload in work:
        if workload.is_generic:
            raise ArgumentError(argument="work", value=str(workload), expected="sizes that are all known")
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
        raise ArgumentError(argument="trials", value=trials, expected="an integer of at least 1")
    if seconds is not None and not seconds > 0:
        raise ArgumentError(argument="seconds", value=seconds, expected="a number above 0, or none")
    for workload, weight in weights.items():
        if workload not in work or not weight > 0:
            expected = "a number above 0 for workloads of `work`"
            raise ArgumentError(argument="weights", value=f"{workload}: {weight}", expected=expected)


def check_runs_here(target: Target) -> None:
    """Raise ArgumentError unless this machine can run code built for `target`."""
    missing = target.missing(this_machine())
    if missing:
        needs = (
            f"a target that this machine can run; it lacks {', '.join(missing)}; "
            "`tvmops bundle` tunes for other machines"
        )
        raise ArgumentError(argument="target", value=target.name, expected=needs)
