"""A run that is killed goes on where it was: nothing is lost, nothing done twice, same winner."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import random
import warnings
from collections import Counter
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from tests.processes import wait_until
from tests.tuner import replaying
from tests.tuner.replaying import WORK, key, seen_by
from tvmops.records import Record, read_log

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.tuner.replaying"])  # importing the compiler takes seconds


def start(*arguments: object) -> ForkServerProcess:
    process = context.Process(target=replaying.run, args=arguments)
    process.start()
    return process


def has_begun(process: ForkServerProcess, seen: Path, measured: int) -> bool:
    return len(seen_by(seen)) > measured or not process.is_alive()


def plain(record: Record) -> Record:
    """Return `record` without what differs from run to run."""
    return dataclasses.replace(record, when="")


def winners(records: list[Record]) -> dict[str, Record]:
    return {record.workload: plain(record) for record in records if record.rank == 0}


def read_whole(log: Path) -> list[Record]:
    if not log.exists():
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a torn line
        return read_log(log)


@pytest.mark.parametrize(
    ("strategy", "kills", "trials", "seconds"), [("random", 50, 400, 0.002), ("xgboost", 6, 48, 0.02)]
)
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(
    tmp_path: Path, strategy: str, kills: int, trials: int, seconds: float
) -> None:
    log, seen = tmp_path / "log.jsonl", tmp_path / "seen"
    rng = random.Random(0)
    for _ in range(kills):
        before, measured = read_whole(log), len(seen_by(seen))
        process = start(log, seen, 7, trials, strategy, seconds)
        if rng.random() < 0.9:  # else it may be killed while it reads the log
            wait_until(partial(has_begun, process, seen, measured))
        process.join(rng.uniform(0, 8 * seconds))
        assert process.is_alive(), "it ended before it could be killed"
        process.kill()
        process.join()
        check_life(before, read_whole(log), seen_by(seen)[measured:])
    process = start(log, seen, 7, trials, strategy, 0.0)
    process.join()
    assert process.exitcode == 0

    unbroken = tmp_path / "unbroken.jsonl"
    returned = replaying.run(unbroken, tmp_path / "seen too", 7, trials, strategy, 0.0)
    assert set(returned) == set(WORK)
    expected = [plain(record) for record in read_whole(unbroken)]
    assert [plain(record) for record in read_whole(log)] == expected
    assert winners(read_whole(log)) == {str(work): plain(record) for work, record in returned.items()}


def test_a_kill_while_leaders_are_compared_costs_that_comparison(tmp_path: Path) -> None:
    log, seen = tmp_path / "log.jsonl", tmp_path / "seen"
    for comparisons in (1, 2):
        process = start(log, seen, 3, 8, "random", 0.02)
        wait_until(lambda n=comparisons: [stage for stage, _ in seen_by(seen)].count("final") >= n)
        process.kill()
        process.join()
    returned = replaying.run(log, seen, 3, 8, "random", 0.0)
    finals = [record for record in read_whole(log) if record.stage == "final"]
    assert len({key(record) for record in finals}) == len(finals)
    assert winners(finals) == {str(work): plain(record) for work, record in returned.items()}


def check_life(before: list[Record], after: list[Record], measured: list[tuple[str, list[str]]]) -> None:
    """Check what one life of a run did, from its start to its kill."""
    known = {(record.stage, key(record)) for record in before}
    again = [(stage, k) for stage, keys in measured for k in keys if (stage, k) in known]
    assert not again, "measured though it was in the log"
    logged = {(record.stage, key(record)) for record in after}
    lost = [(stage, keys) for stage, keys in measured if not {(stage, k) for k in keys} <= logged]
    assert lost in ([], measured[-1:]), "more was lost than what was in flight"
    assert after[: len(before)] == before


def test_a_run_that_has_ended_has_nothing_left_to_measure(tmp_path: Path) -> None:
    log, seen = tmp_path / "log.jsonl", tmp_path / "seen"
    first = replaying.run(log, seen, 1, 20, "random", 0.0)
    done = seen_by(seen)
    assert replaying.run(log, seen, 1, 20, "random", 0.0) == first
    assert seen_by(seen) == done


@pytest.mark.parametrize("strategy", ["random", "grid", "xgboost"])
def test_a_run_with_more_trials_begins_with_those_of_the_shorter_one(tmp_path: Path, strategy: str) -> None:
    log, seen = tmp_path / "log.jsonl", tmp_path / "seen"
    for trials in (3, 11, 20):
        replaying.run(log, seen, 5, trials, strategy, 0.0)
    searched = [record for record in read_log(log) if record.stage == "search"]
    assert Counter(r.workload for r in searched) == {str(work): 20 for work in WORK}
    assert len({key(record) for record in searched}) == 40

    replaying.run(tmp_path / "at once", tmp_path / "seen too", 5, 20, strategy, 0.0)
    at_once = [record for record in read_log(tmp_path / "at once") if record.stage == "search"]
    assert {key(record) for record in at_once} == {key(record) for record in searched}


def test_a_shorter_run_on_a_longer_log_has_its_winner(tmp_path: Path) -> None:
    log, seen = tmp_path / "log.jsonl", tmp_path / "seen"
    best = replaying.run(log, seen, 1, 40, "random", 0.0)
    measured = len(seen_by(seen))
    again = replaying.run(log, seen, 2, 1, "random", 0.0)
    assert again == best
    assert len(seen_by(seen)) == measured  # the default and the leaders are known


def test_two_runs_on_one_log_at_once_lose_and_tear_nothing(tmp_path: Path) -> None:
    log, seen = tmp_path / "log.jsonl", [tmp_path / "seen 1", tmp_path / "seen 2"]
    runs = [start(log, seen[number], number, 150, "random", 0.001) for number in (0, 1)]
    for run in runs:
        run.join()
        assert run.exitcode == 0
    records = read_whole(log)
    measured = [(stage, k) for path in seen for stage, keys in seen_by(path) for k in keys]
    assert Counter((record.stage, key(record)) for record in records) == Counter(measured)
    assert min(Counter(record.seed for record in records).values()) > 100
    assert sum(a.seed != b.seed for a, b in itertools.pairwise(records)) > 2  # they did run at once
    assert {record.workload for record in records if record.rank == 0} == set(map(str, WORK))
