"""Verify a bundle's kernels once each under compute-sanitizer, in many processes at a time."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tvmops.measure.bundle.content import Bundle
from tvmops.measure.bundle.device import Call, Device
from tvmops.measure.bundle.problem import Problem
from tvmops.workloads import Workload

TOOLS = ("memcheck", "racecheck", "synccheck")
_OPTIONS = (
    "--kernel-name=kernel_substring=main_kernel",  # what TVM calls its kernels; PyTorch's are not looked at
    "--error-exitcode=9",
    "--show-backtrace=no",
    "--print-limit=4",
)
_CHECKED = "checked "  # begins the line of a candidate


def sanitize(folder: Path, count: int, jobs: int, seconds: float) -> Iterator[tuple[str, str]]:
    """Yield a tool and what it found, or "", for each part of the `count` candidates in `folder`."""
    parts = max(1, jobs // len(TOOLS))
    deadline = time.monotonic() + seconds
    work = [(tool, range(part, count, parts)) for part in range(parts) for tool in TOOLS]
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda task: (task[0], _findings(folder, task[0], task[1], deadline)), work)


def _findings(folder: Path, tool: str, numbers: Sequence[int], deadline: float) -> str:
    """Return what `tool` says of the candidates, where that is not nothing; go on past one that ends it."""
    # each array in memory of its own, whose end is seen
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONUNBUFFERED": "1"}
    found = ""
    while numbers and time.monotonic() < deadline:
        chosen = ",".join(map(str, numbers))
        command = [sys.executable, str(folder / "run.py"), f"--check={chosen}"]
        code, said = _run(["compute-sanitizer", "--tool", tool, *_OPTIONS, *command], environment, deadline)
        if code == 0:
            break
        found += f"ended with {code}:\n{said}"
        checked = sum(line.startswith(_CHECKED) for line in said.splitlines())
        numbers = numbers[checked + 1 :]
    return found


def _run(command: Sequence[str], environment: Mapping[str, str], deadline: float) -> tuple[int, str]:
    """Return the exit code of `command`, ended at the deadline, and what it said."""
    out = subprocess.PIPE
    process = subprocess.Popen(
        command, env=environment, stdout=out, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        left = None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())
        said, _ = process.communicate(timeout=left)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
    return process.returncode, said


def check(
    bundle: Bundle, numbers: Sequence[int], device: Device, kernel: Callable[[str], Call]
) -> Iterator[tuple[str, str]]:
    """Verify candidates, by their place in the bundle; yield a line of each, and what is wrong, or "".

    `kernel` loads the one of a library.
    """
    problem = None
    for entry in (bundle.entries[number] for number in numbers):
        complaint = ""
        try:
            if problem is None or str(problem.workload) != entry.workload:
                problem = Problem(Workload.parse(entry.workload), device, bundle)
            complaint = problem.check(kernel(entry.library))[1]
        except Exception as failure:  # the next may be right
            complaint = f"{type(failure).__name__}: {failure}"[:500]
        yield f"{_CHECKED}{entry.workload}, {entry.key}: {complaint or 'right'}", complaint
