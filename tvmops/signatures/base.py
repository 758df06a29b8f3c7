"""`Signature`: the fields of an op's workload, and the arguments of its kernels.

Both halves read it: the one that makes kernels and the one that calls them. It needs no
compiler.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from tvmops.signatures.dtypes import bits_of
from tvmops.signatures.fields import Field

if TYPE_CHECKING:
    from tvmops.workloads import Workload


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of one array that a kernel takes."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * bits_of(self.dtype) // 8


class Signature(ABC):
    """What one op takes and gives.

    A kernel is called with `inputs`, `scalars` and `outputs`, in that order.
    """

    fields: ClassVar[tuple[Field, ...]]  # in the order of the canonical text

    @abstractmethod
    def inputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        """Return the arrays that a kernel reads."""

    @abstractmethod
    def outputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        """Return the arrays that a kernel writes; the first is the result."""

    def scalars(self, workload: Workload) -> tuple[str, ...]:
        """Return the names of the float arguments, which are known only when a kernel is called."""
        return ()

    def canonical(self, workload: Workload) -> Workload:
        """Return `workload` with words that stand for sizes replaced by those."""
        return workload

    def check(self, workload: Workload) -> None:  # noqa: B027  most ops have nothing to check
        """Raise WorkloadError where fields, each right by itself, do not fit each other."""
