"""What a bundle holds, and what running it writes: JSON, no compiler.

bundle.json      the candidates, and what they were made with
kernels/         their shared libraries; candidates with the same code share one
run.py           runs them
tvmops/, *.so    what `run.py` needs of this package and of TVM's runtime
results.jsonl    what became of them, a line each, written as it goes
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmops.errors import BundleError

SCHEMA = 1
FILE = "bundle.json"
RESULTS = "results.jsonl"
COPY = "copy"  # a peer that only moves the bytes: a bound, not a competitor


@dataclass(frozen=True)
class Entry:
    """One candidate."""

    workload: str
    template: str  # name and version
    config: Mapping[str, Any]
    library: str  # its file in the bundle
    strategy: str
    default: bool  # whether it is the template's default config

    @property
    def key(self) -> str:
        """What tells it from the other candidates of its workload."""
        return f"{self.template} {self.config_key}"

    @property
    def config_key(self) -> str:
        return json.dumps(dict(self.config), sort_keys=True)


@dataclass(frozen=True)
class Bundle:
    target: str
    kind: str  # of the target: "cuda" or "cpu"
    needs: Sequence[str]  # of the machine that runs it
    cache_bytes: int  # what must be rotated through, lest a cache holds the operands
    seed: int
    toolchain: Mapping[str, str]
    entries: Sequence[Entry]
    schema: int = SCHEMA

    def workloads(self) -> dict[str, list[Entry]]:
        """Return the candidates by their workload."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.workload, []).append(entry)
        return found

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Bundle:
        """Read the bundle at `folder`.

        Raises
        ------
        BundleError
            There is none, or it is one of another schema.
        """
        try:
            table = json.loads((folder / FILE).read_text())
            if table["schema"] != SCHEMA:
                raise BundleError(path=folder, detail=f"is of schema {table['schema']}; expected {SCHEMA}")
            return cls(**{**table, "entries": tuple(Entry(**entry) for entry in table["entries"])})
        except OSError as error:
            raise BundleError(path=folder, detail=f"can't be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError):
            raise BundleError(path=folder, detail=f"has no whole {FILE}") from None


@dataclass(frozen=True)
class Result:
    """What became of a candidate or of a peer; `rank`-less ones of a comparison have a `turn`."""

    workload: str
    key: str  # of the entry, or the name of a peer
    stage: (
        str  # "search"; "final": turn by turn with others; "sustained": the best two, for seconds each turn
    )
    status: str
    seconds: Sequence[float] = ()  # of a call, a number a burst; of a sustained one, a number a turn
    megahertz: Sequence[float] = ()  # at which the device ran in each turn, where it tells
    error: float | None = None
    detail: str = ""
    machine: str = ""
    when: str = ""


_FIELDS = {field.name for field in dataclasses.fields(Result)}  # earlier bundles had others, too


def read_results(folder: Path) -> list[Result]:
    """Read what was measured so far; a line that was cut short is left out."""
    path = folder / RESULTS
    results = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            table = json.loads(line)
        except ValueError:
            continue
        if "key" in table:
            results.append(Result(**{name: value for name, value in table.items() if name in _FIELDS}))
    return results


def append_result(folder: Path, result: Result) -> None:
    """Write `result` down, on the disk before this returns."""
    with (folder / RESULTS).open("a") as file:
        file.write(json.dumps(dataclasses.asdict(result)) + "\n")
        file.flush()
        os.fsync(file.fileno())
