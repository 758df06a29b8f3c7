"""Sessions: budgets, winners, and logs that can't be written."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.processes import children
from tests.tuner.replaying import PEAK, TARGET, WORK, Replaying, outcome_of, seen_by
from tvmops.errors import ArgumentError, LogWriteError, UnknownStrategyError, UnknownTargetError
from tvmops.measure import peak as peak_module
from tvmops.measure.candidate import Candidate, Outcome, Plan
from tvmops.measure.peak import Peak, forget_peak, machine_peak
from tvmops.records import Record, best_records, read_log
from tvmops.schedules import templates_for
from tvmops.targets import target
from tvmops.tuner import budget
from tvmops.tuner.progress import JobStatus
from tvmops.tuner.session import tune
from tvmops.tuner.winner import pick_winner

ROOT = Path(__file__).parents[2]


DEFAULT = ("t@1", '{"name": "default"}')


def final(name: str, *seconds: float, **changes: object) -> Record:
    plain = Record(
        workload=str(WORK[0]),
        target=TARGET,
        machine="here",
        template="t@1",
        config={"name": name},
        status="ok",
        stage="final",
        seconds=seconds,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def winner_name(*records: Record) -> str:
    winners = [pick_winner(order, default=DEFAULT) for order in (records, records[::-1])]
    names = {str(winner.config["name"]) for winner in winners if winner}
    assert len(names) == 1, "the order of records decides"
    return names.pop()


QUIET = [1.00, 1.01, 0.99, 1.00, 1.02, 1.00, 0.98, 1.00]
DRIFT = [1.0, 1.3, 1.7, 2.0, 1.8, 1.5, 1.2, 1.1]  # of the machine; both feel it


def test_a_clearly_faster_config_wins_whatever_its_name() -> None:
    assert winner_name(final("b", *QUIET), final("a", *[1.05 * t for t in QUIET])) == "b"
    assert winner_name(final("b", *DRIFT), final("a", *[1.03 * t for t in DRIFT])) == "b"


def test_configs_within_a_hundredth_are_tied_and_the_first_by_name_wins() -> None:
    assert winner_name(final("b", *QUIET), final("a", *[1.008 * t for t in QUIET])) == "a"
    assert winner_name(final("b", *DRIFT), final("a", *[1.008 * t for t in DRIFT])) == "a"


def test_a_config_that_is_faster_every_third_turn_is_tied() -> None:
    slower = [t * (0.98 if turn % 3 == 0 else 1.04) for turn, t in enumerate(QUIET)]
    assert winner_name(final("b", *QUIET), final("a", *slower)) == "a"


def test_a_winner_must_beat_the_default() -> None:
    default = final("default", *QUIET)
    assert winner_name(default, final("a", *[0.992 * t for t in QUIET])) == "default"
    assert winner_name(default, final("a", *[0.9 * t for t in QUIET])) == "a"


def test_one_that_is_much_slower_by_the_median_is_not_tied() -> None:
    slower = [t * (0.98 if turn % 3 == 0 else 1.08) for turn, t in enumerate(QUIET)]
    assert winner_name(final("b", *QUIET), final("a", *slower)) == "b"


def test_a_stall_in_a_few_turns_does_not_decide() -> None:
    stalled = [t * (3.0 if turn in (1, 5) else 0.9) for turn, t in enumerate(QUIET)]
    assert winner_name(final("a", *QUIET), final("b", *stalled)) == "b"


def test_what_did_not_run_is_no_winner() -> None:
    crashed = final("a", status="crash")
    assert winner_name(crashed, final("b", *QUIET)) == "b"
    assert pick_winner([crashed], DEFAULT) is None
    assert pick_winner([], DEFAULT) is None


class Watching:
    """Notes every state that the jobs pass through."""

    def __init__(self) -> None:
        self.states: list[str] = []

    def update(self, jobs: list[JobStatus], running: str, elapsed: float, budget: float | None) -> None:
        self.states += [job.state for job in jobs if job.state not in self.states[-1:]]


def test_no_more_trials_than_asked_for_and_the_default_among_them(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    measurer = Replaying(seen)
    winners = tune(WORK, TARGET, tmp_path / "log", trials=11, measurer=measurer, peak=PEAK)
    described = target(TARGET)
    for work in WORK:
        default = templates_for(work, described)[0].default(work, described)
        searched = [keys[0] for stage, keys in seen_by(seen) if stage == "search" and str(work) in keys[0]]
        assert len(searched) == len(set(searched)) == 11
        assert searched[0] == f"{work} {default.key}"
        [compared] = [keys for stage, keys in seen_by(seen) if stage == "final" and str(work) in keys[0]]
        fit = outcome_of(Candidate(work, described, "", default)).status == "ok"
        assert (searched[0] in compared) == fit
        assert str(winners[work].workload) == str(work)
    assert not measurer.closed


def test_what_tune_returns_is_the_best_of_the_log(tmp_path: Path) -> None:
    winners = tune(
        WORK, TARGET, tmp_path / "log", trials=30, measurer=Replaying(tmp_path / "seen"), peak=PEAK
    )
    assert best_records(read_log(tmp_path / "log")) == {str(work): record for work, record in winners.items()}


def test_a_spent_budget_still_measures_the_defaults(tmp_path: Path) -> None:
    watching = Watching()
    measurer = Replaying(tmp_path / "seen")
    tune(WORK, TARGET, tmp_path / "log", 64, 1e-9, measurer=measurer, peak=PEAK, observer=watching)
    searched = [record.workload for record in read_log(tmp_path / "log") if record.stage == "search"]
    assert searched == [str(work) for work in WORK]
    assert "out of time" in watching.states


def test_a_search_ends_at_the_roofline(tmp_path: Path) -> None:
    watching = Watching()
    slow = Peak(flops=1e6, bandwidth=1e6)  # all candidates are faster
    measurer = Replaying(tmp_path / "seen")
    tune(WORK[0], TARGET, tmp_path / "log", 64, measurer=measurer, peak=slow, observer=watching)
    assert "at the machine's roofline" in watching.states
    assert sum(stage == "search" for stage, _ in seen_by(tmp_path / "seen")) <= 8


def test_a_search_that_finds_nothing_more_has_converged(tmp_path: Path) -> None:
    watching = Watching()
    measurer = Replaying(tmp_path / "seen")
    tune(
        WORK[0], TARGET, tmp_path / "log", 9999, strategy="random",
        measurer=measurer, peak=PEAK, observer=watching,
    )  # fmt: skip
    assert "converged" in watching.states


class AllFail(Replaying):
    """No candidate runs, in the search or in the comparison."""

    def measure(self, candidates, plan):  # type: ignore[no-untyped-def]
        for _ in candidates:
            yield Outcome("crash", detail="killed by SIGSEGV")


def test_a_workload_of_which_nothing_runs_has_no_winner(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tune(WORK[0], TARGET, log, 8, measurer=AllFail(tmp_path / "seen"), peak=PEAK) == {}
    assert {record.status for record in read_log(log)} == {"crash"}


BAD = [
    ({"work": []}, ArgumentError),
    ({"trials": 0}, ArgumentError),
    ({"trials": True}, ArgumentError),
    ({"seconds": -1}, ArgumentError),
    ({"strategy": "magic"}, UnknownStrategyError),
    ({"target": "pdp11"}, UnknownTargetError),
]


@pytest.mark.parametrize(("wrong", "error"), BAD, ids=lambda value: str(value)[:30])
def test_a_bad_argument_is_refused_before_anything_starts(
    tmp_path: Path, wrong: dict[str, object], error: type[Exception]
) -> None:
    before = children()
    arguments = {"work": WORK, "target": TARGET, "log": tmp_path / "log", "trials": 8, **wrong}
    with pytest.raises(error):
        tune(**arguments)  # type: ignore[arg-type]
    assert children() == before
    assert not (tmp_path / "log").exists()


CHILD = """
import os, resource, sys
from pathlib import Path
from tests.processes import children
from tests.tuner.replaying import PEAK, WORK
from tvmops.errors import LogWriteError
from tvmops.records import read_log
from tvmops.tuner.session import tune

