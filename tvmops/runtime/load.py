"""`load` a library folder; `Library` answers calls on it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tvmops.errors import ArgumentError, CallError, LibraryDamagedError
from tvmops.machine import this_machine
from tvmops.manifest import FILE, Manifest, Variant
from tvmops.runtime import backend
from tvmops.runtime.archive import unpacked
from tvmops.runtime.arrays import aligned, as_argument, as_output, check_aligned, device_of, new_output
from tvmops.runtime.calls import CALLS, Call
from tvmops.runtime.dispatch import Dispatcher
from tvmops.runtime.explanation import Explanation
from tvmops.runtime.known import Key
from tvmops.runtime.operators import Operators
from tvmops.runtime.prepared import Prepared, prepared_call, refuse_overlap
from tvmops.runtime.variants import Choice, choose
from tvmops.runtime.workspace import kernel_of
from tvmops.signatures import SIGNATURES
from tvmops.suites import write_suite
from tvmops.workloads import Workload

_PLACES = {"cpu": "a tensor on the CPU", "cuda": "a torch tensor on a CUDA device"}


def load(path: str | os.PathLike[str], mask_features: Iterable[str] = ()) -> Library:
    """Load the library that `tvmops export` wrote to `path`, a folder or a zip file. Needs no compiler.

    Nothing of it is executed before its files are checked against their digests and its
    targets against this machine. The best of those that run here serves; see `Library.variants`.

    Parameters
    ----------
    path
        A zip file is unpacked once to the cache, $TVMOPS_CACHE or ~/.cache/tvmops.
    mask_features
        Features of this machine to do without, as shell patterns: ["avx512*"]. The
        environment variable TVMOPS_MASK_FEATURES names more, with commas between.

    Raises
    ------
    LibraryMissingError, LibraryDamagedError, LibraryVersionError
        The folder or a file of it is not there, was cut short or altered, or is of
        another schema.
    LibraryTargetError
        It was built for other machines.
    RuntimeMissingError
        There is no TVM runtime for its kernels.
    """
    folder = unpacked(Path(path)) if Path(path).is_file() else Path(path)
    manifest = Manifest.read(folder)
    _check_files(folder, manifest)
    choice = choose(folder, manifest, this_machine(), mask_features)
    for device, variant in choice.taken.items():
        backend.load_backend(folder, variant.runtime)
        if device == "cuda":
            backend.load_cuda_backend(folder)
    return Library(folder, manifest, choice)


class Library(Operators):
    """The kernels of one library folder. Calls are thread-safe.

    Inputs are NumPy arrays, torch tensors on the CPU, or anything with DLPack; the result
    is a torch tensor where the first input is one, else a NumPy array. Strided inputs are
    copied. A shape that was not tuned is answered by a generic kernel, which `misses`
    counts and a warning names once.
    """

    def __init__(self, folder: Path, manifest: Manifest, variants: Choice) -> None:
        super().__init__()
        self.path = folder
        self.manifest = manifest
        self.variants = variants  # which of the manifest's serve here, and why
        self._dispatchers = {device: self._open(variant) for device, variant in variants.taken.items()}
        self._kernels: dict[tuple[str, Workload], Callable[..., None]] = {}

    def _open(self, variant: Variant) -> Dispatcher:
        module = backend.load_kernels((self.path / variant.module).resolve())
        functions = {entry.function: kernel_of(module, entry.function) for entry in variant.kernels}
        return Dispatcher(str(self.path), variant, functions.__getitem__)

    def explain(self, op: str, *arrays: Any, **attributes: Any) -> Explanation:
        """Say which kernel answers a call, why, its measured time and its error bound.

        Parameters
        ----------
        op
            An op's name, followed by the arguments of a call; or a workload's text alone,
            which is explained for arrays on the CPU where a variant serves those.
        """
        if not arrays:
            return self._explain(min(self._dispatchers), Workload.parse(op))
        if op not in CALLS:
            expected = "one of " + ", ".join(CALLS)
            raise ArgumentError(argument="op", value=op, expected=expected)
        call = CALLS[op](*arrays, **attributes)
        self._check_devices(call, ())
        return self._explain(_device(call), self._answerable(call).workload)

    def _explain(self, device: str, workload: Workload) -> Explanation:
        explanation = self._dispatchers[device].explain(workload)
        target = self.variants.taken[device].target
        others = (f"variant {name}: {why}" for name, why in self.variants.reasons.items() if name != target)
        refused = (*explanation.refused, *others)
        return dataclasses.replace(explanation, variant=target, refused=refused)

    def prepare(self, op: str, *arrays: Any, out: Any = None, **attributes: Any) -> Prepared:
        """Return a call of `op` that is bound to its kernel, for loops that want no dispatch.

            step = lib.prepare("matmul", a, b, bias=bias)
            for a in batches:
                step(a, b, bias, out=c)

        Nothing is computed yet.

        Parameters
        ----------
        op
            An op's name, followed by the arguments of a call, or by arrays that are like them.
            They must be such as a kernel takes where they lie: dense, of the op's dtype.
        out
            If given, is checked now.

        Raises
        ------
        ArgumentError
            There is no such op.
        CallError, CallTypeError
            An argument does not fit, or would have to be copied; the message names it.
        NotInLibraryError
            No kernel answers such a call.
        """
        if op not in CALLS:
            raise ArgumentError(argument="op", value=op, expected="one of " + ", ".join(CALLS))
        call, given = prepared_call(op, arrays, attributes)
        self._check_devices(call, ())
        prepared = Prepared(call, given, self._kernel(_device(call), call.workload))
        if out is not None:
            prepared.check_out(tuple(given.values()), out)
        return prepared

    def _kernel(self, device: str, workload: Workload) -> Callable[..., None]:
        kernel = self._kernels.get((device, workload))
        if kernel is None:
            kernel = self._kernels[device, workload] = self._dispatchers[device].find(workload)
        return kernel

    def misses(self) -> dict[str, int]:
        """Return the workloads that generic kernels answered, most often first, and how often."""
        counts = sum((Counter(each.misses()) for each in self._dispatchers.values()), Counter[str]())
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def save_misses(self, path: str | os.PathLike[str]) -> None:
        """Write what generic kernels answered to a new file, for `tvmops tune --from-misses`.

        It is a suite, in which a workload weighs as much as it was called often.
        """
        write_suite(path, self.misses(), source=f"calls on the library {self.path}")

    def set_threads(self, count: int) -> None:
        """Run kernels of this process on `count` threads. The default is all physical cores.

        $TVMOPS_NUM_THREADS, else $OMP_NUM_THREADS, sets the default before a process starts.
        """
        backend.set_threads(count)

    def _tuned(self, op: str) -> Iterable[tuple[Workload, float]]:
        return (each for dispatcher in self._dispatchers.values() for each in dispatcher.tuned(op))

    def _answerable(self, call: Call) -> Call:
        """Return `call`, or the one to make instead where no kernel answers it."""
        if call.otherwise is None:
            return call
        dispatcher = self._dispatchers[_device(call)]
        if dispatcher.answers(call.workload):
            return call
        instead = call.otherwise()
        return instead if dispatcher.answers(instead.workload) else call

    def _answer(
        self, key: Key, arrays: tuple[Any, ...], call: Call, outs: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        self._check_devices(call, outs)
        call, device = self._answerable(call), _device(call)
        made = self._compute(call, outs, device)
        if key and not call.is_empty:
            self._known.learn(key, arrays, call, self._kernels[device, call.workload])
        return made

    def _check_devices(self, call: Call, outs: tuple[Any, ...]) -> None:
        """Refuse arrays that lie where no kernel of this library runs, or elsewhere than the first."""
        op, places = call.workload.op, {device: _PLACES[device] for device in sorted(self._dispatchers)}
        names = [spec.name for spec in SIGNATURES[op].inputs(call.workload)]
        given = [*zip(names, call.inputs), *zip(_out_names(outs), outs)]
        first = device_of(call.inputs[0])
        for name, array in given:
            found = first if array is None else device_of(array)
            if found.partition(":")[0] not in places:
                expected = " or ".join(places.values())
                raise CallError(op=op, argument=name, value=f"on device {found}", expected=expected)
            if found != first:
                raise CallError(op=op, argument=name, value=f"on device {found}", expected=f"device {first}")

    def _compute(self, call: Call, outs: tuple[Any, ...], device: str) -> tuple[Any, ...]:
        op, like = call.workload.op, call.inputs[0]
        signature = SIGNATURES[op]
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
                refuse_overlap(op, name, out, named)
                if device != "cpu":
                    check_aligned(op, name, out)
            named.append((name, out))
        if call.is_empty:
            for out in made:
                out[...] = 0
            return made
        kernel = self._kernel(device, call.workload)
        taken = call.inputs if device == "cpu" else map(aligned, call.inputs)
        inputs = [as_argument(array, spec.dtype) for array, spec in zip(taken, specs)]
        outputs = [
            as_argument(array.reshape(spec.shape), spec.dtype) for array, spec in zip(made, call.outputs)
        ]
        kernel(*inputs, *call.scalars, *outputs)
        return made


def _device(call: Call) -> str:
    """Return where the first array of `call` lies: "cpu" or "cuda"."""
    return device_of(call.inputs[0]).partition(":")[0]


def _out_names(outs: tuple[Any, ...]) -> tuple[str, ...]:
    return ("out",) if len(outs) == 1 else tuple(f"out[{index}]" for index in range(len(outs)))


def _check_files(folder: Path, manifest: Manifest) -> None:
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise LibraryDamagedError(path=folder, file=name, detail="is missing")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise LibraryDamagedError(path=folder, file=name, detail="was cut short or altered")
    for path in sorted(folder.iterdir()):
        if path.name != FILE and path.name not in manifest.files:
            raise LibraryDamagedError(path=folder, file=path.name, detail="is not named by the manifest")
