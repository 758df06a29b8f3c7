"""`load` a library folder; `Library` answers calls on it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy import ndarray as _ndarray

from tvmops.errors import (
    ArgumentError,
    CallError,
    LibraryDamagedError,
    LibraryTargetError,
)
from tvmops.machine import missing_features, this_machine
from tvmops.manifest import Manifest
from tvmops.runtime import backend
from tvmops.runtime.arrays import as_argument, as_input, as_output, new_output, overlap
from tvmops.runtime.dispatch import Dispatcher, Explanation, fits_index
from tvmops.workloads import Workload, workload


def load(path: str | os.PathLike[str]) -> Library:
    """Load the library that `tvmops export` wrote to `path`. Needs no compiler.

    Nothing of it is executed before its files are checked against their digests and its
    target against this machine.

    Raises
    ------
    LibraryMissingError, LibraryDamagedError, LibraryVersionError
        The folder or a file of it is not there, was cut short or altered, or is of
        another schema.
    LibraryTargetError
        It was built for another machine.
    RuntimeMissingError
        There is no TVM runtime for its kernels.
    """
    folder = Path(path)
    manifest = Manifest.read(folder)
    _check_machine(folder, manifest)
    _check_files(folder, manifest)
    backend.load_backend(folder)
    return Library(folder, manifest)


class Library:
    """The kernels of one library folder. Calls are thread-safe.

    Inputs are NumPy arrays, torch tensors on the CPU, or anything with DLPack; the result
    is a torch tensor where the first input is one, else a NumPy array. Strided inputs are
    copied. A shape that was not tuned is answered by a generic kernel, which `misses`
    counts and a warning names once.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.path = folder
        self.manifest = manifest
        module = backend.load_kernels((folder / manifest.module).resolve())
        functions = {entry.function: module[entry.function] for entry in manifest.kernels}
        self._dispatcher = Dispatcher(str(folder), manifest, functions.__getitem__)
        self._matmuls: dict[tuple[Any, Any], Callable[..., None]] = {}

    def matmul(self, a: Any, b: Any, out: Any = None) -> Any:
        """Return a @ b.

        Parameters
        ----------
        a, b
            Arrays of shape (m, k) and (k, n), float32.
        out
            Where to write the result, of shape (m, n): dense, not overlapping an input.
            Without it a new array is made.

        Raises
        ------
        CallError, CallTypeError
            An argument does not fit; the message names it.
        """
        if out is not None:
            # Kernels check shapes, dtypes, strides and overlap of all arguments before they
            # touch memory, so a known pair of shapes goes straight to its kernel. What a
            # kernel refuses, and what may need a gradient, takes the careful way.
            plain = type(a) is type(b) is type(out) is _ndarray
            kernel = self._matmuls.get((a.shape, b.shape)) if plain else None
            if kernel is not None:
                try:
                    kernel(a, b, out)
                    return out
                except (ValueError, TypeError, BufferError):
                    pass
        return self._matmul(a, b, out)

    def explain(self, op: str, *arrays: Any) -> Explanation:
        """Say which kernel answers a call, why, its measured time and its error bound.

        Parameters
        ----------
        op
            An op's name, followed by the arrays of a call; or a workload's text alone.
        """
        if not arrays:
            return self._dispatcher.explain(Workload.parse(op))
        if op != "matmul":
            raise ArgumentError(argument="op", value=op, expected="'matmul'")
        if len(arrays) != 2:
            raise ArgumentError(argument="arrays", value=f"{len(arrays)} arrays", expected="a and b")
        return self._dispatcher.explain(_matmul_workload(*_matmul_inputs(*arrays)))

    def misses(self) -> dict[str, int]:
        """Return the workloads that generic kernels answered, and how often."""
        return self._dispatcher.misses()

    def set_threads(self, count: int) -> None:
        """Run kernels of this process on `count` threads. The default is all physical cores.

        $TVMOPS_NUM_THREADS, else $OMP_NUM_THREADS, sets the default before a process starts.
        """
        backend.set_threads(count)

    def _matmul(self, a: Any, b: Any, out: Any) -> Any:
        op, dtype = "matmul", "float32"
        a, b = _matmul_inputs(a, b)
        (m, k), n = a.shape, b.shape[1]
        if out is None:
            out = new_output(a, (m, n), dtype)
        else:
            out = as_output(op, out, (m, n), dtype)
            for name, array in (("a", a), ("b", b)):
                if overlap(out, array):
                    raise CallError(
                        op=op,
                        argument="out",
                        value=f"an array that shares memory with '{name}'",
                        expected="memory of its own",
                    )
        if m == 0 or n == 0 or k == 0:
            out[...] = 0
            return out
        kernel = self._matmuls.get((a.shape, b.shape))
        if kernel is None:
            if not fits_index(m * k, k * n, m * n):
                raise CallError(
                    op=op,
                    argument="a, b",
                    value=f"of m={m} n={n} k={k}",
                    expected="fewer than 2**31 elements an array",
                )
            kernel = self._dispatcher.find(_matmul_workload(a, b))
            self._matmuls[a.shape, b.shape] = kernel
        kernel(as_argument(a), as_argument(b), out)
        return out


def _matmul_inputs(a: Any, b: Any) -> tuple[Any, Any]:
    """Return `a` and `b` as kernels read them, once they are known to fit each other."""
    op, dtype = "matmul", "float32"
    a, b = as_input(op, "a", a, dtype), as_input(op, "b", b, dtype)
    for name, array in (("a", a), ("b", b)):
        if array.ndim != 2:
            raise CallError(
                op=op, argument=name, value=f"of shape {tuple(array.shape)}", expected="two dimensions"
            )
    if a.shape[1] != b.shape[0]:
        expected = f"{a.shape[1]} rows, the columns of a"
        raise CallError(op=op, argument="b", value=f"of shape {tuple(b.shape)}", expected=expected)
    return a, b


def _matmul_workload(a: Any, b: Any) -> Workload:
    return workload("matmul", m=a.shape[0], n=b.shape[1], k=a.shape[1], dtype="float32")


def _check_machine(folder: Path, manifest: Manifest) -> None:
    machine = this_machine()
    missing = [manifest.arch] if manifest.arch != machine.arch else missing_features(manifest.needs, machine)
    if missing:
        raise LibraryTargetError(
            path=folder, target=manifest.target, missing=", ".join(missing), machine=machine.cpu
        )


def _check_files(folder: Path, manifest: Manifest) -> None:
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise LibraryDamagedError(path=folder, file=name, detail="is missing")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise LibraryDamagedError(path=folder, file=name, detail="was cut short or altered")
