"""What a worker process may take of the machine, so that a candidate can't take it all."""

from __future__ import annotations

import contextlib
import re
import resource
from pathlib import Path

_PROC = Path("/proc")
_LARGEST_FILE = 1 << 30  # bytes; a candidate that prints without end must not fill the disk


def limit_harm() -> None:
    """Write no core dump and no endless file, and be the first to go when memory runs out."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, _LARGEST_FILE)
    with contextlib.suppress(OSError):
        (_PROC / "self" / "oom_score_adj").write_text("1000")


def limit_memory(share: float) -> None:
    """Let this process take no more than `share` of the memory that is free now."""
    own = int((_PROC / "self" / "statm").read_text().split()[0]) * resource.getpagesize()
    free = 1024 * _count("meminfo", r"MemAvailable:\s+(\d+) kB", default=1 << 30)
    _limit(resource.RLIMIT_AS, own + int(share * free))


def kills_for_memory() -> int:
    """Count the processes that the kernel has killed so far because memory ran out."""
    return _count("vmstat", r"^oom_kill (\d+)", default=0)


def _limit(what: int, value: int) -> None:
    """Set a limit, or leave it where it is lower already."""
    _, hard = resource.getrlimit(what)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


def _count(file: str, pattern: str, default: int) -> int:
    try:
        found = re.search(pattern, (_PROC / file).read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) if found else default
