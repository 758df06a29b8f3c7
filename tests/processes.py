"""Looking at processes, for tests of who is still alive."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def is_running(pid: int) -> bool:
    """True unless the process is gone, or a zombie that waits for its parent."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def children(pid: int | None = None) -> set[int]:
    """Return the process ids of all children, zombies included."""
    tasks = Path(f"/proc/{pid or os.getpid()}/task")
    return {int(child) for path in tasks.glob("*/children") for child in path.read_text().split()}


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this did not come about in time"
        time.sleep(0.01)
