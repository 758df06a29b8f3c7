"""What children of the worker tests do. A request is a tuple: a name, and its arguments."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tvmops.measure.limits import limit_memory

_hoard: list[bytearray] = []


def setup() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def setup_that_fails() -> None:
    raise ImportError("no module of that name")


def setup_that_dies() -> None:
    sys.stderr.write("out of luck\n")
    sys.stderr.flush()
    os.abort()


def setup_that_dies_once() -> None:
    marker = Path(os.environ["MARKER"])
    if not marker.exists():
        marker.touch()
        os._exit(1)


def setup_with_little_memory() -> None:
    limit_memory(0.02)


def handle(request: tuple[Any, ...]) -> Any:
    name, *arguments = request
    return globals()[f"do_{name}"](*arguments)


def do_echo(value: Any) -> Any:
    return value


def do_pid() -> int:
    return os.getpid()


def do_group() -> tuple[int, list[int]]:
    """Start a process that outlives this one unless it is killed with it; return both ids."""
    child = subprocess.Popen(["sleep", "600"])
    return os.getpid(), [child.pid]


def do_signal(number: int) -> None:
    sys.stderr.write("last words\n")
    sys.stderr.flush()
    os.kill(os.getpid(), number)
    time.sleep(600)


def do_exit(code: int) -> None:
    sys.exit(code)


def do_sleep(seconds: float) -> None:
    time.sleep(seconds)


def do_stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def do_raise() -> None:
    raise ValueError("no good")


def do_babble(data: bytes) -> None:
    """Write to the socket what is no answer."""
    for descriptor in range(3, 64):
        try:
            is_socket = str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith("socket:")
        except OSError:
            continue
        if is_socket:
            os.write(descriptor, data)
    time.sleep(600)


def do_unpicklable() -> Any:
    return lambda: None


def do_hoard() -> None:
    while True:
        _hoard.append(bytearray(64 << 20))


def do_limits() -> tuple[int, int, int]:
    score = int(Path("/proc/self/oom_score_adj").read_text())
    core, largest_file = (resource.getrlimit(w)[0] for w in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE))
    return score, core, largest_file


def do_print_forever(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    while True:
        sys.stdout.write("x" * 4096 + "\n")
        sys.stdout.flush()
