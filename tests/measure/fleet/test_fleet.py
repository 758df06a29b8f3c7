"""A fleet of this machine alone: real devices, real candidates, all that these may do to them."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from tests.measure.fleet.parties import (
    ROOT,
    TOKEN,
    Board,
    boards,
    kill_the_one_that_sleeps,
    names,
    serving,
    tracker_process,
)
from tests.processes import wait_until
from tests.tuner.faulty_templates import MARKER, STATUSES, Faulty, Sixty, faulty
from tvmops.cli.main import main
from tvmops.errors import FleetError, NoDeviceError
from tvmops.machine import this_machine
from tvmops.measure import peak
from tvmops.measure.candidate import Candidate, Outcome, Plan
from tvmops.measure.fleet.line import Line
from tvmops.measure.fleet.measurer import FleetMeasurer
from tvmops.measure.fleet.tracker import Tracker
from tvmops.measure.fleet.wire import VARIABLE
from tvmops.measure.peak import Peak, machine_peak
from tvmops.records import read_log
from tvmops.space import Config
from tvmops.targets import target
from tvmops.tuner.session import tune
from tvmops.workloads import workload

WORK = workload("matmul", m=24, n=24, k=24, dtype="float32")
PEAK = Peak(flops=1e11, bandwidth=1e10)
HERE = target("native").name


@pytest.fixture(scope="module", autouse=True)
def importable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patch.setenv(MARKER, str(tmp_path_factory.mktemp("marker") / "asleep"))
        patch.setenv(VARIABLE, TOKEN.decode())
        patch.setattr("tvmops.schedules.TEMPLATES", (Sixty(),))
        yield


@pytest.fixture(scope="module")
def tracker() -> Iterator[Tracker]:
    with serving() as tracker:
        yield tracker


@pytest.fixture(scope="module")
def fleet(tracker: Tracker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Board]]:
    folder = tmp_path_factory.mktemp("boards")
    with boards(2, lambda number: Board(folder / str(number), tracker.address, HERE)) as started:
        wait_until(lambda: len(names(tracker)) == 2)
        yield started


@pytest.fixture(scope="module")
def measurer(tracker: Tracker, fleet: list[Board]) -> Iterator[FleetMeasurer]:
    with contextlib.closing(FleetMeasurer(target("native"), tracker.address, TOKEN)) as measurer:
        yield measurer


def candidates(*configs: Config) -> list[Candidate]:
    return [Candidate(WORK, target("native"), Faulty().path, config) for config in configs]


def measure(measurer: FleetMeasurer, timeout: float, *configs: Config) -> list[Outcome]:
    return list(measurer.measure(candidates(*configs), Plan(samples=3, timeout=timeout)))


def test_its_machine_and_its_target_are_those_of_the_devices(measurer: FleetMeasurer) -> None:
    assert measurer.machine == this_machine().fingerprint
    assert (measurer.target.name, measurer.target.cores) == (HERE, this_machine().cores)


def test_what_a_candidate_does_costs_itself_alone(measurer: FleetMeasurer, fleet: list[Board]) -> None:
    faults = ["", "wild store", "abort", "exit", "100 GB", "wrong values", "NaN", "writes to input", "raises"]
    outcomes = measure(measurer, 60, *map(faulty, faults))
    assert [outcome.status for outcome in outcomes] == [STATUSES.get(fault, "ok") for fault in faults]
    assert all(outcome.detail for outcome in outcomes[1:])
    assert len(outcomes[0].seconds) == 3 and outcomes[0].error is not None and outcomes[0].kind == "measured"
    assert measure(measurer, 0.5, faulty("endless loop"))[0].status == "timeout"
    assert measure(measurer, 60, faulty(""))[0].status == "ok"
    assert not any(board.is_dead for board in fleet)


def test_the_limits_of_the_devices_are_measured_on_one(
    measurer: FleetMeasurer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVMOPS_CACHE", str(tmp_path))
    monkeypatch.setattr(peak, "_STEPS", 100)
    monkeypatch.setattr(peak, "_STREAM_ELEMENTS", 1 << 16)
    found = machine_peak(measurer.target, measurer)
    assert 0 < found.flops < float("inf") and 0 < found.bandwidth < float("inf")
    assert measurer.machine in (tmp_path / "peaks.json").read_text()
    with pytest.raises(FleetError, match="could not be timed"):
        measurer.time_kernel(Path(np.__file__), [1], 1)  # no library at all


def test_a_task_that_makes_no_sense_ends_the_connection_and_not_the_device(
    tracker: Tracker, fleet: list[Board]
) -> None:
    machine = this_machine().fingerprint
    for task in ({}, {"runtime": "../x", "libraries": []}, {"runtime": "0" * 64}, []):
        request = {"target": HERE, "machine": machine, "patience": 30.0, "limit": 1.0, "task": task}
        with contextlib.closing(Line(tracker.address, TOKEN)) as line:
            assert line.do(request, {"0" * 64: Path(__file__), "../x": Path(__file__)}) == {"lost": 2}
    wait_until(lambda: len(names(tracker)) == 2)
    assert not any(board.is_dead for board in fleet)


def test_the_command_line_tunes_over_a_fleet(
    tracker: Tracker, fleet: list[Board], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(os.environ[MARKER]).touch()  # nothing sleeps
    monkeypatch.setenv("TVMOPS_CACHE", str(tmp_path))
    monkeypatch.setattr(peak, "_STEPS", 100)
    monkeypatch.setattr(peak, "_STREAM_ELEMENTS", 1 << 16)
    token, log = tmp_path / "token", tmp_path / "log.jsonl"
    token.write_bytes(TOKEN)
    token.chmod(0o600)
    where = ["--measure", "fleet", "--tracker", tracker.address, "--token-file", str(token)]
    assert main(["tune", str(WORK), *where, "--trials", "3", "--strategy", "grid", "--log", str(log)]) == 0
    assert [record.stage for record in read_log(log)].count("search") == 3


def test_a_tracker_s_devices_are_listed(
    tracker: Tracker, fleet: list[Board], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fleet", "list", "--tracker", tracker.address]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["target", "device", "cores", "machine"]
    assert [row.split()[0] for row in rows] == [HERE, HERE]


def test_leaders_are_compared_turn_by_turn_whoever_breaks_it(measurer: FleetMeasurer) -> None:
    configs = [faulty(""), faulty("wild store"), faulty("", 20), faulty("wrong values"), faulty("raises")]
    outcomes = measurer.compare(candidates(*configs), Plan(samples=3))
    assert [outcome.status for outcome in outcomes] == ["ok", "crash", "ok", "wrong", "compile"]
    assert len(outcomes[0].seconds) == len(outcomes[2].cold_seconds) == 3


def test_a_trial_whose_device_is_killed_is_done_by_another_and_the_device_comes_back(
    measurer: FleetMeasurer, tracker: Tracker, fleet: list[Board]
) -> None:
    Path(os.environ[MARKER]).unlink(missing_ok=True)
    killer = threading.Thread(target=kill_the_one_that_sleeps, args=[fleet])
    killer.start()
    outcomes = measure(measurer, 120, faulty("sleeps once"), faulty("", 20), faulty(""))
    killer.join()
    assert [outcome.status for outcome in outcomes] == ["ok", "ok", "ok"]
    restart(fleet, tracker)
    assert [outcome.status for outcome in measure(measurer, 60, faulty(""), faulty("", 20))] == ["ok", "ok"]


def restart(fleet: list[Board], tracker: Tracker) -> None:
    for board in fleet:
        if board.is_dead:
            board.start()
    wait_until(lambda: len(names(tracker)) == len(fleet))


def test_a_candidate_that_takes_devices_with_it_is_not_given_to_all(
    measurer: FleetMeasurer, tracker: Tracker, fleet: list[Board]
) -> None:
    (outcome,) = measure(measurer, 60, faulty("kills its parent"))
    assert (outcome.status, outcome.detail) == ("crash", "took 2 devices with it")
    wait_until(lambda: all(board.is_dead for board in fleet))
    restart(fleet, tracker)


def test_a_run_over_the_fleet_is_logged_like_any_other_and_resumed(
    tracker: Tracker, fleet: list[Board], tmp_path: Path
) -> None:
    Path(os.environ[MARKER]).touch()  # nothing sleeps
    log = tmp_path / "log.jsonl"
    options = {"strategy": "grid", "measure": "fleet", "tracker": tracker.address, "peak": PEAK}
    tune(WORK, HERE, log, trials=9, **options)  # type: ignore[arg-type]
    first = read_log(log)
    winner = tune(WORK, HERE, log, trials=60, **options)[WORK]  # type: ignore[arg-type]
    records = read_log(log)
    assert records[: len(first)] == first
    searched = [record.config_key for record in records if record.stage == "search"]
    assert sorted(searched) == sorted(config.key for config in Sixty().space(WORK, target("native")))
    assert {(record.machine, record.kind) for record in records} == {(this_machine().fingerprint, "measured")}
    assert [record.status for record in records].count("crash") == 1
    assert winner.stage == "final" and winner.status == "ok"


def test_a_run_goes_on_where_its_tracker_is_started_again(tmp_path: Path) -> None:
    Path(os.environ[MARKER]).touch()  # nothing sleeps
    log = tmp_path / "log.jsonl"
    with tracker_process(tmp_path) as tracker:
        with boards(2, lambda number: Board(tmp_path / str(number), tracker.address, HERE)):
            wait_until(lambda: len(names(tracker)) == 2)

            def again() -> None:
                wait_until(lambda: log.exists() and len(log.read_bytes().splitlines()) >= 5)
                tracker.kill()
                tracker.start()

            breaker = threading.Thread(target=again)
            breaker.start()
            options = {"strategy": "grid", "measure": "fleet", "tracker": tracker.address, "peak": PEAK}
            tune(WORK, HERE, log, trials=60, **options)  # type: ignore[arg-type]
            breaker.join()
    records = read_log(log)
    searched = [record.config_key for record in records if record.stage == "search"]
    assert sorted(searched) == sorted(config.key for config in Sixty().space(WORK, target("native")))
    assert [record.status for record in records].count("crash") == 1, "the one that crashes by itself"


def test_without_a_device_for_the_target_that_is_the_error(tracker: Tracker, fleet: list[Board]) -> None:
    with pytest.raises(NoDeviceError, match=f"has no device of target 'cortex-a53', it has '{HERE}'"):
        FleetMeasurer(target("cortex-a53"), tracker.address, TOKEN)


def test_devices_that_are_gone_for_good_are_an_error_and_no_outcome(tmp_path: Path) -> None:
    with serving() as tracker:
        with boards(1, lambda number: Board(tmp_path / "board", tracker.address, HERE)) as (board,):
            wait_until(lambda: len(names(tracker)) == 1)
            measurer = FleetMeasurer(target("native"), tracker.address, TOKEN, builders=1, patience=0.1)
            with contextlib.closing(measurer):
                board.kill()
                with pytest.raises(NoDeviceError, match=r"it has had none for 0\.1 s"):
                    measure(measurer, 60, faulty(""))
                tracker.close()
                with pytest.raises(FleetError):
                    measure(measurer, 60, faulty(""))


def test_a_device_whose_token_is_refused_ends_with_the_reason(tracker: Tracker, tmp_path: Path) -> None:
    board = Board(tmp_path / "board", tracker.address, HERE)
    board.start({VARIABLE: "another token of 30 characters"})
    wait_until(lambda: board.is_dead)
    assert "it does not hold the same token" in (board.folder / "said").read_text()


def test_a_device_waits_for_its_tracker_and_finds_it_again(tmp_path: Path) -> None:
    with serving() as tracker:
        port = int(tracker.address.rpartition(":")[2])
    with boards(1, lambda number: Board(tmp_path / "board", tracker.address, HERE)) as (board,):
        wait_until(lambda: "until it answers" in (board.folder / "said").read_text())
        for _ in range(2):
            with serving(port=port) as again:
                wait_until(lambda: len(names(again)) == 1)
