"""`Device`: where a bundle's kernels run, with its arrays, its exact results and its clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tvmops.ops import Op
from tvmops.signatures.dtypes import decode
from tvmops.workloads import Workload

Call = Callable[..., object]
_MOST_CALLS = 400  # in a sample, or as many as last for a long one
_LONG = 0.1  # seconds


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

    def megahertz(self) -> float | None:
        """Return how fast its clock runs now, where it tells."""
        ...

    def peers(self, workload: Workload) -> dict[str, Call]:
        """Return what else computes `workload` here, by name, called as kernels are."""
        ...


def calls_for(once: float, seconds: float) -> int:
    """Return how many calls, of `once` seconds each, to time for about `seconds`."""
    count = max(1, round(seconds / max(once, 1e-7)))
    return count if seconds >= _LONG else min(_MOST_CALLS, count)


def decoded(op: Op, workload: Workload, inputs: Sequence[Any]) -> list[Any]:
    """Return the values that NumPy arrays of a workload's inputs stand for."""
    return [decode(array, spec.dtype) for array, spec in zip(inputs, op.inputs(workload))]
