"""Make the `Problem` of a workload: random inputs and their float64 results, in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tvmops.errors import ScratchError
from tvmops.measure.candidate import Problem
from tvmops.ops import Array, op_of
from tvmops.signatures.dtypes import decode
from tvmops.workloads import Workload


class Problems:
    """The problems of a run, each made at its first use, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[Workload, Problem] = {}

    def of(self, workload: Workload) -> Problem:
        """Return inputs and expected result of `workload`."""
        if workload not in self._made:
            folder = self._folder / f"problem{len(self._made)}"
            try:
                self._made[workload] = make_problem(workload, folder, seed=0)
            except OSError as error:
                raise ScratchError(path=self._folder, detail=error.strerror) from None
        return self._made[workload]


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
