"""A bundle for this very machine: made, run by its own script, imported, made again."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tvmops.errors import ArgumentError, BundleError
from tvmops.measure.bundle.content import FILE, RESULTS, Bundle, read_results
from tvmops.measure.bundle.on_cpu import Cpu
from tvmops.measure.bundle.sanitize import TOOLS, sanitize
from tvmops.measure.bundle.work import POISONED, Run
from tvmops.records import read_log
from tvmops.runtime.backend import load_backend
from tvmops.schedules import templates_for
from tvmops.targets import target
from tvmops.tuner.bundles import _shared, import_bundle, make_bundle
from tvmops.workloads import Workload, workload

HERE = target("native")
W = workload("matmul", m=24, n=40, k=16)


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    """Run the bundle as its reader would: from elsewhere, without this package on the path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(folder / "run.py"), *arguments]
    done = subprocess.run(
        command, env=environment, cwd=folder.parent, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "b"
    make_bundle([W], HERE, folder, trials=3)
    return folder


@pytest.fixture(scope="module")
def ran(made: Path) -> Path:
    """The bundle after its run, one of its kernels broken beforehand."""
    broken = Bundle.read(made).entries[-1]
    (made / broken.library).write_bytes(b"no library")
    run(made)
    return made


def test_a_bundle_holds_the_default_and_what_the_strategy_proposes(made: Path) -> None:
    bundle = Bundle.read(made)
    assert len(bundle.entries) == 3 and len({entry.key for entry in bundle.entries}) == 3
    assert [entry.default for entry in bundle.entries] == [True, False, False]
    assert all((made / entry.library).is_file() for entry in bundle.entries)
    assert not (made / "tvmops" / "schedules").exists()


def test_running_it_verifies_times_and_compares(ran: Path) -> None:
    results = read_results(ran)
    search = [result for result in results if result.stage == "search"]
    assert [result.status for result in search] == ["ok", "ok", "crash"]
    assert all(result.error is not None and len(result.seconds) >= 1 for result in search[:2])
    finals = [result for result in results if result.stage == "final"]
    assert {result.key for result in finals} == {result.key for result in search[:2]}
    assert all(len(result.seconds) == 9 for result in finals)


def test_what_was_measured_is_not_measured_again(ran: Path) -> None:
    before = (ran / RESULTS).read_text()
    run(ran)
    assert (ran / RESULTS).read_text() == before


def test_a_result_cut_short_is_left_out(ran: Path, tmp_path: Path) -> None:
    whole = (ran / RESULTS).read_text()
    (tmp_path / RESULTS).write_text(whole + whole[: len(whole) // 3].splitlines()[-1][:40])
    assert read_results(tmp_path) == read_results(ran)


def test_its_results_become_records_once_and_the_next_round_knows_them(ran: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert import_bundle(ran, log) == 5
    assert import_bundle(ran, log) == 0
    records = read_log(log)
    assert [record.status for record in records if record.stage == "search"] == ["ok", "ok", "crash"]
    assert sorted(r.rank for r in records if r.stage == "final" and r.rank is not None) == [0, 1]
    assert all(record.workload == str(W) and record.target == HERE.name for record in records)
    known = {record.config_key for record in records}
    again = make_bundle([W], HERE, tmp_path / "next", log, trials=2)
    fresh = [entry for entry in again.entries if json.dumps(dict(entry.config), sort_keys=True) not in known]
    assert len(fresh) == 2 and any(entry.default for entry in again.entries)


SANITIZER = """#!/bin/sh
while [ "$1" != {python} ]; do shift; done
exec "$@"
"""


@pytest.fixture
def sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that finds nothing."""
    stub = tmp_path / "compute-sanitizer"
    stub.write_text(SANITIZER.format(python=sys.executable))
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


DYING = """
import sys
for number in sys.argv[1].removeprefix("--check=").split(","):
    if number in ("2", "4"):
        raise SystemExit(5)
    print("checked", number)
raise SystemExit(5 * (number == "6"))
"""


@pytest.mark.usefixtures("sanitizer")
def test_each_candidate_is_verified_under_each_tool_of_a_sanitizer(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(made, folder)
    broken, right, third = Bundle.read(folder).entries
    shutil.copy(folder / right.library, folder / third.library)  # the fixture's may be broken
    (folder / broken.library).write_bytes(b"no library")
    said = run(folder, "--sanitize", "3", code=1)
    assert said.splitlines()[-1] == "compute-sanitizer, 3 candidates: 0 of 3 parts without findings"
    assert [said.count(f"{tool} ended with 1:") for tool in TOOLS] == [1, 1, 1]
    assert said.count(f"checked {W}, {broken.key}: RuntimeError: ") == 3
    assert said.count(f"checked {W}, {right.key}: right") == 3


@pytest.mark.usefixtures("sanitizer")
def test_a_candidate_that_ends_its_process_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(DYING)
    found = list(sanitize(tmp_path, 7, 6, math.inf))
    assert [tool for tool, _ in found] == [*TOOLS, *TOOLS]
    evens = "ended with 5:\nchecked 0\nended with 5:\nended with 5:\nchecked 6\n"
    assert [said for _, said in found] == [evens] * 3 + [""] * 3


def test_without_trials_it_holds_the_winner_alone(ran: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    unknown = workload("matmul", m=25, n=40, k=16)
    import_bundle(ran, log)
    known, other = make_bundle([W, unknown], HERE, tmp_path / "next", log, trials=0).entries
    (winner,) = [r for r in read_log(log) if r.rank == 0]
    assert (known.template, known.config_key) == (winner.template, winner.config_key)
    assert (other.workload, other.default) == (str(unknown), True)


class Hot(Cpu):
    """Tells what was asked of it; its clock falls with each call."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float]] = []
        self.clock_megahertz = 2000.0

    def clock(self, call: Any, sets: Any) -> Any:
        name, run = ("peer" if call is product else "kernel"), super().clock(call, sets)

        def timed(seconds: float) -> float:
            self.asked.append((name, seconds))
            if seconds < 1:
                return float(run(1e-6)) + (1.0 if name == "peer" else 0.0)
            time.sleep(0.15)  # as long as it takes to be asked for the clock
            self.clock_megahertz -= 10
            return 1.0 if name == "kernel" else 1.5

        return timed

    def megahertz(self) -> float:
        return self.clock_megahertz

    def peers(self, workload: Workload) -> dict[str, Any]:
        return {"peer": product, "copy": lambda a, b, c: None}


def product(a: Any, b: Any, c: Any) -> None:
    c[...] = a @ b


class Broken(Hot):
    """No longer computes after its peer was called."""

    is_broken = False

    def clock(self, call: Any, sets: Any) -> Any:
        if call is product:
            self.is_broken = True
            raise RuntimeError("an illegal address")
        return super().clock(call, sets)

    def poison(self, workload: Workload, expected: Any) -> Any:
        assert not self.is_broken
        return super().poison(workload, expected)


def test_a_peer_that_breaks_the_device_costs_itself_alone(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(made, folder)
    (folder / RESULTS).unlink(missing_ok=True)
    load_backend(folder)
    bundle = Bundle.read(folder)
    codes = [Run(folder, bundle, math.inf, Broken()).all() for _ in range(3)]
    assert codes == [POISONED, 0, 0]
    results = read_results(folder)
    skipped = [(r.key, r.detail) for r in results if r.status == "skipped"]
    assert skipped == [("peer", "RuntimeError: an illegal address")]
    right = {r.key for r in results if (r.stage, r.status) == ("search", "ok")}
    assert {r.key for r in results if (r.stage, r.status) == ("final", "ok")} == right | {"copy"}


def test_the_best_two_are_timed_for_seconds_by_turns(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(made, folder)
    (folder / RESULTS).unlink(missing_ok=True)
    load_backend(folder)
    for turns in (3, 0):  # the second time, all is known
        device = Hot()
        assert Run(folder, Bundle.read(folder), math.inf, device, sustained=12.0).all() == 0
        assert [name for name, seconds in device.asked if seconds >= 1] == ["kernel", "peer"] * turns
    kernel, peer = [r for r in read_results(folder) if r.stage == "sustained"]
    assert (kernel.seconds, peer.key, peer.seconds) == ([1.0, 1.0], "peer", [1.5, 1.5])
    assert len(kernel.megahertz) == 2 and max(kernel.megahertz) < 2000
    log = tmp_path / "log.jsonl"
    import_bundle(folder, log)
    (winner,) = [record for record in read_log(log) if record.sustained_seconds]
    assert f"{winner.template} {winner.config_key}" == kernel.key
    assert winner.sustained_seconds == (1.0, 1.0) and len(winner.sustained_megahertz) == 2


def test_a_machine_that_lacks_something_is_told(made: Path, tmp_path: Path) -> None:
    bundle = dataclasses.replace(Bundle.read(made), needs=("sm_90a", "avx1024"))
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "tvmops").symlink_to(made / "tvmops")
    (folder / "run.py").write_text((made / "run.py").read_text())
    bundle.write(folder)
    done = subprocess.run([sys.executable, str(folder / "run.py")], capture_output=True, text=True)
    assert done.returncode == 1 and "avx1024" in done.stderr


def test_a_machine_without_the_runtime_is_told(made: Path) -> None:
    command = [sys.executable, "-S", str(made / "run.py")]  # no site-packages
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "needs numpy and apache-tvm-ffi" in done.stderr
    assert "Traceback" not in done.stderr


def test_refusals(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="does not exist yet"):
        make_bundle([W], HERE, made)
    with pytest.raises(ArgumentError, match="at least 0"):
        make_bundle([W], HERE, tmp_path / "new", trials=-1)
    with pytest.raises(BundleError, match="can't be read"):
        Bundle.read(tmp_path)
    (tmp_path / FILE).write_text('{"schema": 99}')
    with pytest.raises(BundleError, match="schema 99"):
        Bundle.read(tmp_path)
    (tmp_path / FILE).write_text('{"schema": 1')
    with pytest.raises(BundleError, match="no whole"):
        Bundle.read(tmp_path)


def test_workloads_share_what_has_the_same_code() -> None:
    gpu = target("nvidia-h200")
    big, small = (workload("matmul", m=m, n=4096, k=4096, dtype="bfloat16") for m in (4096, 16))
    template = templates_for(big, gpu)[0]
    proposals = [(w, template, template.default(w, gpu)) for w in (big, small)]
    shared = _shared(proposals, gpu, past=[], most=4)
    # The tile of many rows makes no sense for few; that for few is legal for many.
    assert (small, template, template.default(big, gpu)) not in shared
    assert all(config in template.space(w, gpu) for w, _, config in shared)

    def on_a_cpu(m: int) -> tuple[Workload, object, object]:
        work = workload("matmul", m=m, n=64, k=64)
        cpu = templates_for(work, HERE)[0]
        return work, cpu, cpu.default(work, HERE)

    assert _shared([on_a_cpu(8), on_a_cpu(16)], HERE, past=[], most=4) == []  # type: ignore[list-item]
