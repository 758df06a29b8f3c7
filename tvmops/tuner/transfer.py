"""What earlier searches teach about a new one: same template, other shapes, a related target."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tvmops.records import Record
from tvmops.schedules import Template
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.tuner.cost_model import Experience
from tvmops.workloads import Workload

_ENOUGH = 8  # results of a workload, fewer say little about what is fast there


def experiences(
    records: Iterable[Record], template: Template, target: Target, excluded: Collection[Workload]
) -> list[Experience]:
    """Return what `records` say of `template`, a workload at a time.

    Records of `target` count, and of those whose code it can run. `excluded` are the
    workloads of the run at hand: what a run learns while it goes on must not depend on
    where it was broken off. What symbolic kernels did says little of others.
    """
    related = {target.name, *target.fallbacks}
    groups: dict[tuple[str, str], dict[str, Record]] = {}
    names = {str(workload) for workload in excluded}
    for record in records:
        if record.shape or record.workload in names:
            continue
        if record.template == template.label and record.target in related:
            groups.setdefault((record.workload, record.machine), {})[record.config_key] = record
    return [
        _experience(Workload.parse(workload), template, target, list(group.values()))
        for (workload, _), group in sorted(groups.items())
        if sum(record.ran for record in group.values()) >= _ENOUGH
    ]


def _experience(workload: Workload, template: Template, target: Target, records: list[Record]) -> Experience:
    configs = [Config(tuple(record.config.items())) for record in records]
    features = [template.features(workload, target, config) for config in configs]
    return Experience(features, [record.fastest for record in records])
