"""Call a kernel of any op on arrays amid guard bands, and compare with its reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvmops.measure.build import compile_module
from tvmops.measure.verify import largest_error, poisoned
from tvmops.ops import op_of
from tvmops.schedules.template import Template
from tvmops.signatures.dtypes import decode
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.workloads import Workload

Array = NDArray[Any]
BAND = 256  # bytes on either side
PATTERN = 0xFF  # NaN as a float, -1 as an integer


def compiled(template: Template, work: Workload, machine: Target, config: Config) -> Any:
    return compile_module(template.build(work, machine, config), machine)["main"]


class Guarded:
    """A copy of an array at an odd address, between two bands."""

    def __init__(self, array: Array, offset: int) -> None:
        self.memory = np.full(array.nbytes + 2 * BAND + 64, PATTERN, np.uint8)
        start = -self.memory.ctypes.data % 64 + BAND - 64 + offset * array.itemsize % 64
        self.inside = slice(start, start + array.nbytes)
        self.array: Array = self.memory[self.inside].view(array.dtype).reshape(array.shape)
        self.array[...] = array
        self.before = self.memory.copy()

    def is_untouched(self) -> bool:
        return bool(np.array_equal(self.memory, self.before))

    def is_whole_outside(self) -> bool:
        outside = np.ones(self.memory.size, bool)
        outside[self.inside] = False
        return bool((self.memory[outside] == PATTERN).all())


def check(kernel: Any, work: Workload, inputs: Sequence[Array] | None = None, offset: int = 1) -> list[Array]:
    """Call `kernel`, judge what it did, and return the outputs as it left them."""
    op = op_of(work)
    drawn = op.random_inputs(work, seed=7) if inputs is None else inputs
    specs, results = op.inputs(work), op.outputs(work)
    expected = op.reference(work, *(decode(array, spec.dtype) for spec, array in zip(specs, drawn)))
    given = [Guarded(array, offset) for array in drawn]
    outputs = [Guarded(poisoned(right, spec.dtype), offset) for right, spec in zip(expected, results)]
    kernel(*(each.array for each in given), *op.scalars(work), *(each.array for each in outputs))
    for each in given:
        assert each.is_untouched(), "wrote to an input, or beside it"
    for out, right, spec in zip(outputs, expected, results):
        error = largest_error(decode(out.array, spec.dtype), right)
        assert error <= op.tolerance(work), f"{work} is off by {error}"
        assert out.is_whole_outside(), "wrote beside the output"
    return [each.array for each in outputs]
