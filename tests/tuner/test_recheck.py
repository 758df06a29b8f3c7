"""Do logged records still hold? Told with a measurer that answers as it is told to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

import tvmops
from tests.cli.conftest import record
from tvmops.machine import this_machine
from tvmops.measure.candidate import Candidate, Outcome, Plan
from tvmops.measure.toolchain import toolchain
from tvmops.records import Record, best_records
from tvmops.schedules import templates_for
from tvmops.tuner import recheck as module
from tvmops.tuner.recheck import Verdict, recheck
from tvmops.workloads import workload

WORK = workload("matmul", m=8, n=8, k=8)
TARGET = tvmops.target("native")
TEMPLATE = templates_for(WORK, TARGET)[0]
GOOD = record(
    str(WORK),
    target=TARGET.name,
    machine=this_machine().fingerprint,
    template=TEMPLATE.label,
    config=TEMPLATE.default(WORK, TARGET).as_dict(),
    toolchain=toolchain(),
)


class Answers:
    """A measurer to which every candidate is `outcome`."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome

    def measure(self, candidates: Sequence[Candidate], plan: Plan) -> Iterator[Outcome]:
        yield from [self.outcome] * len(candidates)

    def close(self) -> None:
        return


@pytest.fixture
def verdict(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Recheck one record whose candidate comes out as `outcome`."""

    def of(logged: Record, outcome: Outcome) -> Verdict:
        monkeypatch.setattr(module, "LocalMeasurer", lambda target, builders: Answers(outcome))
        (only,) = recheck([logged], TARGET, tolerance=0.25)
        return only

    return of


@pytest.mark.parametrize(
    ("logged", "outcome", "status"),
    [
        (GOOD, Outcome("ok", (1.2e-3,)), "holds"),
        (GOOD, Outcome("ok", (1.3e-3,)), "slower"),
        (GOOD, Outcome("wrong", detail="differs"), "wrong"),
        (dataclasses.replace(GOOD, template="cpu.gemm@0"), Outcome("ok", (1e-3,)), "stale"),
        (dataclasses.replace(GOOD, config={"mr": 99}), Outcome("ok", (1e-3,)), "stale"),
        (dataclasses.replace(GOOD, toolchain={"tvm": "0.1"}), Outcome("ok", (1e-3,)), "stale"),
        (dataclasses.replace(GOOD, machine="another"), Outcome("ok", (9.0,)), "elsewhere"),
        (dataclasses.replace(GOOD, machine="another"), Outcome("crash"), "crash"),
    ],
)
def test_verdicts(logged: Record, outcome: Outcome, status: str, verdict: Any) -> None:
    assert verdict(logged, outcome).status == status


def test_a_stale_record_says_why(verdict: Any) -> None:
    old = dataclasses.replace(GOOD, toolchain={**toolchain(), "llvm": "3"})
    assert verdict(old, Outcome("ok", (2e-3,))).detail == f"llvm was 3, is {toolchain()['llvm']}"
    assert verdict(old, Outcome("ok", (2e-3,))).slowdown == 2.0


def test_marking_a_failure_takes_the_record_out_of_the_running(verdict: Any) -> None:
    second = dataclasses.replace(GOOD, config={**GOOD.config, "ku": 1}, seconds=(5e-3,))
    assert best_records([GOOD, second])[str(WORK)] == GOOD
    failed = verdict(dataclasses.replace(GOOD, stage="final", rank=0), Outcome("wrong")).fresh
    assert failed.rank is None
    assert best_records([GOOD, second, failed])[str(WORK)] == second
    mended = verdict(GOOD, Outcome("ok", (2e-3,))).fresh
    assert best_records([GOOD, second, failed, mended])[str(WORK)] == GOOD
