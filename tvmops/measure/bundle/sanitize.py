"""Verify a bundle's kernels once each under compute-sanitizer, in many processes at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tvmops.measure.bundle.content import Bundle
from tvmops.measure.bundle.device import Call, Device
from tvmops.measure.bundle.problem import Problem
from tvmops.workloads import Workload

TOOLS = ("memcheck", "racecheck", "synccheck")
_OWN = "kernel_substring=main_kernel"  # what TVM calls its kernels; PyTorch's are not looked at
_FOUND = 9  # exit code


def sanitize(folder: Path, jobs: int, seconds: float) -> Iterator[tuple[str, int, str]]:
    """Yield a tool, an exit code and what was said, once for each part of the bundle at `folder`."""
    parts = max(1, jobs // len(TOOLS))
    deadline = time.monotonic() + seconds
    work = [(tool, f"{part}/{parts}") for part in range(parts) for tool in TOOLS]

    def one(task: tuple[str, str]) -> tuple[str, int, str]:
        tool, part = task
        options = ["--tool", tool, "--kernel-name", _OWN, f"--error-exitcode={_FOUND}", "--print-limit=8"]
        command = [sys.executable, str(folder / "run.py"), f"--check={part}"]
        # each array in memory of its own, whose end is seen
        environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONUNBUFFERED": "1"}
        try:
            done = subprocess.run(
                ["compute-sanitizer", *options, *command],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=max(1.0, min(deadline - time.monotonic(), 1e6)),
            )
        except subprocess.TimeoutExpired as late:
            said = late.stdout or b""
            return tool, -9, said.decode() if isinstance(said, bytes) else said
        return tool, done.returncode, done.stdout

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(one, work)


def check(
    bundle: Bundle, part: str, device: Device, kernel: Callable[[str], Call]
) -> Iterator[tuple[str, str]]:
    """Verify the candidates of a part, "1/5" for one of five: yield each, and what is wrong with it, or "".

    `kernel` loads the one of a library.
    """
    number, parts = map(int, part.split("/"))
    own = {id(entry) for entry in bundle.entries[number::parts]}
    for text, entries in bundle.workloads().items():
        chosen = [entry for entry in entries if id(entry) in own]
        if chosen:
            problem = Problem(Workload.parse(text), device, bundle)
            for entry in chosen:
                try:
                    complaint = problem.check(kernel(entry.library))[1]
                except Exception as failure:  # the next may be right
                    complaint = f"{type(failure).__name__}: {failure}"[:500]
                yield f"{text}, {entry.key}", complaint
