"""Compile what `torch.compile` offers for a bundle's workloads before it is run, many at a time.

A process that compiles keeps one core busy and the GPU idle for seconds. Here many do so at once,
and only what inductor times as it chooses waits for its turn. Its choices and its kernels stay in
its caches (`$TORCHINDUCTOR_CACHE_DIR`), where the process that runs the bundle finds them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Timer

from tvmops.workloads import Workload

_THREADS = "TORCHINDUCTOR_COMPILE_THREADS"
_SLOWEST = ("matmul_fp8", "attention", "matmul_int8", "conv2d")  # first, lest all wait for one at the end
_LONGEST = 1e6  # seconds that a timer takes


def prepare(
    folder: Path, texts: Sequence[str], jobs: int, seconds: float, compiling: float
) -> dict[str, str]:
    """Compile for the workloads `texts`, `jobs` at a time; return what went wrong, by workload."""
    ranks = {op: rank for rank, op in enumerate(_SLOWEST)}
    ordered = sorted(texts, key=lambda text: ranks.get(text.split()[0], len(ranks)))
    with tempfile.TemporaryDirectory() as place:
        options = {"lock": Path(place) / "lock", "compile": compiling * jobs}  # it waits for the others
        arguments = [f"--{name}={value}" for name, value in options.items()]
        return spread(ordered, [sys.executable, str(folder / "run.py"), *arguments], jobs, seconds)


def spread(texts: Sequence[str], command: Sequence[str], jobs: int, seconds: float) -> dict[str, str]:
    """Have `jobs` processes that `serve` take `texts` in turn; return what went wrong, by text."""
    waiting: SimpleQueue[str] = SimpleQueue()
    for text in texts:
        waiting.put(text)
    workers = [_Worker(command) for _ in range(min(jobs, len(texts)))]
    deadline = time.monotonic() + seconds
    failures: dict[str, str] = {}

    def work(worker: _Worker) -> None:
        while True:
            try:
                text = waiting.get_nowait()
            except Empty:
                break
            late = time.monotonic() >= deadline
            failure = "the time was over" if late else worker.ask(text)
            if failure:
                failures[text] = failure
        worker.end()

    def stop() -> None:
        for worker in workers:
            worker.end()

    timer = Timer(min(seconds, _LONGEST), stop)
    timer.start()
    try:
        with ThreadPoolExecutor(len(workers)) as pool:
            list(pool.map(work, workers))
    finally:
        timer.cancel()
    return {text: failures[text] for text in texts if text in failures}


class _Worker:
    """A process that answers a line with a line; another one where it died."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[str] | None = None

    def ask(self, text: str) -> str:
        """Return what it says of `text`, or how it ended."""
        if self._process is None or self._process.poll() is not None:
            pipe, environment = subprocess.PIPE, {**os.environ, _THREADS: "1"}
            self._process = subprocess.Popen(
                self._command, stdin=pipe, stdout=pipe, text=True, env=environment
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(text, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        return str(json.loads(answer)) if answer else f"the worker ended with {self._process.wait()}"

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def serve(act: Callable[[Workload], None]) -> int:
    """Do `act` with each workload that comes on standard input; answer with what went wrong, or ""."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is no answer
    for line in sys.stdin:
        failure = ""
        try:
            act(Workload.parse(line.strip()))
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"[:500]
        print(json.dumps(failure), file=answers, flush=True)
    return 0
