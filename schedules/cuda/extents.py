"""Sizes of a workload, of which any may be known when a kernel is called alone."""

from __future__ import annotations

from tvm import tirx

from tvmops.schedules.cpu.emit import Extent
from tvmops.workloads import Workload

_LARGE = 4096


def extent(workload: Workload, name: str) -> Extent:
    """Return a size, or a variable for one that is not known."""
    value = workload[name]
    return value if isinstance(value, int) else tirx.Var(name, "int32")


def known(workload: Workload, name: str) -> int:
    """Return a size, or a large one in place of one that is not known: for estimates and limits."""
    value = workload[name]
    return value if isinstance(value, int) else _LARGE
