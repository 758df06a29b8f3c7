"""`Bench`: what a session measures with, and the limits of the machine that it measures on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass

from tvmops.errors import ArgumentError
from tvmops.measure.base import Measurer
from tvmops.measure.fleet.measurer import FleetMeasurer
from tvmops.measure.fleet.wire import read_token
from tvmops.measure.local import LocalMeasurer
from tvmops.measure.model.measurer import ModelMeasurer
from tvmops.measure.peak import Peak, machine_peak
from tvmops.targets import Target
from tvmops.workloads import Workload

MEASURES = ("local", "model", "fleet")


@dataclass(frozen=True)
class Bench:
    """A measurer, the target that its candidates are built for, and that machine's limits."""

    measurer: Measurer
    target: Target
    peak: Peak

    @classmethod
    def open(
        cls,
        stack: ExitStack,
        measure: str,
        target: Target,
        peak: Peak | None,
        tracker: str,
        token_file: str | os.PathLike[str] | None,
    ) -> Bench:
        """Start what `measure` names, as `tune` says, until `stack` closes; measure `peak` if it is None."""
        if measure == "model":
            model = stack.enter_context(closing(ModelMeasurer(target)))
            return cls(model, model.target, peak or model.peak)
        if measure == "fleet":
            fleet = stack.enter_context(closing(FleetMeasurer(target, tracker, read_token(token_file))))
            return cls(fleet, fleet.target, peak or machine_peak(fleet.target, fleet))
        local = stack.enter_context(closing(LocalMeasurer(target)))
        return cls(local, target, peak or machine_peak(target, local))


def check_measure(measure: str, work: Iterable[Workload]) -> None:
    """Raise ArgumentError where `measure` names nothing, or nothing that can measure `work`."""
    if measure not in MEASURES:
        raise ArgumentError(argument="measure", value=measure, expected=f"one of {', '.join(MEASURES)}")
    if measure == "model" and any(workload.ranges for workload in work):
        raise ArgumentError(argument="measure", value=measure, expected="local for ranges of sizes")
