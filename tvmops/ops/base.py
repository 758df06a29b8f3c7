"""`Op`: the mathematics of one operator, and what is known about it without a schedule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tvmops.workloads import Workload

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of one argument of a kernel."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class Op(ABC):
    """One operator. All methods take a `Workload` of this op."""

    name: ClassVar[str]

    @abstractmethod
    def expression(self, workload: Workload) -> list[Any]:
        """Return the tensor expression as TE tensors: inputs first, the output last."""

    @abstractmethod
    def inputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        """Return the inputs of a kernel, in calling order."""

    @abstractmethod
    def output(self, workload: Workload) -> TensorSpec:
        """Return the output, which a kernel takes after its inputs."""

    @abstractmethod
    def reference(self, workload: Workload, *inputs: Array) -> NDArray[np.float64]:
        """Compute the output in float64 by the plainest means."""

    @abstractmethod
    def flops(self, workload: Workload) -> int:
        """Count the floating-point operations that any algorithm here must do."""

    @abstractmethod
    def tolerance(self, workload: Workload) -> float:
        """Bound the absolute error against `reference`, for `random_inputs`."""

    def nbytes(self, workload: Workload) -> int:
        """Count the fewest bytes to move: each input read once, the output written once."""
        return sum(spec.nbytes for spec in self.inputs(workload)) + self.output(workload).nbytes

    def random_inputs(self, workload: Workload, seed: int) -> list[Array]:
        """Draw inputs, uniform in [-1, 1)."""
        rng = np.random.default_rng(seed)
        return [
            (rng.random(spec.shape, dtype=np.float32) * 2 - 1).astype(spec.dtype)
            for spec in self.inputs(workload)
        ]
