"""`Budget`: how much a tuning run may measure, and for how long."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Budget:
    """Trials a workload, and seconds for the whole run, counted from when this was made."""

    trials: int
    seconds: float | None = None  # no limit
    started: float = field(default_factory=lambda: time.monotonic())

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def is_spent(self, reserve: float) -> bool:
        """True once no more than `reserve` seconds are left."""
        return self.seconds is not None and self.elapsed + reserve > self.seconds
