"""Where a bundle's kernels run: arrays, references and clocks of a CPU or a CUDA device."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tvmops.measure.verify import largest_error, poisoned
from tvmops.ops import Op, op_of
from tvmops.runtime import backend
from tvmops.signatures.dtypes import decode
from tvmops.workloads import Workload

Call = Callable[..., object]
_BURST_SECONDS = 1e-3  # of one sample
_SUSTAINED_SECONDS = 0.3
_MOST_CALLS = 400  # in a sample


class Device(Protocol):
    machine: str  # as records state it

    def draw(self, workload: Workload, seed: int) -> list[Any]:
        """Return random inputs."""
        ...

    def poison(self, workload: Workload, expected: Sequence[Any]) -> list[Any]:
        """Return outputs that are right nowhere."""
        ...

    def reference(self, workload: Workload, inputs: Sequence[Any]) -> Sequence[Any]:
        """Return the exact outputs."""
        ...

    def error(self, output: Any, expected: Any, dtype: str) -> float:
        """Return the largest absolute error; infinite where NaN or infinity differs."""
        ...

    def clock(self, call: Call, sets: Sequence[Sequence[Any]]) -> Callable[[float], float]:
        """Return a function that times `call` on the argument sets in turn.

        Given how long to measure, it returns the mean seconds of a call.
        """
        ...

    def peers(self, workload: Workload) -> dict[str, Call]:
        """Return what else computes `workload` here, by name, called as kernels are."""
        ...


def open_device(kind: str, folder: Path) -> Device:
    """Return the device of this machine for targets of `kind`."""
    backend.load_backend(folder)
    if kind == "cpu":
        return Cpu()
    from tvmops.measure.bundle.on_torch import TorchCuda

    backend.load_cuda_backend(folder)
    return TorchCuda()


def calls_for(once: float, seconds: float) -> int:
    return max(1, min(_MOST_CALLS, round(seconds / max(once, 1e-7))))


class Cpu:
    """NumPy arrays, the monotonic clock."""

    machine = platform.processor() or platform.machine()

    def draw(self, workload: Workload, seed: int) -> list[Any]:
        return list(op_of(workload).random_inputs(workload, seed))

    def poison(self, workload: Workload, expected: Sequence[Any]) -> list[Any]:
        specs = op_of(workload).outputs(workload)
        return [poisoned(right, spec.dtype) for right, spec in zip(expected, specs)]

    def reference(self, workload: Workload, inputs: Sequence[Any]) -> Sequence[Any]:
        op = op_of(workload)
        return op.reference(workload, *decoded(op, workload, inputs))

    def error(self, output: Any, expected: Any, dtype: str) -> float:
        return largest_error(decode(output, dtype), expected)

    def clock(self, call: Call, sets: Sequence[Sequence[Any]]) -> Callable[[float], float]:
        def run(seconds: float) -> float:
            begin = time.perf_counter()
            call(*sets[0])
            count = calls_for(time.perf_counter() - begin, seconds)
            begin = time.perf_counter()
            for number in range(count):
                call(*sets[number % len(sets)])
            return (time.perf_counter() - begin) / count

        return run

    def peers(self, workload: Workload) -> dict[str, Call]:
        return {}


def decoded(op: Op, workload: Workload, inputs: Sequence[Any]) -> list[Any]:
    """Return the values that NumPy arrays of a workload's inputs stand for."""
    return [decode(array, spec.dtype) for array, spec in zip(inputs, op.inputs(workload))]
