"""Compile a template of attention in this process, and call it where a fault shows."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.schedules.cpu.kernels import SENTINEL, Array, Banded, Kernel
from tvmops.measure.build import compile_module
from tvmops.ops import op_of
from tvmops.schedules import Template
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.workloads import Workload, workload

Dims = tuple[int, int, int, int, int, int]


def attention(dims: Dims, **fields: object) -> Workload:
    """Return the workload of (batch, heads, kv_heads, q_len, kv_len, head_dim)."""
    names = ("batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim")
    return workload("attention", **dict(zip(names, dims)), **fields)


def compiled(template: Template, work: Workload, target: Target, config: Config) -> Kernel:
    kernel: Kernel = compile_module(template.build(work, target, config), target)["main"]
    return kernel


def run(kernel: Kernel, work: Workload, inputs: list[Array], offset: int = 0) -> Array:
    """Return what `kernel` computes of `inputs`, which lie amid NaN at any offset.

    The output is poisoned by NaN: each element must be written. What lies around it must stay.
    """
    op = op_of(work)
    banded = [_banded(array, offset) for array in inputs]
    output = Banded.of(op.outputs(work)[0].shape, float(SENTINEL), offset)
    output.array[...] = np.nan
    kernel(*banded, *op.scalars(work), output.array)
    assert output.is_intact(), "wrote beyond the output"
    for copy, array in zip(banded, inputs):
        assert copy.tobytes() == array.tobytes(), "wrote to an input"
    return output.array


def check(kernel: Kernel, work: Workload, offset: int = 0, inputs: list[Array] | None = None) -> None:
    """Call `kernel` on `inputs`, or on random ones, and compare with float64."""
    op = op_of(work)
    drawn = op.random_inputs(work, seed=len(str(work))) if inputs is None else inputs
    result = run(kernel, work, drawn, offset)
    expected = op.reference(work, *drawn)[0]
    assert np.array_equal(np.isnan(result), np.isnan(expected))
    same = (result == expected) | np.isnan(expected)
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0, np.abs(result - expected)).max()
    assert error <= op.tolerance(work), f"off by {error}"


def _banded(array: Array, offset: int) -> Any:
    if array.dtype == np.float32:
        copy = Banded.of(array.shape, np.nan, offset).array
    else:  # bytes amid 0xFF, which a mask of 0 and 1 never holds
        whole = np.full(array.size + 128 + offset, 0xFF, array.dtype)
        copy = whole[64 + offset : 64 + offset + array.size].reshape(array.shape)
    copy[...] = array
    return copy
