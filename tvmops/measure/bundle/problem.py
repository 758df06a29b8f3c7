"""`Problem`: a workload on a device, what is right for it, and whether a call computes that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from tvmops.measure.bundle.content import Bundle
from tvmops.measure.bundle.device import Device
from tvmops.ops import op_of
from tvmops.workloads import Workload

_MOST_SETS = 64  # of arguments


class Problem:
    """Inputs, outputs and exact results of a workload on a device."""

    def __init__(self, workload: Workload, device: Device, bundle: Bundle) -> None:
        self.workload, self._device = workload, device
        op = op_of(workload)
        self.tolerance, self._specs, self._scalars = (
            op.tolerance(workload),
            op.outputs(workload),
            op.scalars(workload),
        )
        self._inputs = device.draw(workload, bundle.seed)
        self._expected = device.reference(workload, self._inputs)
        wanted = -(-3 * bundle.cache_bytes // max(1, op.nbytes(workload)))
        self._seeds = range(bundle.seed, bundle.seed + min(max(wanted, 1), _MOST_SETS))

    @cached_property
    def sets(self) -> list[tuple[Any, ...]]:
        """As many arguments as it takes to have no cache hold those whose turn comes."""
        others = [self._device.draw(self.workload, seed) for seed in self._seeds[1:]]
        return [self._arguments(inputs) for inputs in (self._inputs, *others)]

    def _arguments(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        return (*inputs, *self._scalars, *self._device.poison(self.workload, self._expected))

    def check(self, call: Callable[..., object]) -> tuple[float, str]:
        """Run `call` on poisoned outputs; return its error and what is wrong with it, or ""."""
        outputs = self._device.poison(self.workload, self._expected)
        made = call(*self._inputs, *self._scalars, *outputs)
        if isinstance(made, tuple):  # a peer that can't write in place
            outputs = list(made)
        errors = [
            self._device.error(output, right, spec.dtype)
            for output, right, spec in zip(outputs, self._expected, self._specs)
        ]
        if max(errors) <= self.tolerance:
            return max(errors), ""
        return max(errors), f"differs by {max(errors):.3g}; at most {self.tolerance:.3g} is allowed"
