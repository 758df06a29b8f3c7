"""Suites: workloads and their weights, from workload texts, TOML files and names.

A suite file names where its shapes come from, if it wishes, and holds workloads, each as a
text or as a table of an op's fields:

    source = "where these shapes come from"

    [[workload]]
    spec = "matmul m=1 n=1000 k=2048 trans_b=true"
    weight = 12  # how much a second saved here counts; 1 if not given

    [[workload]]
    op = "matmul"
    m = 1024
    n = 1024
    k = 1024

The files beside this module are suites that go by their names: the layers of well-known
models, with the counts of a layer as its weight.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tvmops.errors import SuiteError, UnknownSuiteError
from tvmops.workloads import Workload, workload

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOLDER = Path(__file__).parent


def read_specs(specs: Iterable[str]) -> dict[Workload, float]:
    """Return the workloads that `specs` name, with their weights, in order.

    Each is a workload's text, the name of a suite, or the path of one, which ends in
    ".toml". The weights of a workload that is named more than once add up.

    Raises
    ------
    SuiteError, UnknownSuiteError, WorkloadError, WorkloadSyntaxError, UnknownOpError
        One of them can't be read; the message says what is wrong with it.
    """
    weights: dict[Workload, float] = {}
    for spec in specs:
        for work, weight in _read_spec(spec):
            weights[work] = weights.get(work, 0.0) + weight
    return weights


def read_suite(path: str | os.PathLike[str]) -> dict[Workload, float]:
    """Return the workloads of the suite file at `path`, with their weights; see `read_specs`."""
    weights: dict[Workload, float] = {}
    for work, weight in _read_suite(Path(path)):
        weights[work] = weights.get(work, 0.0) + weight
    return weights


def write_suite(path: str | os.PathLike[str], weights: Mapping[str, float], source: str) -> None:
    """Write workloads, given as texts, and their weights as a suite file; one that is there is replaced.

    Raises
    ------
    SuiteError
        It can't be written.
    """
    head = f"source = {json.dumps(source)}\n"  # a TOML string is escaped as JSON's are
    tables = [f'\n[[workload]]\nspec = "{spec}"\nweight = {weight}\n' for spec, weight in weights.items()]
    body = "".join(tables) or "workload = []\n"
    try:
        Path(path).write_text(head + body)
    except OSError as error:
        raise SuiteError(path=path, detail=f"cannot write ({error.strerror})") from None


def suite_names() -> tuple[str, ...]:
    """Return the names of the suites that come with the package."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def _read_spec(spec: str) -> list[tuple[Workload, float]]:
    if spec.endswith(".toml"):
        return _read_suite(Path(spec))
    if spec in suite_names():
        return _read_suite(_FOLDER / f"{spec}.toml")
    if len(spec.split()) == 1:
        raise UnknownSuiteError(name=spec, known=", ".join(suite_names()))
    return [(Workload.parse(spec), 1.0)]


def _read_suite(path: Path) -> list[tuple[Workload, float]]:
    try:
        suite = tomllib.loads(path.read_text())
    except OSError as error:
        raise SuiteError(path=path, detail=error.strerror) from None
    except ValueError as error:  # no TOML, or no UTF-8
        raise SuiteError(path=path, detail=f"is no TOML: {error}") from None
    tables = suite.get("workload")
    if set(suite) - {"source", "workload"} or not isinstance(tables, list):
        found = ", ".join(suite) or "nothing"
        raise SuiteError(
            path=path, detail=f"holds {found}; expected [[workload]] tables and a source at most"
        )
    return [_read_table(path, number, table) for number, table in enumerate(tables, start=1)]


def _read_table(path: Path, number: int, table: Any) -> tuple[Workload, float]:
    kinds = [kind for kind in ("op", "spec") if isinstance(table, dict) and isinstance(table.get(kind), str)]
    if len(kinds) != 1:
        raise SuiteError(path=path, detail=f"workload {number} has no op; expected its name, or a spec")
    weight = table.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
        raise SuiteError(
            path=path, detail=f"workload {number}: weight is {weight!r}; expected a number above 0"
        )
    try:
        if kinds == ["op"]:
            return workload(table.pop("op"), **table), float(weight)
        made = Workload.parse(table.pop("spec"))
        if table:
            raise SuiteError(path=path, detail=f"workload {number} holds {', '.join(table)} beside its spec")
        return made, float(weight)
    except SuiteError:
        raise
    except ValueError as error:
        raise SuiteError(path=path, detail=f"workload {number}: {error}") from None