def attempt(log):
    try:
        tune(WORK[0], "native", log, trials=8, strategy="random", peak=PEAK)
    except LogWriteError as error:
        print(error.fields["kept"], len(children()), error)
"""


def in_child(code: str, log: Path) -> str:
    """Run `code` in a process of its own; return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHILD + code, str(log)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_is_one_error_and_what_was_written_stays(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    room_for_three = """
log = Path(sys.argv[1])
log.write_text("\\n" * (1 << 20))
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 3000, hard))
attempt(log)
"""
    kept, left, message = in_child(room_for_three, log).split(maxsplit=2)
    assert 0 < int(kept) < 8
    assert int(left) == 0
    assert f"tuning log {log}: cannot write (File too large); all {kept} records before" in message
    assert log.read_text().endswith("}\n")
    assert len(read_log(log)) == int(kept)


def test_a_read_only_log_is_one_error_before_anything_starts(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("")
    log.chmod(0o444)
    tmp_path.chmod(0o755)
    as_nobody = """
os.chdir(Path(sys.argv[1]).parent)
os.getuid() or os.seteuid(65534)  # root may write to what is read-only
attempt("log.jsonl")
"""
    kept, left, message = in_child(as_nobody, log).split(maxsplit=2)
    assert (kept, left) == ("0", "0")
    assert "cannot write (Permission denied)" in message


def test_a_log_in_a_folder_that_can_not_be_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LogWriteError, match="cannot write"):
        tune(WORK, TARGET, tmp_path / "file" / "log", measurer=Replaying(tmp_path / "seen"), peak=PEAK)


class Clock:
    """Time that passes as the measurer says, so that a budget can be tested without waiting."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Slow(Replaying):
    """Takes time by its own clock: a third of a second a candidate, a second a comparison."""

    def __init__(self, seen: Path, clock: Clock) -> None:
        super().__init__(seen)
        self._clock = clock

    def measure(self, candidates: Sequence[Candidate], plan: Plan) -> Iterator[Outcome]:
        for outcome in super().measure(candidates, plan):
            self._clock.now += 0.33
            yield outcome

    def compare(self, candidates: Sequence[Candidate], plan: Plan) -> list[Outcome]:
        self._clock.now += 1.0
        return super().compare(candidates, plan)


@pytest.mark.parametrize("seconds", [10.0, 20.0, 40.0])
def test_the_whole_run_takes_the_promised_seconds(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(budget.time, "monotonic", clock.monotonic)
    measurer = Slow(tmp_path / "seen", clock)
    tune(WORK, TARGET, tmp_path / "log", 10_000, seconds, "random", measurer=measurer, peak=PEAK)
    assert 0.9 * seconds <= clock.now <= 1.1 * seconds


def test_a_peak_that_was_beaten_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    described = target(TARGET)
    measured = iter([Peak(1e9, 1e9), Peak(2e9, 1e9)])
    monkeypatch.setattr(peak_module, "_measure", lambda *arguments: next(measured))
    assert machine_peak(described) == machine_peak(described) == Peak(1e9, 1e9)
    forget_peak(described)
    assert machine_peak(described) == Peak(2e9, 1e9)
    forget_peak(described)
