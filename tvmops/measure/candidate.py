"""What goes to the workers and what comes back: plain data, no compiler, no arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tvmops.space import Config
from tvmops.targets import Target
from tvmops.workloads import Workload


@dataclass(frozen=True)
class Candidate:
    """One config of one template for one workload."""

    workload: Workload  # what it is built for
    target: Target
    template: str  # where the builder finds it, "tvmops.schedules.cpu.gemm:CpuGemm"
    config: Config
    shape: Workload | None = None  # what it is run on, where some sizes of `workload` are `*`

    @property
    def code(self) -> Candidate:
        """This candidate without its shape: what is compiled, once for all shapes."""
        return replace(self, shape=None)


@dataclass(frozen=True)
class Problem:
    """The arguments of a workload, its float64 results, and how far from those is still right.

    The arrays lie in files, so that a worker that is replaced finds them again.
    """

    inputs: tuple[Path, ...]
    scalars: tuple[float, ...]
    expected: tuple[Path, ...]
    output_dtypes: tuple[str, ...]
    tolerance: float


@dataclass(frozen=True)
class Plan:
    """How to time a candidate. Times in seconds."""

    samples: int = 5
    sample_seconds: float = 0.002  # a sample repeats the call until it lasts that long
    give_up_above: float = float("inf")  # a first run longer than this is the only one
    promising_below: float = float("inf")  # two samples above this are all
    timeout: float = 60.0
    cold: bool = True  # compare on arrays that no cache holds, too


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate; the fields are those of a `Record`."""

    status: str
    seconds: tuple[float, ...] = ()
    cold_seconds: tuple[float, ...] = ()  # of a comparison: each call on arrays that no cache holds
    error: float | None = None
    detail: str = ""
    kind: str = "measured"
    cycles: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    clock: str = field(default="perf_counter_ns")
