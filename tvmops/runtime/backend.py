"""The TVM runtime that kernels call for threads and workspaces, and its thread count.

Kernels reach the runtime through slots that are filled when their module is loaded; the
runtime must be in the process before. A slot left empty is a crash without a word.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import tvm_ffi

from tvmops.errors import ArgumentError, RuntimeMissingError
from tvmops.machine import this_machine

RUNTIME_FILE = "libtvm_runtime.so"
_THREADS_VARIABLES = ("TVMOPS_NUM_THREADS", "TVM_NUM_THREADS", "OMP_NUM_THREADS")
_BIG_CORES = 1  # TVM's name for "use the fastest cores first"


def load_backend(folder: Path | None = None) -> None:
    """Load the TVM runtime into this process, unless it is there already.

    It comes from an installed apache-tvm where there is one, since two copies in one
    process would clash; otherwise from the library's own `folder`.

    Raises
    ------
    RuntimeMissingError
        Neither has it.
    """
    if _is_loaded():
        return
    places = [place for place in (_installed_runtime(), folder and folder / RUNTIME_FILE) if place]
    for path in places:
        if path.is_file():
            # TVM's pool reads both when its first worker starts. It would take half of the
            # cores that it sees (it assumes hyper-threads); and it would bind workers to
            # cores, and the caller with them: then two threads often share one core.
            os.environ["TVM_NUM_THREADS"] = str(default_threads())
            os.environ.setdefault("TVM_BIND_THREADS", "0")
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
            return
    raise RuntimeMissingError(path=folder, file=RUNTIME_FILE)


def load_kernels(path: Path) -> Any:
    """Load a module of kernels; `module[name]` is a kernel."""
    return tvm_ffi.load_module(str(path))


def default_threads() -> int:
    """Return $TVMOPS_NUM_THREADS, else TVM's or OpenMP's variable, else all physical cores."""
    for variable in _THREADS_VARIABLES:
        value = os.environ.get(variable, "")
        if value.isdecimal() and int(value) > 0:
            return int(value)
    return this_machine().cores


def set_threads(count: int) -> None:
    """Make kernels of this process run on `count` threads, the calling one included."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ArgumentError(argument="count", value=count, expected="an integer of at least 1")
    os.environ["TVM_NUM_THREADS"] = str(count)  # for Python threads that have no pool yet
    tvm_ffi.get_global_func("runtime.config_threadpool")(_BIG_CORES, count)


def _is_loaded() -> bool:
    return (
        "tvm" in sys.modules
        or tvm_ffi.get_global_func("runtime.config_threadpool", allow_missing=True) is not None
    )


def _installed_runtime() -> Path | None:
    """Return the runtime of an installed apache-tvm, without importing it."""
    spec = importlib.util.find_spec("tvm")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "lib" / RUNTIME_FILE
