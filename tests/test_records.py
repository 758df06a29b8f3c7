"""The log: append-only, several writers, cut lines, full disks."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from tvmops.errors import LogReadError, LogWriteError
from tvmops.records import LogWriter, Record, best_records, read_log

ROOT = Path(__file__).parents[1]


def record(name: str = "x", time: float = 1.0, **changes: object) -> Record:
    plain = Record(
        workload="matmul m=1 n=1 k=1 dtype=float32",
        target="toy",
        machine="here",
        template="t@1",
        config={"name": name},
        status="ok",
        seconds=(time, time, time),
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def write(path: Path, *records: Record) -> None:
    with LogWriter(path) as writer:
        for each in records:
            writer.append(each)


CHILD = """
import os, resource, sys
from pathlib import Path
from tests.test_records import record
from tvmops.errors import LogWriteError
from tvmops.records import LogWriter
path = Path(sys.argv[1])
"""


def in_child(code: str, path: Path, mount: str = "") -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own; `mount` gives it a file system at the folder of `path`."""
    command = [sys.executable, "-c", CHILD + code, str(path)]
    if mount:
        if subprocess.run(["unshare", "-rm", *mount.split()], capture_output=True).returncode != 0:
            pytest.skip("this user may not mount a file system")
        command = ["unshare", "-rm", "sh", "-c", f'{mount} && "$@"', "sh", *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)


def test_a_record_is_read_back_as_it_was(tmp_path: Path) -> None:
    written = record(error=1e-7, detail='quotes " and\nlines', toolchain={"llvm": "22"}, seed=3, when="now")
    write(tmp_path / "log.jsonl", written)
    assert read_log(tmp_path / "log.jsonl") == [written]
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 1


def test_a_log_appears_with_its_folders(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "log.jsonl", record())
    assert len(read_log(tmp_path / "a" / "b" / "log.jsonl")) == 1


