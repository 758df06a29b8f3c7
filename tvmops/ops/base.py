"""`Op`: the mathematics of one operator, and what is known about it without a schedule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tvmops.signatures import SIGNATURES, TensorSpec
from tvmops.signatures.dtypes import encode
from tvmops.workloads import Workload

Array = NDArray[Any]
Exact = NDArray[np.float64]


class Op(ABC):
    """One operator. All methods take a `Workload` of this op."""

    name: ClassVar[str]

    @abstractmethod
    def expression(self, workload: Workload) -> list[Any]:
        """Return the tensor expression as TE tensors: inputs first, outputs last."""

    @abstractmethod
    def reference(self, workload: Workload, *inputs: Array) -> tuple[Exact, ...]:
        """Compute the outputs in float64 by the plainest means.

        Parameters
        ----------
        inputs
            The arrays of `inputs(workload)`, decoded: bfloat16 as float32 of the same
            values. Scalars have the values of `scalars(workload)`.
        """

    @abstractmethod
    def flops(self, workload: Workload) -> int:
        """Count the operations of the op's definition, by which rates are stated."""

    @abstractmethod
    def tolerance(self, workload: Workload) -> float:
        """Bound the absolute error of each output against `reference`, for `random_inputs`."""

    def least_flops(self, workload: Workload) -> int:
        """Count what the algorithm that needs the fewest operations does."""
        return self.flops(workload)

    def inputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        """Return the arrays that a kernel reads, in calling order."""
        return SIGNATURES[self.name].inputs(workload)

    def outputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        """Return the arrays that a kernel writes, in calling order."""
        return SIGNATURES[self.name].outputs(workload)

    def scalars(self, workload: Workload) -> tuple[float, ...]:
        """Return values of the float arguments to verify and to time kernels with."""
        if SIGNATURES[self.name].scalars(workload):
            raise NotImplementedError(f"{self.name} takes scalars; it must say with which values to test")
        return ()

    def nbytes(self, workload: Workload) -> int:
        """Count the fewest bytes to move: each input read once, each output written once."""
        return sum(spec.nbytes for spec in (*self.inputs(workload), *self.outputs(workload)))

    def random_inputs(self, workload: Workload, seed: int) -> list[Array]:
        """Draw inputs as kernels take them, uniform in [-1, 1) where the op does not say otherwise."""
        rng = np.random.default_rng(seed)
        return [
            encode(rng.random(spec.shape, dtype=np.float32) * 2 - 1, spec.dtype)
            for spec in self.inputs(workload)
        ]
