"""What a tuning run tells whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tvmops.records import Record
from tvmops.workloads import Workload


@dataclass(frozen=True)
class JobStatus:
    """Where the search for one workload stands. Times in seconds."""

    workload: Workload
    trials: int
    failures: int
    best: float  # infinite before anything ran
    default: float  # of the template's default config; of the same comparison once there is a winner
    winner: Record | None
    flops: int
    nbytes: int
    roofline: float  # the least time on this machine
    memory_bound: bool  # what sets it: memory, or arithmetic
    state: str  # "waiting", "searching", "comparing", or why it ended
    is_modelled: bool = False  # then times are cycles, as those of `Record.time`

    @property
    def rate(self) -> float:
        """What the best config does a second, in units of 1e9 bytes or operations: whichever bounds it."""
        return (self.nbytes if self.memory_bound else self.flops) / self.best / 1e9

    @property
    def unit(self) -> str:
        if self.is_modelled:  # at 1e9 cycles a second
            return "FLOP/cycle"
        return "GB/s" if self.memory_bound else "GFLOP/s"

    @property
    def roofline_share(self) -> float:
        """How much of the machine's measured limit the best config reaches."""
        return self.roofline / self.best


class Observer(Protocol):
    """Called whenever something changed; `elapsed` and `budget` in seconds, None without a limit."""

    def update(self, jobs: list[JobStatus], running: str, elapsed: float, budget: float | None) -> None: ...


class Silent:
    """Watches nothing."""

    def update(self, jobs: list[JobStatus], running: str, elapsed: float, budget: float | None) -> None:
        return
