"""A fleet of emulated ARM boards: one is killed in mid-run, on one a candidate crashes."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from tests.arm.conftest import PYTHON
from tests.measure.fleet.parties import ROOT, TOKEN, Board, boards, kill_the_one_that_sleeps, tracker_process
from tests.processes import wait_until
from tests.tuner.faulty_templates import MARKER, Sixty
from tvmops.machine import this_machine
from tvmops.measure.fleet.wire import VARIABLE
from tvmops.measure.peak import Peak
from tvmops.records import read_log
from tvmops.targets import target
from tvmops.tuner.session import tune
from tvmops.workloads import workload

WORK = workload("matmul", m=12, n=12, k=12, dtype="float32")
TARGET = "neoverse-n1"
PEAK = Peak(flops=1e11, bandwidth=1e10)  # of no machine: measuring one under emulation takes long


@pytest.fixture
def tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a tracker, a process whose words are in the file `tracker`."""
    if not PYTHON.is_file():
        pytest.skip("needs an emulated ARM Python; scripts/arm-environment sets it up")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv(MARKER, str(tmp_path / "marker"))
    monkeypatch.setenv(VARIABLE, TOKEN.decode())
    monkeypatch.setenv("QEMU_CPU", TARGET)
    monkeypatch.setattr("tvmops.schedules.TEMPLATES", (Sixty(),))
    monkeypatch.setattr("tvmops.tuner.job._START_SECONDS", 60.0)  # emulated, and three on two cores
    with tracker_process(tmp_path) as process:
        yield process.address


def test_sixty_trials_none_lost_and_none_twice(tracker: str, tmp_path: Path) -> None:
    said, log = tmp_path / "tracker", tmp_path / "log.jsonl"
    cpus = sorted(os.sched_getaffinity(0))

    def board(number: int) -> Board:
        return Board(tmp_path / str(number), tracker, TARGET, PYTHON, cpus[number % len(cpus)])

    with boards(3, board) as fleet:
        wait_until(lambda: said.read_text().count("serves neoverse-n1") == 3, seconds=120)
        killer = threading.Thread(target=lambda: kill_the_one_that_sleeps(fleet, seconds=240).start())
        killer.start()
        winner = tune(
            WORK, TARGET, log, trials=60, strategy="grid", measure="fleet", tracker=tracker, peak=PEAK
        )[WORK]
        killer.join()
        wait_until(lambda: said.read_text().count("serves neoverse-n1") == 4, seconds=120)

    records = read_log(log)
    searched = [record for record in records if record.stage == "search"]
    configs = [config.key for config in Sixty().space(WORK, target(TARGET))]
    assert len(configs) == 60
    assert sorted(record.config_key for record in searched) == sorted(configs)
    assert Counter(record.config["fault"] for record in searched if not record.ran) == {"wild store": 1}
    assert {record.status for record in searched if record.config["fault"] == "wild store"} == {"crash"}
    assert said.read_text().count("in the middle of a task") == 1
    assert winner.ran and winner.kind == "measured"
    (machine,) = {record.machine for record in records}
    assert machine != this_machine().fingerprint
