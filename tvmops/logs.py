"""What one does with tuning logs besides tuning: merge them, compare them, make them small.

Lines are kept as they stand, so that fields of a newer schema survive.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tvmops.errors import ArgumentError, LogWriteError
from tvmops.records import Record, best_records, read_lines, read_log

Place = tuple[str, str]  # a workload and a target


def best(records: Iterable[Record]) -> dict[Place, Record]:
    """Return the best record of each workload on each target, in the order of the log."""
    by_target: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_target[record.target].append(record)
    return {
        (workload, target): record
        for target, own in by_target.items()
        for workload, record in best_records(own).items()
    }


def merge(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return the lines of several logs in order, each once."""
    return list(dict.fromkeys(line for path in paths for line, _ in read_lines(path)))


@dataclass(frozen=True)
class Difference:
    """The best of two logs for one workload on one target; None where a log has none."""

    workload: str
    target: str
    first: Record | None
    second: Record | None

    @property
    def speedup(self) -> float | None:
        """How many times faster the second one is; None where one is measured, the other modelled."""
        if not self.first or not self.second or self.first.kind != self.second.kind:
            return None
        return self.first.time / self.second.time


def diff(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> list[Difference]:
    """Compare two logs workload by workload."""
    ours, theirs = best(read_log(first)), best(read_log(second))
    return [Difference(*place, ours.get(place), theirs.get(place)) for place in {**ours, **theirs}]


def prune(path: str | os.PathLike[str], keep: int) -> list[str]:
    """Return the lines that are worth shipping.

    Kept are all final comparisons and verifications, and of each search (one workload,
    target, machine and template version) its `keep` fastest trials. Slower trials and
    failures go: tuning on a pruned log measures those again that it comes to.
    """
    if keep < 0:
        raise ArgumentError(argument="keep", value=keep, expected="an integer of at least 0")
    lines = read_lines(path)
    searches: dict[tuple[str, ...], list[tuple[float, int]]] = defaultdict(list)
    for number, (_, record) in enumerate(lines):
        if record.stage == "search" and record.ran:
            search = record.subject, record.target, record.machine, record.template
            searches[search].append((record.fastest, number))
    fastest = {number for trials in searches.values() for _, number in sorted(trials)[:keep]}
    return [
        line for number, (line, record) in enumerate(lines) if record.stage != "search" or number in fastest
    ]


def write_lines(path: str | os.PathLike[str], lines: Iterable[str]) -> None:
    """Write a new log; a file that is there already is never replaced."""
    path = Path(path)
    try:
        with path.open("x") as file:
            try:
                file.writelines(f"{line}\n" for line in lines)
                file.flush()
            except OSError:
                path.unlink()
                raise
    except FileExistsError:
        raise ArgumentError(
            argument="output", value=str(path), expected="a file that does not exist yet"
        ) from None
    except OSError as error:
        raise LogWriteError(path=path, detail=error.strerror, kept=0) from None
