"""Suites: workloads and their weights, from workload texts and TOML files.

A suite file holds tables such as

    [[workload]]
    op = "matmul"
    m = 1024
    n = 1024
    k = 1024
    weight = 12  # how much a second saved here counts; 1 if not given
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tvmops.errors import SuiteError
from tvmops.workloads import Workload, workload

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_specs(specs: Iterable[str]) -> dict[Workload, float]:
    """Return the workloads that `specs` name, with their weights, in order.

    Each is a workload's text or the path of a suite, which ends in ".toml". The weights of
    a workload that is named more than once add up.

    Raises
    ------
    SuiteError, WorkloadError, WorkloadSyntaxError, UnknownOpError
        One of them can't be read; the message says what is wrong with it.
    """
    weights: dict[Workload, float] = {}
    for spec in specs:
        read = _read_suite(Path(spec)) if spec.endswith(".toml") else [(Workload.parse(spec), 1.0)]
        for work, weight in read:
            weights[work] = weights.get(work, 0.0) + weight
    return weights


def _read_suite(path: Path) -> list[tuple[Workload, float]]:
    try:
        suite = tomllib.loads(path.read_text())
    except OSError as error:
        raise SuiteError(path=path, detail=error.strerror) from None
    except ValueError as error:  # no TOML, or no UTF-8
        raise SuiteError(path=path, detail=f"is no TOML: {error}") from None
    tables = suite.get("workload")
    if len(suite) != 1 or not isinstance(tables, list):
        found = ", ".join(suite) or "nothing"
        raise SuiteError(path=path, detail=f"holds {found}; expected [[workload]] tables and nothing else")
    return [_read_table(path, number, table) for number, table in enumerate(tables, start=1)]


def _read_table(path: Path, number: int, table: Any) -> tuple[Workload, float]:
    if not isinstance(table, dict) or not isinstance(table.get("op"), str):
        raise SuiteError(path=path, detail=f"workload {number} has no op; expected its name")
    weight = table.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
        raise SuiteError(
            path=path, detail=f"workload {number}: weight is {weight!r}; expected a number above 0"
        )
    try:
        return workload(table.pop("op"), **table), float(weight)
    except ValueError as error:
        raise SuiteError(path=path, detail=f"workload {number}: {error}") from None
