"""What a tuning run shows while it goes on, and at its end."""

from __future__ import annotations

import dataclasses
import io
import json
import math

import pytest
from rich.console import Console

from tests.cli.conftest import record
from tvmops.cli.watch import JsonLines, LiveTable, PlainLines
from tvmops.tuner.progress import JobStatus
from tvmops.workloads import workload

WAITING = JobStatus(
    workload("matmul", m=10, n=10, k=10), 0, 0, math.inf, math.inf, None, 2000, 1200, 1e-6, False, "waiting"
)
SEARCHING = dataclasses.replace(WAITING, trials=8, failures=1, best=2e-6, default=4e-6, state="searching")
ENDED = dataclasses.replace(SEARCHING, winner=record(seconds=(2e-6,)), state="converged")
STREAMING = dataclasses.replace(SEARCHING, memory_bound=True)


def test_a_rate_is_of_what_bounds_the_workload() -> None:
    assert (SEARCHING.rate, SEARCHING.unit) == (pytest.approx(1.0), "GFLOP/s")
    assert (STREAMING.rate, STREAMING.unit) == (pytest.approx(0.6), "GB/s")


def test_plain_lines_say_what_changed_once(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = PlainLines()
    faster = dataclasses.replace(SEARCHING, best=1e-6)
    for job, elapsed in ((WAITING, 0), (SEARCHING, 1), (SEARCHING, 20), (faster, 21), (ENDED, 22)):
        watcher.update([job], "", float(elapsed), None)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1.0", "21.0", "22.0"]
    assert "8 trials, 1 failures; best 1 GFLOP/s, 50% of the roofline; searching" in lines[0]


def test_plain_lines_show_that_a_search_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = PlainLines()
    for trials in range(12):
        watcher.update([dataclasses.replace(SEARCHING, trials=trials)], "", float(trials), None)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_end_names_winner_gain_and_reason(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = PlainLines()
    watcher.update([ENDED], "", 1.0, None)
    watcher.conclude()
    assert capsys.readouterr().out.splitlines() == [
        "matmul m=10 n=10 k=10 dtype=float32: 2 us, 1 GFLOP/s (50% of the roofline), "
        "2.00 times the default's speed; converged; cpu.gemm@1 mr=4"
    ]


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (dataclasses.replace(ENDED, default=math.inf), "the default config did not run"),
        (
            dataclasses.replace(WAITING, trials=2, failures=2, state="all trials used"),
            "no config ran, 2 failed",
        ),
    ],
)
def test_the_end_of_a_search_where_something_failed(
    job: JobStatus, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    watcher = PlainLines()
    watcher.update([job], "", 1.0, None)
    watcher.conclude()
    assert said in capsys.readouterr().out


def test_json_lines_tell_each_change_once_and_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = JsonLines()
    for job in (WAITING, SEARCHING, SEARCHING, ENDED):
        watcher.update([job], "mr=4", 1.0, 60.0)
    watcher.conclude()
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["progress", "progress", "progress", "result"]
    assert (events[0]["seconds"], events[1]["seconds"]) == (None, 2e-6)
    assert (events[-1]["config"], events[-1]["state"]) == ({"mr": 4}, "converged")


def rendered(watcher: LiveTable) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(watcher._table())
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_the_live_table_shows_jobs_and_time_left() -> None:
    watcher = LiveTable()
    assert "starting" in rendered(watcher)
    watcher.update([SEARCHING, STREAMING], "matmul: mr=4", 10.0, 60.0)
    text = rendered(watcher)
    first, second = (line.split() for line in text.splitlines() if "m=10" in line)
    assert first[5:] == ["8", "1", "1", "GFLOP/s", "50%", "searching"]
    assert second[7:9] == ["0.6", "GB/s"]
    assert "50 s left  matmul: mr=4" in text
