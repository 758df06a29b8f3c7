"""A measurer with times of its own making, and runs over it that may be killed at any moment.

The times depend on the config alone, so that a run that was broken off and one that was not
must agree in every record.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tvmops.machine import this_machine
from tvmops.measure.candidate import Candidate, Outcome, Plan
from tvmops.measure.peak import Peak
from tvmops.records import Record
from tvmops.schedules.cpu.gemm import CpuGemm
from tvmops.tuner.session import tune
from tvmops.workloads import Workload, workload

WORK = [
    workload("matmul", m=64, n=96, k=128, dtype="float32"),
    workload("matmul", m=1, n=1024, k=512, dtype="float32"),
]
PEAK = Peak(flops=1e15, bandwidth=1e15)  # no config is at this roofline
TARGET = "x86-64-v3"


class Replaying:
    """Answers after `seconds`, and notes in the file `seen` what it was asked to measure."""

    def __init__(self, seen: Path, seconds: float = 0.0) -> None:
        self._seen, self._seconds = seen, seconds
        self.closed = False
        self.machine = this_machine().fingerprint

    def measure(self, candidates: Sequence[Candidate], plan: Plan) -> Iterator[Outcome]:
        for candidate in candidates:
            time.sleep(self._seconds)
            self._note("search", [candidate])
            yield outcome_of(candidate)

    def compare(self, candidates: Sequence[Candidate], plan: Plan) -> list[Outcome]:
        time.sleep(self._seconds)
        self._note("final", candidates)
        return [outcome_of(candidate, plan.samples) for candidate in candidates]

    def describe(self, candidates: Sequence[Candidate]) -> list[dict[str, float] | None]:
        return [CpuGemm().code_features(c.workload, c.target, c.config) for c in candidates]

    def close(self) -> None:
        self.closed = True

    def _note(self, stage: str, candidates: Sequence[Candidate]) -> None:
        line = json.dumps([stage, [f"{c.workload} {c.config.key}" for c in candidates]])
        with self._seen.open("a") as seen:  # one write: a kill leaves the whole line or none of it
            seen.write(line + "\n")


def outcome_of(candidate: Candidate, samples: int = 5) -> Outcome:
    """Return what becomes of `candidate`: one in eight fails."""
    digest = hashlib.sha256(f"{candidate.workload} {candidate.config.key}".encode()).digest()
    if digest[0] < 32:
        return Outcome("crash", detail="killed by SIGSEGV")
    base = 1e-3 * (1 + int.from_bytes(digest[1:5], "big") / 2**32)
    noise = [1 + 1e-3 * (digest[5 + turn % 20] / 255) for turn in range(samples)]
    return Outcome("ok", tuple(base * factor for factor in noise), error=1e-7)


def run(
    log: Path, seen: Path, seed: int, trials: int, strategy: str, seconds: float
) -> dict[Workload, Record]:
    return tune(
        WORK, TARGET, log, trials, strategy=strategy, seed=seed, measurer=Replaying(seen, seconds), peak=PEAK
    )


def key(record: Record) -> str:
    return f"{record.workload} {record.config_key}"


def seen_by(path: Path) -> list[tuple[str, list[str]]]:
    """Return the stage and the configs of each measurement."""
    if not path.exists():
        return []
    return [(stage, keys) for stage, keys in map(json.loads, path.read_text().splitlines())]
