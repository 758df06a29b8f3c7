"""Records that ship with the package belong to templates as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

import tvmops.tuning_logs
from tvmops.records import read_log
from tvmops.schedules import templates_for
from tvmops.space import Space
from tvmops.targets import target
from tvmops.workloads import Workload

FOLDER = Path(next(iter(tvmops.tuning_logs.__path__)))
LOGS = sorted(path for path in FOLDER.glob("*/*.jsonl"))


@pytest.mark.parametrize("path", LOGS, ids=[f"{path.parent.name} {path.stem}" for path in LOGS])
def test_shipped_records_name_configs_that_can_be_built(path: Path) -> None:
    machine = target(path.parent.name)
    spaces: dict[tuple[str, str], Space] = {}
    for record in read_log(path):
        work = Workload.parse(record.workload)
        assert work.op == path.stem and record.target == machine.name and record.ran
        key = record.workload, record.template
        if key not in spaces:
            (template,) = (t for t in templates_for(work, machine) if t.label == record.template)
            spaces[key] = template.space(work, machine)
        spaces[key].config(record.config)  # raises where it is not legal
