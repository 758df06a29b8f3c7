"""What kernels of weight-only products multiply, and how they walk through its groups of k."""

from __future__ import annotations

from dataclasses import dataclass

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.extents import extent
from tvmops.signatures.matmul_weight_only import groups_of
from tvmops.signatures.weight_groups import WeightGroups
from tvmops.workloads import Workload

BK = 128  # k that is taken at once
STEP = 32  # k of two products


@dataclass(frozen=True)
class WeightOnlyProduct:
    m: Extent
    n: Extent
    k: Extent
    dtype: str
    groups: WeightGroups
    bias: bool
    activation: str

    @property
    def group(self) -> int:
        """How much of k has one scale within a stage."""
        return min(self.groups.group, BK)

    @property
    def heads(self) -> int:
        """Rows of scales and zero points of a group."""
        return 1 + self.groups.has_zero_points

    @property
    def words(self) -> int:
        """Pieces with eight values of k."""
        return self.groups.bits // 4

    @property
    def slots(self) -> int:
        """Pieces of a thread in a stage, for each pair of panels."""
        return BK // self.group * self.heads + BK // STEP * self.words


def product_of(workload: Workload) -> WeightOnlyProduct:
    """Return what `workload` multiplies; sizes that are `*` become variables."""
    m, n, k = (extent(workload, name) for name in "mnk")
    return WeightOnlyProduct(
        m=m,
        n=n,
        k=k,
        dtype=str(workload["dtype"]),
        groups=groups_of(workload),
        bias=bool(workload["bias"]),
        activation=str(workload["activation"]),
    )
