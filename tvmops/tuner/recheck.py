"""Do logged records still hold? Rebuild each workload's best ones here and time them again."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

from tvmops.errors import ArgumentError, TvmopsError
from tvmops.machine import this_machine
from tvmops.measure.candidate import Candidate, Plan
from tvmops.measure.local import LocalMeasurer
from tvmops.measure.toolchain import toolchain
from tvmops.records import Record, best_records
from tvmops.schedules import templates_for
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.tuner.checks import check_runs_here
from tvmops.workloads import Workload

_SAMPLES = 15
_COMPILER = ("tvm", "llvm")  # versions that decide what code a config becomes


@dataclass(frozen=True)
class Verdict:
    """What a record says, and what this machine says of it today."""

    record: Record
    status: str  # "holds", "slower", "stale", "elsewhere", or how it failed: "wrong", "crash", ...
    detail: str = ""
    fresh: Record | None = None  # None where it could not be rebuilt

    @property
    def slowdown(self) -> float | None:
        """How many times longer it takes now."""
        return self.fresh.time / self.record.time if self.fresh and self.fresh.ran else None


def recheck(records: Iterable[Record], target: Target, tolerance: float) -> Iterator[Verdict]:
    """Verify and time again the best record of each workload and template version.

    A record holds if its kernel is right and takes at most `1 + tolerance` times what is
    logged. One of another template version or compiler is "stale"; one of another machine
    can be right here, but its time is "elsewhere".

    Raises
    ------
    ArgumentError
        `target` can't run here, or `tolerance` is negative.
    """
    if not tolerance >= 0:
        raise ArgumentError(argument="tolerance", value=tolerance, expected="a number of at least 0")
    check_runs_here(target)
    by_template: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_template[record.template].append(record)
    measurer = LocalMeasurer(target, builders=1)
    try:
        for own in by_template.values():
            for record in best_records(own, (target.name, *target.fallbacks)).values():
                yield _recheck(record, target, tolerance, measurer)
    finally:
        measurer.close()


def _recheck(record: Record, target: Target, tolerance: float, measurer: LocalMeasurer) -> Verdict:
    try:
        candidate = _candidate(record, target)
    except TvmopsError as error:
        return Verdict(record, "stale", str(error))
    if candidate is None:
        return Verdict(record, "stale", "the template has changed since")
    plan = Plan(samples=_SAMPLES, timeout=10 + 200 * record.time)
    outcome = next(iter(measurer.measure([candidate], plan)))
    fresh = dataclasses.replace(
        record,
        machine=this_machine().fingerprint,
        stage="verify",
        status=outcome.status,
        seconds=outcome.seconds,
        kind=outcome.kind,
        cycles=outcome.cycles,
        counts=outcome.counts,
        cold_seconds=outcome.cold_seconds,
        rank=None,
        error=outcome.error,
        detail=outcome.detail,
        toolchain=toolchain(),
        clock=outcome.clock,
        when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    return Verdict(record, *_judge(record, fresh, tolerance), fresh)


def _candidate(record: Record, target: Target) -> Candidate | None:
    """Return what to build, or None where no template of today has the record's version."""
    workload = Workload.parse(record.workload)
    shape = Workload.parse(record.shape) if record.shape else None
    for template in templates_for(shape or workload, target):
        if template.label == record.template:
            if shape is None:
                config = template.space(workload, target).config(record.config)
            else:  # it may come from the space of another shape of a range
                config = Config(tuple(record.config.items()))
            return Candidate(workload, target, template.path, config, shape)
    return None


def _judge(record: Record, fresh: Record, tolerance: float) -> tuple[str, str]:
    """Return the status of a verdict and its detail."""
    if not fresh.ran:
        return fresh.status, fresh.detail
    for part in _COMPILER:
        then, now = record.toolchain.get(part, "unknown"), fresh.toolchain[part]
        if then != now:
            return "stale", f"{part} was {then}, is {now}"
    if record.machine != fresh.machine:
        return "elsewhere", record.machine
    return ("slower" if fresh.time > (1 + tolerance) * record.time else "holds"), ""
