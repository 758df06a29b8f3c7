"""`tvmops logs`: what it prints, what it writes, what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command, record
from tvmops.records import Record, read_log

OTHER = "matmul m=1 n=2 k=3 dtype=float32"


def write(path: Path, *records: Record, tail: str = "") -> Path:
    path.write_text("".join(f"{each.to_json()}\n" for each in records) + tail)
    return path


def test_best_prints_one_record_a_workload(tvmops: Command, tmp_path: Path) -> None:
    fast = record(config={"mr": 6}, seconds=(2e-6,))
    log = write(tmp_path / "log", record(), fast, record(OTHER))
    done = tvmops("logs", "best", log)
    header, first, second = done.out.splitlines()
    assert header.split() == ["workload", "target", "time", "stage", "template", "config"]
    assert "2 us" in first and first.endswith("mr=6")
    assert second.startswith(OTHER) and "1 ms" in second
    printed = tvmops("logs", "best", log, "--json").out.splitlines()
    assert [Record.from_json(line) for line in printed] == [fast, record(OTHER)]


def test_a_cut_line_is_one_warning_and_the_rest_is_used(tvmops: Command, tmp_path: Path) -> None:
    log = write(tmp_path / "log", record(), tail='{"workload": "mat')
    done = tvmops("logs", "best", log)
    assert done.error_lines == [f"tvmops: warning: tuning log {log}: line 2 is cut short; skipped"]
    assert done.code == 0 and "1 ms" in done.out


def test_merge_keeps_order_and_drops_equal_lines(tvmops: Command, tmp_path: Path) -> None:
    a = write(tmp_path / "a", record(seed=1), record(seed=2))
    b = write(tmp_path / "b", record(seed=2), record(seed=3), record(seed=1))
    done = tvmops("logs", "merge", a, b, "-o", tmp_path / "c")
    assert done.code == 0 and "3 records of 2 logs" in done.out
    assert [each.seed for each in read_log(tmp_path / "c")] == [1, 2, 3]


def test_merge_keeps_fields_of_a_newer_schema(tvmops: Command, tmp_path: Path) -> None:
    line = json.dumps({**json.loads(record().to_json()), "schema": 9, "joules": 3})
    (tmp_path / "a").write_text(line + "\n")
    tvmops("logs", "merge", tmp_path / "a", "-o", tmp_path / "c")
    assert (tmp_path / "c").read_text() == line + "\n"


def test_diff_compares_workload_by_workload(tvmops: Command, tmp_path: Path) -> None:
    a = write(tmp_path / "a", record(seconds=(3e-3,)), record(OTHER))
    b = write(tmp_path / "b", record(seconds=(2e-3,)), record("matmul m=5 n=5 k=5 dtype=float32"))
    done = tvmops("logs", "diff", a, b, "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [(each["first"], each["second"], each["speedup"]) for each in lines] == [
        (3e-3, 2e-3, 1.5),
        (1e-3, None, None),
        (None, 1e-3, None),
    ]
    table = tvmops("logs", "diff", a, b).out.splitlines()
    assert table[1].split()[-1] == "1.50" and table[2].split()[-2:] == ["-", "-"]


def test_prune_keeps_finals_marks_and_the_fastest(tvmops: Command, tmp_path: Path) -> None:
    searched = [record(seconds=(time * 1e-3,), seed=time) for time in (5, 3, 1, 4, 2)]
    other = [record(OTHER, seconds=(1.0,), seed=10), record(template="cpu.gemm@2", seconds=(1.0,), seed=11)]
    failed = record(status="crash", seconds=(), seed=12)
    kept = [record(stage="final", seconds=(9.0,), seed=13), record(stage="verify", status="wrong", seed=14)]
    log = write(tmp_path / "log", *searched, *other, failed, *kept)
    done = tvmops("logs", "prune", log, "-o", tmp_path / "small", "--keep", 2)
    assert [each.seed for each in read_log(tmp_path / "small")] == [1, 2, 10, 11, 13, 14]
    assert "kept 6 of 10 records; 2 were failures" in done.out
    assert len(read_log(log)) == 10


@pytest.mark.parametrize("command", [("merge",), ("prune",)])
def test_a_file_that_is_there_is_never_replaced(command: tuple[str], tvmops: Command, tmp_path: Path) -> None:
    log = write(tmp_path / "log", record())
    before = log.read_bytes()
    done = tvmops("logs", *command, log, "-o", log)
    assert done.code == 2 and "does not exist yet" in done.err
    assert log.read_bytes() == before
