"""Kernels for a CPU: NumPy arrays, the monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from tvmops.machine import this_machine
from tvmops.measure.bundle.device import Call, calls_for, decoded
from tvmops.measure.verify import largest_error, poisoned
from tvmops.ops import op_of
from tvmops.signatures.dtypes import decode
from tvmops.workloads import Workload


class Cpu:
    """This machine's cores and memory."""

    machine = this_machine().fingerprint

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

    def megahertz(self) -> float | None:
        return None

    def peers(self, workload: Workload) -> dict[str, Call]:
        return {}
