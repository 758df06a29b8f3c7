"""From a workload's text to a library that answers, by commands alone."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tvmops.cli.main import main
from tvmops.records import read_log

SPEC = "matmul m=8 n=8 k=8"
FULL = f"{SPEC} dtype=float32"


@dataclass(frozen=True)
class Made:
    log: Path
    library: Path
    tuning: list[str]
    exporting: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    log, library = folder / "log.jsonl", folder / "lib"
    suite = folder / "suite.toml"
    suite.write_text('[[workload]]\nop = "matmul"\nm = 8\nn = 8\nk = 8\nweight = 2.5\n')
    tuned, exported = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(tuned):
        assert main(["tune", str(suite), "--log", str(log), "--trials", "2"]) == 0
    with contextlib.redirect_stdout(exported):
        assert main(["export", SPEC, "--log", str(log), "--output", str(library)]) == 0
    return Made(log, library, tuned.getvalue().splitlines(), exported.getvalue())


def test_tune_logs_what_it_says(made: Made) -> None:
    records = read_log(made.log)
    assert {each.workload for each in records} == {FULL}
    assert sum(each.stage == "search" for each in records) == 2
    assert made.tuning[-1].startswith(f"{FULL}: ")
    assert "all trials used" in made.tuning[-1]


def test_tuning_again_measures_nothing_again(made: Made, tvmops: Command) -> None:
    before = made.log.read_bytes()
    done = tvmops("tune", SPEC, "--log", made.log, "--trials", 2, "--json")
    assert (done.code, made.log.read_bytes()) == (0, before)
    result = json.loads(done.out.splitlines()[-1])
    assert (result["event"], result["workload"]) == ("result", FULL)


def test_export_says_what_the_library_holds(made: Made) -> None:
    assert made.exporting.startswith(f"{made.library}: 1 tuned and ")
    assert (made.library / "manifest.json").is_file()


def test_explain_names_the_kernel(made: Made, tvmops: Command) -> None:
    done = tvmops("explain", made.library, SPEC, "matmul m=9 n=9 k=9")
    assert "exact: built for this shape" in done.out
    assert "generic: this shape was not tuned" in done.out


def test_export_writes_one_file_or_a_wheel(made: Made, tvmops: Command, tmp_path: Path) -> None:
    done = tvmops("export", SPEC, "--log", made.log, "--zip", "-o", tmp_path / "lib")
    assert done.out.startswith(f"{tmp_path}/lib.zip: 1 tuned and ")
    done = tvmops("explain", tmp_path / "lib.zip", SPEC)
    assert "exact: built for this shape" in done.out and "serves arrays on the CPU" in done.out
    done = tvmops("export", SPEC, "--log", made.log, "--wheel", "--name", "mine", "-o", tmp_path / "dist")
    (wheel,) = (tmp_path / "dist").iterdir()
    assert wheel.name.startswith("mine-0.1.0-py3-none-manylinux_2_")
    assert done.out.startswith(f"{wheel}: 1 tuned and ")


def test_using_the_library_imports_no_compiler(made: Made) -> None:
    code = (
        "import sys, tvmops\n"
        "from tvmops.cli.main import main\n"
        "tvmops.load(sys.argv[1])\n"
        "code = main(['explain', sys.argv[1], sys.argv[2]])\n"
        "sys.exit(3 if 'tvm' in sys.modules else code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(made.library), SPEC], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_bench_times_and_checks_against_numpy(made: Made, tvmops: Command) -> None:
    done = tvmops("bench", SPEC, "--library", made.library, "--against", "numpy", "--rounds", 9, "--json")
    assert done.code == 0
    (line,) = done.out.splitlines()
    result = json.loads(line)
    assert (result["tier"], result["best_peer"], result["missing"]) == ("exact", "numpy", [])
    assert {name: len(samples) for name, samples in result["seconds"].items()} == {"tvmops": 9, "numpy": 9}
    assert all(error <= result["tolerance"] for error in result["errors"].values())


def test_bench_refuses_a_peer_it_does_not_know(made: Made, tvmops: Command) -> None:
    done = tvmops("bench", SPEC, "--library", made.library, "--against", "abacus")
    assert (done.code, len(done.error_lines)) == (2, 1)
    assert "'against' is 'abacus'" in done.err


def test_verify_rebuilds_what_the_log_says(made: Made, tvmops: Command) -> None:
    done = tvmops("logs", "verify", made.log, "--tolerance", 1e9, "--json")
    assert done.code == 0
    (verdict,) = (json.loads(line) for line in done.out.splitlines())
    assert (verdict["status"], verdict["workload"]) == ("holds", FULL)
    assert verdict["slowdown"] > 0


def test_targets_lists_them_and_shows_this_machine(tvmops: Command) -> None:
    assert {line.split()[0] for line in tvmops("targets").out.splitlines()[1:]} >= {"x86-64-v3", "znver4"}
    shown = json.loads(tvmops("targets", "native", "--peak", "--json").out)
    assert shown["cores"] >= 1 and shown["peak_gflops"] > 0 and shown["peak_gbytes"] > 0


def test_ctrl_c_keeps_the_log_whole_and_says_how_to_go_on(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    work = [f"matmul m={m} n=64 k=64" for m in range(60, 72)]  # one alone may be at the roofline at once
    command = ["tune", *work, "--log", str(log), "--trials", "100000"]
    child = subprocess.Popen(
        [sys.executable, "-m", "tvmops", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to workers and linkers too
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert errors.splitlines() == [
        f"tvmops: stopped; {log} holds every finished trial; to go on: tvmops {shlex.join(command)}"
    ]
    assert log.read_bytes().endswith(b"\n")
    assert all(each.status in ("ok", "slow") for each in read_log(log))
