"""The counting worker: a library in; its error, and how often each of its blocks ran, out.

It runs under emulation, where a call costs what it costs: nothing here looks at a clock.
"""

from __future__ import annotations

import ctypes
import math
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tvmops.measure.arguments import Arguments
from tvmops.measure.candidate import Outcome, Problem
from tvmops.measure.failure import describe, tells_of_memory
from tvmops.runtime.backend import load_backend, load_kernels, ready_threads

OUT_VARIABLE = "TVMOPS_COUNTS"  # names the file that the plugin writes
RUNTIME_VARIABLE = "TVMOPS_ARM_RUNTIME"  # names the folder of the runtime, and the file there
_COUNT_FROM, _COUNT_TO = 0x74760, 0x74761  # as count.c has them


@dataclass(frozen=True)
class CountRequest:
    library: Path
    problem: Problem


@dataclass(frozen=True)
class Counted:
    """What became of one call; `raw` is what the plugin wrote, empty where the result is not right."""

    outcome: Outcome
    raw: bytes = b""


def setup() -> None:
    runtime = Path(os.environ[RUNTIME_VARIABLE])
    load_backend(runtime.parent, runtime.name)
    ready_threads()


_arguments = lru_cache(maxsize=1)(Arguments)
_library = ctypes.CDLL(None)


def handle(request: CountRequest) -> Counted:
    """Call the kernel once, counting, and judge what it did."""
    arguments = _arguments(request.problem, paged=True)
    try:
        kernel = load_kernels(request.library)["main"]
    except Exception as failure:
        return Counted(Outcome("compile", detail=describe(failure)))
    arguments.poison()
    begin, end = _code_of(request.library)
    given = arguments.all
    _library.syscall(_COUNT_FROM, ctypes.c_ulong(begin), ctypes.c_ulong(end))
    try:
        kernel(*given)
    except Exception as failure:
        detail = describe(failure)
        return Counted(Outcome("memory" if tells_of_memory(detail) else "crash", detail=detail))
    finally:
        _library.syscall(_COUNT_TO)
    error, complaint = arguments.judge()
    outcome = Outcome(
        "wrong" if complaint else "ok", error=error if math.isfinite(error) else None, detail=complaint
    )
    if complaint:
        arguments.restore()
        return Counted(outcome)
    return Counted(outcome, Path(os.environ[OUT_VARIABLE]).read_bytes())


def _code_of(library: Path) -> tuple[int, int]:
    """Return where the executable part of a loaded library begins and ends."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, mode, *_, name = line.split()
        if "x" in mode and name == str(library):
            begin, end = (int(each, 16) for each in place.split("-"))
            return begin, end
    raise RuntimeError(f"{library} is not loaded")