def test_each_record_is_in_the_file_before_append_returns(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with LogWriter(path) as writer:
        for count in (1, 2, 3):
            writer.append(record(str(count)))
            assert len(read_log(path)) == writer.written == count


def test_fields_of_a_newer_schema_are_dropped() -> None:
    table = {**json.loads(record().to_json()), "schema": 99, "humidity": 0.4}
    assert Record.from_json(json.dumps(table)).config == {"name": "x"}


@pytest.mark.parametrize("cut", [1, 20, -2, -1])
def test_a_half_written_last_line_is_skipped_with_a_warning(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "log.jsonl"
    write(path, record("first"), record("second"))
    line = record("third").to_json()
    with path.open("a") as log:
        log.write(line[:cut])
    with pytest.warns(UserWarning, match=r"log\.jsonl: line 3 is cut short; skipped"):
        kept = read_log(path)
    assert [r.config["name"] for r in kept] == ["first", "second"]

    write(path, record("fourth"))  # must not be swallowed by the unfinished line
    with pytest.warns(UserWarning, match="line 3 is no record; skipped"):
        kept = read_log(path)
    assert [r.config["name"] for r in kept] == ["first", "second", "fourth"]


def test_a_whole_last_line_without_its_newline_is_used(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(record("first").to_json())
    write(path, record("second"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [r.config["name"] for r in read_log(path)] == ["first", "second"]


@pytest.mark.parametrize("line", ["[1]", "5", "null", "{}", '{"workload": "w"}', "\x00\x00", "caf\udce9"])
def test_a_line_that_is_no_record_costs_itself_alone(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    write(path, record("first"))
    with path.open("ab") as log:
        log.write(line.encode(errors="surrogateescape") + b"\n")
    write(path, record("last"))
    with pytest.warns(UserWarning, match="line 2 is no record; skipped"):
        assert [r.config["name"] for r in read_log(path)] == ["first", "last"]


def test_a_file_of_something_else_is_one_warning(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f"a\n\nb\n{record('kept').to_json()}\nc\nd\ne\n")
    with pytest.warns(UserWarning) as caught:
        assert len(read_log(path)) == 1
    (warning,) = caught
    assert str(warning.message) == f"tuning log {path}: lines 1, 3, 5 and 2 others are no records; skipped"


def test_a_missing_log_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LogReadError, match=r"nowhere\.jsonl: No such file"):
        read_log(tmp_path / "nowhere.jsonl")
    with pytest.raises(LogReadError, match="Is a directory"):
        read_log(tmp_path)


def test_two_writers_in_two_processes_tear_no_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    code = """
with LogWriter(path) as writer:
    for index in range(60):
        writer.append(record(f"{sys.argv[2]} {index}", detail="x" * 9000))
"""
    command = [sys.executable, "-c", CHILD + code, str(path)]
    children = [subprocess.Popen([*command, name], cwd=ROOT) for name in ("a", "b")]
    assert [child.wait(60) for child in children] == [0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = [r.config["name"] for r in read_log(path)]
    assert sorted(names) == sorted(f"{name} {index}" for name in "ab" for index in range(60))
    assert [n for n in names if n[0] == "a"] == [f"a {index}" for index in range(60)]


def test_a_writer_waits_for_the_one_at_work(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, record("first"))
    with path.open("ab") as other, LogWriter(path) as writer:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b'{"half": ')
        other.flush()
        waiting = threading.Thread(target=writer.append, args=[record("third")])
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        other.write(b"1}\n")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_UN)
        waiting.join()
    assert [line[:7] for line in path.read_text().splitlines()] == ['{"workl', '{"half"', '{"workl']


FILL = """
with LogWriter(path) as writer:
    for index in range(10_000):
        try:
            writer.append(record(str(index)))
        except LogWriteError as error:
            print(index, error)
            break
print("---")
print(path.read_text(), end="")
"""


def check_full(path: Path, done: subprocess.CompletedProcess[str], reason: str) -> None:
    said, _, content = done.stdout.partition("---\n")
    kept, _, message = said.partition(" ")
    assert int(kept) > 3, done.stderr
    assert f"{path}: cannot write ({reason}); all {kept} records before this one are kept" in message
    assert content.endswith("\n"), "part of a line was left"
    names = [Record.from_json(line).config["name"] for line in content.splitlines()]
    assert names == [str(index) for index in range(int(kept))]


def test_a_file_that_may_not_grow_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
    check_full(path, in_child(limit + FILL, path), "File too large")


def test_records_that_belong_together_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    code = """
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
writer = LogWriter(path)
writer.append(record("alone"))
try:
    writer.append(*(record(str(index)) for index in range(5)))
except LogWriteError as error:
    print(error.fields["kept"])
"""
    assert in_child(code, path).stdout == "1\n"
    assert [r.config["name"] for r in read_log(path)] == ["alone"]


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    mount = f"mount -t tmpfs -o size=64k none {tmp_path}"
    check_full(path, in_child(FILL, path, mount), "No space left on device")


OPEN = """
try:
    LogWriter(path)
except LogWriteError as error:
    print(error)
"""


def test_a_read_only_disk_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    done = in_child(OPEN, path, f"mount -t tmpfs -o ro none {tmp_path}")
    assert done.stdout.startswith(f"tuning log {path}: cannot write (Read-only file system)"), done.stderr


@pytest.mark.skipif(os.getuid() == 0, reason="root may write to anything")
def test_a_read_only_log_is_one_clear_error_and_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, record())
    path.chmod(0o444)
    with pytest.raises(LogWriteError, match=r"cannot write \(Permission denied\)"):
        LogWriter(path)
    assert len(read_log(path)) == 1


def test_a_log_that_is_a_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LogWriteError, match=r"cannot write \(Is a directory\)"):
        LogWriter(tmp_path)


def test_the_smallest_median_wins_and_ties_follow_the_config() -> None:
    records = [record("slow", 2.0), record("b", 1.0), record("a", 1.0)]
    for ordered in (records, records[::-1]):
        (best,) = best_records(ordered).values()
        assert best.config["name"] == "a"


def test_a_comparison_turn_by_turn_goes_before_times_taken_apart() -> None:
    records = [record("lucky", 0.5), record("steady", 1.0, stage="final")]
    (best,) = best_records(records).values()
    assert best.config["name"] == "steady"


def test_a_nearer_target_goes_before_a_faster_one() -> None:
    records = [record("far", 0.5, target="v3"), record("near", 1.0), record("alien", 0.1, target="arm")]
    (best,) = best_records(records, ["toy", "v3"]).values()
    assert best.config["name"] == "near"
    assert best_records(records, ["sapphirerapids"]) == {}


def test_records_of_this_machine_go_before_faster_ones_of_another() -> None:
    records = [record("there", 0.5, machine="there"), record("here", 1.0, machine="here")]
    (best,) = best_records(records, machine="here").values()
    assert best.config["name"] == "here"
    (best,) = best_records(records, machine="a third").values()
    assert best.config["name"] == "there"


@pytest.mark.parametrize("status", ["wrong", "crash", "timeout", "compile", "memory"])
def test_what_failed_is_never_best(status: str) -> None:
    failed = record("failed", 0.1, status=status)
    assert failed.time == failed.fastest == float("inf")
    (best,) = best_records([failed, record("right", 1.0)]).values()
    assert best.config["name"] == "right"
    assert best_records([failed]) == {}


def test_the_winner_of_a_comparison_is_best_whatever_its_median() -> None:
    winner = record("a", 1.004, stage="final", rank=0, when="2026-01-01")
    tied = record("b", 1.0, stage="final", rank=1, when="2026-01-01")
    assert best_records([tied, winner]) == best_records([winner, tied]) == {winner.workload: winner}


def test_a_winner_that_lost_a_later_comparison_is_best_no_more() -> None:
    early = record("a", 1.0, stage="final", rank=0, when="2026-01-01")
    late = record("b", 1.1, stage="final", rank=0, when="2026-01-02")
    assert best_records([late, early])[early.workload] == early  # they have not met
    met = record("a", 1.2, stage="final", rank=1, when="2026-01-02")
    for order in ([early, late, met], [met, late, early]):
        assert best_records(order)[early.workload] == late
    elsewhere = record("a", 1.05, stage="final", rank=0, when="2026-01-01", machine="there")
    assert best_records([early, late, met, elsewhere])[early.workload] == elsewhere


def test_several_records_are_written_together(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "log.jsonl") as writer:
        writer.append(record("a"), record("b", cold_seconds=(2.0,), rank=0))
        assert writer.written == 2
    assert read_log(tmp_path / "log.jsonl") == [record("a"), record("b", cold_seconds=(2.0,), rank=0)]


def modelled(cycles: int, **changes: object) -> Record:
    return record(seconds=(), kind="modelled", cycles=cycles, machine="model", **changes)


def test_a_modelled_record_has_cycles_and_no_seconds(tmp_path: Path) -> None:
    fast, slow = modelled(10, config={"name": "fast"}, counts={"instructions": 7}), modelled(20)
    assert fast.ran and fast.time < slow.time and fast.fastest < slow.fastest
    write(tmp_path / "log", fast, slow)
    assert read_log(tmp_path / "log") == [fast, slow]
    assert '"seconds": []' in (tmp_path / "log").read_text()
    assert list(best_records([slow, fast]).values()) == [fast]


def test_a_measured_record_always_goes_before_a_modelled_one() -> None:
    """The model knows one core of the very target: that is worth less than any clock."""
    measured = record(time=1e9, target="fallback", machine="there")
    model = modelled(1, target="near", stage="final", rank=0)
    for both in ([measured, model], [model, measured]):
        assert list(best_records(both, ["near", "fallback"], "model").values()) == [measured]
