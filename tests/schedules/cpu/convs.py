"""Compile configs of the conv2d templates in this process, and call them where a fault shows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from tests.schedules.cpu.kernels import SENTINEL, Array, Banded, Kernel
from tvmops.measure.build import compile_module
from tvmops.ops import op_of
from tvmops.schedules.template import Template
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.workloads import Workload


def compiled(template: Template, work: Workload, target: Target, config: Config) -> Kernel:
    kernel: Kernel = compile_module(template.build(work, target, config), target)["main"]
    return kernel


def check(kernel: Kernel, work: Workload, offset: int = 0, drawn: Sequence[Array] | None = None) -> None:
    """Call `kernel` on random inputs, or on those given, and compare with float64.

    NaN lies around the inputs: what is read beyond them must not reach the result. The
    output is poisoned by NaN: each element must be written. What lies around it must stay.
    """
    op = op_of(work)
    drawn, expected = (drawn, op.reference(work, *drawn)[0]) if drawn else problem(work)
    inputs = [Banded.of(array.shape, np.nan, offset) for array in drawn]
    for banded, array in zip(inputs, drawn):
        banded.array[...] = array
    output = Banded.of(expected.shape, SENTINEL, offset)
    output.array[...] = np.nan

    kernel(*(banded.array for banded in inputs), output.array)

    with np.errstate(invalid="ignore"):
        error = np.abs(output.array - expected)
    same = (output.array == expected) | (np.isnan(output.array) & np.isnan(expected))
    worst = np.where(same, 0.0, error).max()
    assert worst <= op.tolerance(work) * max(1.0, _scale(drawn)), f"off by {worst}"  # False where it is NaN
    assert output.is_intact(), "wrote beyond the output"
    for banded, array in zip(inputs, drawn):
        assert np.array_equal(banded.array, array, equal_nan=True), "wrote to an input"
        assert banded.is_intact(), "wrote beyond an input"


@cache
def problem(work: Workload) -> tuple[tuple[Array, ...], Array]:
    op = op_of(work)
    drawn = tuple(op.random_inputs(work, seed=1))
    return drawn, op.reference(work, *drawn)[0]


def _scale(arrays: Sequence[Array]) -> float:
    """Return by how much products of these are larger than of numbers up to one."""
    largest = [np.abs(array[np.isfinite(array)]).max(initial=1.0) for array in arrays]
    return float(np.prod(np.asarray(largest, "float64")))
