"""`Template`: how to schedule a family of ops on a kind of machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from tvm import IRModule

from tvmops.schedules.lowered import code_features
from tvmops.signatures.matmul import FULL
from tvmops.space import Config, Space
from tvmops.targets import Target
from tvmops.workloads import Workload


@dataclass(frozen=True)
class GenericKernel:
    """A config for symbolic shapes, and the shapes it is meant for."""

    ranges: Mapping[str, tuple[int, int]]  # smallest and largest size of a dimension; others are free
    config: Config
    multiples: Mapping[str, int] = field(default_factory=dict)  # what these dimensions must divide by


class Template(ABC):
    """A parametrised schedule. A template never measures."""

    name: ClassVar[str]  # "cpu.gemm"
    version: ClassVar[int]  # raised when a config comes to mean other code; older records are stale then
    precision: ClassVar[str] = FULL  # of a matmul's factors, that a workload must ask for

    @property
    def label(self) -> str:
        """Name and version, as records and manifests state them."""
        return f"{self.name}@{self.version}"

    @property
    def path(self) -> str:
        """Where a worker process finds this template."""
        return f"{type(self).__module__}:{type(self).__qualname__}"

    @abstractmethod
    def covers(self, workload: Workload, target: Target) -> bool:
        """Say whether this template can schedule `workload` on `target`."""

    def comes_last(self, workload: Workload, target: Target) -> bool:
        """Say whether the others that cover `workload` are the usual ones: this one is only tried."""
        return False

    @abstractmethod
    def space(self, workload: Workload, target: Target) -> Space:
        """Return the knobs and their limits, for a workload that is covered."""

    @abstractmethod
    def default(self, workload: Workload, target: Target) -> Config:
        """Return a config that is right and reasonable without any tuning."""

    @abstractmethod
    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        """Return the kernels that together answer every shape of `workload`'s op, narrowest first."""

    def symbolic_space(self, space: Space, pattern: Workload) -> Space:
        """Return those configs of `space`, that of a shape, which can be built for all of `pattern`."""
        return space

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the time of `config` in any unit; it orders the first batch of a search."""
        return 0.0

    def features(self, workload: Workload, target: Target, config: Config) -> dict[str, float]:
        """Describe `config` to a cost model, in terms that hold across shapes."""
        return {name: float(value) for name, value in config.items if not isinstance(value, str)}

    def kernel_workload(self, workload: Workload) -> Workload:
        """Return what decides on the code of a config: `*` where it is the same for all sizes."""
        return workload

    def code_features(self, workload: Workload, target: Target, config: Config) -> dict[str, float]:
        """Describe the code that `config` becomes to a cost model."""
        return code_features(self.build(workload, target, config))

    def tolerance(self, workload: Workload, config: Config) -> float | None:
        """Bound the absolute error of `config`, within what the op allows; None where it is just that."""
        return None

    @abstractmethod
    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        """Return a module with one function, `main(inputs..., output)`.

        Dimensions of `workload` that are `*` become symbolic.
        """
