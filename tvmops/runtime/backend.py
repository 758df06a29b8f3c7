"""The TVM runtime that kernels call for threads and workspaces, and its thread count.

Kernels reach the runtime through slots that are filled when their module is loaded; the
runtime must be in the process before. A slot left empty is a crash without a word.

TVM keeps a pool of threads for each Python thread that runs kernels, of a size that is
fixed when the pool is made; how many of the pool are used can change.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import threading
from pathlib import Path
from typing import Any

import tvm_ffi

from tvmops.errors import ArgumentError, RuntimeMissingError
from tvmops.machine import this_machine
from tvmops.warn import warn

RUNTIME_FILE = "libtvm_runtime.so"
CUDA_RUNTIME_FILE = "libtvm_runtime_cuda.so"
_THREADS_VARIABLES = ("TVMOPS_NUM_THREADS", "OMP_NUM_THREADS")
_RESET = "_ZN3tvm7runtime9threading15ResetThreadPoolEv"  # tvm::runtime::threading::ResetThreadPool()
_BIG_CORES = 1  # TVM's name for "use the fastest cores first"


class _Pool(threading.local):
    """What is known of the calling Python thread's pool."""

    wanted = 0  # how many threads it was last told to use; 0 before it is made
    is_stopped = False  # it was made anew without threads, since the process forked


_pool = _Pool()
_wanted = 0  # what `set_threads` said, or the default; 0 before it is known


def load_backend(folder: Path | None = None, file: str = RUNTIME_FILE) -> None:
    """Load the TVM runtime into this process, unless it is there already.

    It comes from an installed apache-tvm where there is one, since two copies in one
    process would clash; otherwise it is `file` in the library's own `folder`.

    Raises
    ------
    RuntimeMissingError
        Neither has it.
    """
    _prepare_pools()
    if _is_loaded():
        return
    places = [place for place in (_installed_runtime(), folder and folder / file) if place]
    for path in places:
        if path.is_file():
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
            return
    raise RuntimeMissingError(path=folder, file=file)


def load_cuda_backend(folder: Path | None = None) -> None:
    """Load TVM's CUDA runtime into this process; it needs the driver, and CUDA's runtime library.

    Raises
    ------
    RuntimeMissingError
        There is none, or it can't be loaded here.
    """
    if tvm_ffi.get_global_func("ffi.Module.load_from_bytes.cuda", allow_missing=True) is not None:
        return
    installed = _installed_runtime()
    places = [
        installed.with_name(CUDA_RUNTIME_FILE) if installed else None,
        folder and folder / CUDA_RUNTIME_FILE,
    ]
    for path in places:
        if path and path.is_file():
            _load_cudart()
            try:
                ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
                return
            except OSError as error:
                raise RuntimeMissingError(path=folder, file=f"{CUDA_RUNTIME_FILE} ({error})") from None
    raise RuntimeMissingError(path=folder, file=CUDA_RUNTIME_FILE)


def _load_cudart() -> None:
    """Load CUDA's runtime library where no search path has it: from PyPI's nvidia packages."""
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(place).glob("*/lib/libcudart.so.13")):
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
            return


def _prepare_pools() -> None:
    """Set what TVM reads when it makes a pool, and again when it starts a parallel loop.

    It would take half of the CPUs that it sees (it assumes hyper-threads), and bind workers
    to CPUs, and the caller with them: then two threads often share one.
    """
    os.environ["TVM_NUM_THREADS"] = str(most_threads())
    os.environ.setdefault("TVM_BIND_THREADS", "0")


def load_kernels(path: Path) -> Any:
    """Load a module of kernels; `module[name]` is a kernel."""
    return tvm_ffi.load_module(str(path))


def default_threads() -> int:
    """Return $TVMOPS_NUM_THREADS, else $OMP_NUM_THREADS, else all physical cores.

    More than there are CPUs is that many: threads of a pool wait in loops, in each other's way.
    """
    cpus = len(os.sched_getaffinity(0))
    for variable in _THREADS_VARIABLES:
        value = os.environ.get(variable, "").strip()
        if value.isdecimal() and int(value) > 0:
            if int(value) > cpus:
                warn(f"${variable} is {value}; kernels use {cpus} threads, as this process has {cpus} CPUs")
            return min(int(value), cpus)
        if value and variable == _THREADS_VARIABLES[0]:  # others read the other one, in forms of their own
            warn(f"${variable} is {value!r}; expected an integer of at least 1; it is ignored")
    return this_machine().cores


def set_threads(count: int) -> None:
    """Make kernels of this process run on `count` threads, the calling one included.

    Raises
    ------
    ArgumentError
        `count` is no number of CPUs that this process has.
    """
    global _wanted
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most_threads():
        expected = f"an integer from 1 to {most_threads()}, the CPUs of this process"
        raise ArgumentError(argument="count", value=count, expected=expected)
    _wanted = count
    ready_threads()


def most_threads() -> int:
    """Return how many threads a pool is made with, of which `set_threads` takes some."""
    return max(default_threads(), len(os.sched_getaffinity(0)))


def ready_threads() -> None:
    """Give the calling Python thread's pool the wanted size; to be called before a kernel."""
    if not _pool.wanted or _pool.wanted != _wanted:
        _configure()


def _configure() -> None:
    global _wanted
    _wanted = _pool.wanted = _wanted or default_threads()
    if _pool.is_stopped:
        _make_pool_anew(most_threads())
        _pool.is_stopped = False
    tvm_ffi.get_global_func("runtime.config_threadpool")(_BIG_CORES, _wanted)
    found = tvm_ffi.get_global_func("runtime.NumThreads")()
    if found < _wanted:
        reason = "TVM ran kernels before the library was loaded; load it first"
        warn(f"kernels use {found} of {_wanted} threads: {reason}")


def _stop_pool() -> None:
    """Make the calling thread's pool one without threads, before the process forks.

    Threads do not come along in a fork: a child would wait for them for ever when it computes, and
    abort when it joins them at its end. Parent and child make theirs when they next need them.
    """
    if _pool.wanted:
        _make_pool_anew(1)
        _pool.wanted, _pool.is_stopped = 0, True


def _make_pool_anew(threads: int) -> None:
    """Join the threads of the calling thread's pool and start others: one less, as the caller works too."""
    os.environ["TVM_NUM_THREADS"] = str(threads)
    ctypes.CDLL(None)[_RESET]()
    os.environ["TVM_NUM_THREADS"] = str(most_threads())


os.register_at_fork(before=_stop_pool)


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
