"""Make the `Problem` of a workload: random inputs and their float64 result, in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tvmops.measure.candidate import Problem
from tvmops.ops import op_of
from tvmops.workloads import Workload


def make_problem(workload: Workload, folder: Path, seed: int) -> Problem:
    """Write the arrays of `workload` to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    op = op_of(workload)
    inputs = op.random_inputs(workload, seed)
    paths = []
    for spec, array in zip(op.inputs(workload), inputs):
        paths.append(folder / f"{spec.name}.npy")
        np.save(paths[-1], array)
    expected = folder / "expected.npy"
    np.save(expected, op.reference(workload, *inputs))
    return Problem(tuple(paths), expected, op.output(workload).dtype, op.tolerance(workload))
