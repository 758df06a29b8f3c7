"""Run a bundle: verify and time its candidates, the results in a file as they come.

A worker process does it, workload by workload; a supervisor starts another one past a
candidate that crashes or hangs. What `results.jsonl` holds already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tvmops.gpu import runs
from tvmops.machine import this_machine
from tvmops.measure.bundle.content import Bundle, Result, append_result, read_results
from tvmops.measure.bundle.prepare import prepare, serve
from tvmops.measure.bundle.sanitize import check, sanitize
from tvmops.measure.bundle.work import MARKER, POISONED, STRETCH, Run, load, open_device

_SUSTAINED = 16.0  # seconds of all of a workload's
_STALL = 60.0  # seconds without a line from the worker
_COMPILING = 60.0  # of a peer


def main(folder: Path) -> int:
    """Run the bundle at `folder`; the arguments come from the command line."""
    parser = argparse.ArgumentParser(description="Verify and time the candidates of this bundle.")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after as many")
    parser.add_argument(
        "--compile",
        type=float,
        nargs="?",
        const=_COMPILING,
        default=0.0,
        metavar="SECONDS",
        help=f"torch.compile as a peer, too; given up after as many a workload ({_COMPILING:g})",
    )
    parser.add_argument(
        "--prepare",
        type=int,
        nargs="?",
        const=os.cpu_count(),
        metavar="JOBS",
        help="only compile what --compile would, JOBS at a time (one a core); a run of any bundle then "
        "finds it in PyTorch's caches",
    )
    parser.add_argument(
        "--sanitize",
        type=int,
        nargs="?",
        const=os.cpu_count(),
        metavar="JOBS",
        help="only verify each candidate under compute-sanitizer's memcheck, racecheck and synccheck, "
        "JOBS processes at a time (one a core)",
    )
    parser.add_argument("--check", help=argparse.SUPPRESS)
    parser.add_argument("--lock", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "--sustained",
        type=float,
        nargs="?",
        const=_SUSTAINED,
        default=0.0,
        metavar="SECONDS",
        help="then run the best kernel and the best peer by turns of "
        f"{STRETCH:g} s each, for as many a workload ({_SUSTAINED:g})",
    )
    arguments = parser.parse_args()
    if arguments.lock:
        return _serve_compiled(arguments.lock, arguments.compile)
    bundle = Bundle.read(folder)
    if arguments.worker:
        device = open_device(bundle.kind, folder, arguments.compile)
        return Run(folder, bundle, arguments.seconds, device, arguments.sustained).all()
    if arguments.check:
        return _check(folder, bundle, arguments.check)
    missing = [need for need in bundle.needs if need not in this_machine().features and not runs(need)]
    if missing:
        print(f"this machine lacks {', '.join(missing)}, which {bundle.target} needs", file=sys.stderr)
        return 1
    if arguments.prepare:
        return _prepare(folder, bundle, arguments.prepare, arguments.seconds, arguments.compile or _COMPILING)
    if arguments.sanitize:
        return _sanitize(folder, bundle, arguments.sanitize, arguments.seconds)
    return supervise(folder, bundle, arguments.seconds, arguments.compile, arguments.sustained)


def supervise(folder: Path, bundle: Bundle, seconds: float, compiling: float, sustained: float) -> int:
    """Start workers until all is done or the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        code, blamed = _watch(folder, left, compiling, sustained)
        if code == 0 or left <= 0:
            return _summary(folder, bundle)
        if blamed is None:
            print(f"the worker ended with {code} before it ran anything", file=sys.stderr)
            return 1
        _blame(folder, bundle, blamed, code)


def _blame(folder: Path, bundle: Bundle, blamed: tuple[str, str], code: int) -> None:
    """Write down what the worker died of, so that the next one passes over it."""
    workload, key = blamed
    known = {(r.key, r.stage) for r in read_results(folder) if r.workload == workload}
    own = any(entry.key == key for entry in bundle.workloads()[workload])
    stage = "search" if own and (key, "search") not in known else "final"
    stage = "sustained" if (key, "final") in known else stage
    if code != POISONED or stage == "search":  # else its crash is written already
        status, detail = "timeout" if code == -9 else "crash", f"the worker ended with {code}"
        append_result(folder, Result(workload, key, stage, status, detail=detail))


def _watch(
    folder: Path, seconds: float, compiling: float, sustained: float
) -> tuple[int, tuple[str, str] | None]:
    """Run one worker; return its exit code and what it was at."""
    limits = {"seconds": seconds, "compile": compiling, "sustained": sustained}
    options = [f"--{name}={value}" for name, value in limits.items()]
    command = [sys.executable, str(folder / "run.py"), "--worker", *options]
    worker = subprocess.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    marker, heard = folder / MARKER, time.monotonic()
    marker.unlink(missing_ok=True)
    seen = ""
    while worker.poll() is None:
        time.sleep(0.2)
        now = marker.read_text() if marker.is_file() else ""
        if now != seen:
            seen, heard = now, time.monotonic()
        if time.monotonic() - heard > _STALL + compiling:
            worker.kill()
    return worker.wait(), tuple(json.loads(seen)[:2]) if seen else None


def _prepare(folder: Path, bundle: Bundle, jobs: int, seconds: float, compiling: float) -> int:
    if bundle.kind != "cuda":
        print(f"torch.compile is a peer on GPUs alone, not on {bundle.target}", file=sys.stderr)
        return 1
    texts = list(bundle.workloads())
    failures = prepare(folder, texts, jobs, seconds, compiling)
    for text, failure in failures.items():
        print(f"{text}: {failure}")
    print(f"torch.compile is ready for {len(texts) - len(failures)} of {len(texts)} workloads")
    return 0


def _serve_compiled(lock: Path, compiling: float) -> int:
    """Be a worker of `prepare`."""
    from tvmops.measure.bundle.on_torch import TorchCuda
    from tvmops.measure.bundle.torch_compiled import choose_alone

    device = TorchCuda(compiling)
    choose_alone(lock)
    return serve(device.compile)


def _sanitize(folder: Path, bundle: Bundle, jobs: int, seconds: float) -> int:
    found = list(sanitize(folder, len(bundle.entries), jobs, seconds))
    for tool, findings in found:
        if findings:
            print(f"{tool} {findings}")
    clean = sum(not findings for _, findings in found)
    print(
        f"compute-sanitizer, {len(bundle.entries)} candidates: {clean} of {len(found)} parts without findings"
    )
    return int(clean < len(found))


def _check(folder: Path, bundle: Bundle, numbers: str) -> int:
    """Be a process of `sanitize`; what a sanitizer says of a candidate comes before its line."""
    device, complaints = open_device(bundle.kind, folder), []
    chosen = list(map(int, numbers.split(",")))
    for line, complaint in check(bundle, chosen, device, lambda library: load(folder / library)):
        print(line)
        complaints.append(complaint)
    return int(any(complaints))


def _summary(folder: Path, bundle: Bundle) -> int:
    results = read_results(folder)
    done = {(r.workload, r.key) for r in results if r.stage == "search"}
    counts: dict[str, int] = {}
    for result in results:
        counts[result.status] = counts.get(result.status, 0) + 1
    print(f"{len(done)} of {len(bundle.entries)} candidates:", counts)
    return 0
