"""`load` a library folder; `Library` answers calls on it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tvmops.errors import (
    ArgumentError,
    CallError,
    LibraryDamagedError,
    LibraryTargetError,
)
from tvmops.machine import missing_features, this_machine
from tvmops.manifest import Manifest
from tvmops.runtime import backend
from tvmops.runtime.arrays import as_argument, as_output, device_of, new_output, overlap
from tvmops.runtime.calls import CALLS, Call
from tvmops.runtime.dispatch import Dispatcher, Explanation
from tvmops.runtime.known import Key
from tvmops.runtime.operators import Operators
from tvmops.signatures import SIGNATURES
from tvmops.workloads import Workload


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
    if manifest.device == "cuda":
        backend.load_cuda_backend(folder)
    return Library(folder, manifest)


class Library(Operators):
    """The kernels of one library folder. Calls are thread-safe.

    Inputs are NumPy arrays, torch tensors on the CPU, or anything with DLPack; the result
    is a torch tensor where the first input is one, else a NumPy array. Strided inputs are
    copied. A shape that was not tuned is answered by a generic kernel, which `misses`
    counts and a warning names once.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        super().__init__()
        self.path = folder
        self.manifest = manifest
        module = backend.load_kernels((folder / manifest.module).resolve())
        functions = {entry.function: module[entry.function] for entry in manifest.kernels}
        self._dispatcher = Dispatcher(str(folder), manifest, functions.__getitem__)
        self._kernels: dict[Workload, Callable[..., None]] = {}

    def explain(self, op: str, *arrays: Any, **attributes: Any) -> Explanation:
        """Say which kernel answers a call, why, its measured time and its error bound.

        Parameters
        ----------
        op
            An op's name, followed by the arguments of a call; or a workload's text alone.
        """
        if not arrays:
            return self._dispatcher.explain(Workload.parse(op))
        if op not in CALLS:
            expected = "one of " + ", ".join(CALLS)
            raise ArgumentError(argument="op", value=op, expected=expected)
        return self._dispatcher.explain(self._answerable(CALLS[op](*arrays, **attributes)).workload)

    def misses(self) -> dict[str, int]:
        """Return the workloads that generic kernels answered, and how often."""
        return self._dispatcher.misses()

    def set_threads(self, count: int) -> None:
        """Run kernels of this process on `count` threads. The default is all physical cores.

        $TVMOPS_NUM_THREADS, else $OMP_NUM_THREADS, sets the default before a process starts.
        """
        backend.set_threads(count)

    def _answerable(self, call: Call) -> Call:
        """Return `call`, or the one to make instead where no kernel answers it."""
        if call.otherwise is None or self._dispatcher.answers(call.workload):
            return call
        instead = call.otherwise()
        return instead if self._dispatcher.answers(instead.workload) else call

    def _answer(
        self, key: Key, arrays: tuple[Any, ...], call: Call, outs: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        call = self._answerable(call)
        made = self._compute(call, outs)
        if key and not call.is_empty and self.manifest.device == "cpu":
            self._known.learn(key, arrays, call, self._kernels[call.workload])
        return made

    def _check_devices(self, call: Call, outs: tuple[Any, ...]) -> None:
        """Refuse arrays that lie elsewhere than this library's kernels and the first array."""
        op, wanted = call.workload.op, self.manifest.device
        names = [spec.name for spec in SIGNATURES[op].inputs(call.workload)]
        given = [*zip(names, call.inputs), *zip(_out_names(outs), outs)]
        first = device_of(call.inputs[0])
        for name, array in given:
            found = first if array is None else device_of(array)
            if not found.startswith(wanted):
                expected = "a tensor on the CPU" if wanted == "cpu" else "a torch tensor on a CUDA device"
                raise CallError(op=op, argument=name, value=f"on device {found}", expected=expected)
            if found != first:
                raise CallError(op=op, argument=name, value=f"on device {found}", expected=f"device {first}")

    def _compute(self, call: Call, outs: tuple[Any, ...]) -> tuple[Any, ...]:
        op, like = call.workload.op, call.inputs[0]
        signature = SIGNATURES[op]
        self._check_devices(call, outs)
        made = tuple(
            new_output(like, shape, spec.dtype)
            if out is None
            else as_output(op, name, out, shape, spec.dtype)
            for name, out, spec, shape in zip(_out_names(outs), outs, call.outputs, call.shapes)
        )
        specs = signature.inputs(call.workload)
        named = [(spec.name, array) for spec, array in zip(specs, call.inputs)]
        for name, given, out in zip(_out_names(outs), outs, made):
            if given is not None:
                _refuse_overlap(op, name, out, named)
            named.append((name, out))
        if call.is_empty:
            for out in made:
                out[...] = 0
            return made
        kernel = self._kernels.get(call.workload)
        if kernel is None:
            kernel = self._kernels[call.workload] = self._dispatcher.find(call.workload)
        inputs = [as_argument(array, spec.dtype) for array, spec in zip(call.inputs, specs)]
        outputs = [
            as_argument(array.reshape(spec.shape), spec.dtype) for array, spec in zip(made, call.outputs)
        ]
        kernel(*inputs, *call.scalars, *outputs)
        return made


def _out_names(outs: tuple[Any, ...]) -> tuple[str, ...]:
    return ("out",) if len(outs) == 1 else tuple(f"out[{index}]" for index in range(len(outs)))


def _refuse_overlap(op: str, name: str, out: Any, others: list[tuple[str, Any]]) -> None:
    for other, array in others:
        if overlap(out, array):
            value = f"an array that shares memory with '{other}'"
            raise CallError(op=op, argument=name, value=value, expected="memory of its own")


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
