"""Make the `Problem` of a workload: random inputs and their float64 results, in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tvmops.measure.candidate import Problem
from tvmops.ops import Array, op_of
from tvmops.signatures.dtypes import decode
from tvmops.workloads import Workload


def make_problem(workload: Workload, folder: Path, seed: int) -> Problem:
    """Write the arrays of `workload` to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    op = op_of(workload)
    inputs, outputs = op.inputs(workload), op.outputs(workload)
    drawn = op.random_inputs(workload, seed)
    expected = op.reference(workload, *(decode(array, spec.dtype) for spec, array in zip(inputs, drawn)))
    return Problem(
        inputs=tuple(_save(folder / f"{spec.name}.npy", array) for spec, array in zip(inputs, drawn)),
        scalars=op.scalars(workload),
        expected=tuple(
            _save(folder / f"expected-{spec.name}.npy", array) for spec, array in zip(outputs, expected)
        ),
        output_dtypes=tuple(spec.dtype for spec in outputs),
        tolerance=op.tolerance(workload),
    )


def _save(path: Path, array: Array) -> Path:
    np.save(path, array)
    return path
