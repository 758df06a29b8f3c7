"""`Explanation`: which kernel answers a workload, and why."""

from __future__ import annotations

from dataclasses import dataclass

from tvmops.manifest import KernelEntry
from tvmops.space import Config
from tvmops.workloads import Workload


@dataclass(frozen=True)
class Explanation:
    """Which kernel answers a workload, why, and what it was seen to do."""

    workload: Workload
    tier: str  # "exact", "bucket" or "generic"
    kernel: KernelEntry
    why: str
    seconds: float | None = None  # measured; None for a generic kernel
    loss: float | None = None  # of a bucket: against the fastest kernel known, 0.05 for 5%
    at: str = ""  # of a bucket: the sizes where that was measured, the nearest ones
    refused: tuple[str, ...] = ()  # kernels and variants that were looked at before, and why not
    variant: str = ""  # the target that the kernel was built for

    def __str__(self) -> str:
        kernel = self.kernel
        bound = "as the op states" if kernel.tolerance is None else f"{kernel.tolerance:.2g}"
        seen = "" if kernel.error is None else f" (seen: {kernel.error:.2g})"
        lines = [
            ("kernel", f"{kernel.function} ({self.tier}: {self.why})"),
            ("variant", self.variant),
            ("schedule", f"{kernel.template} {Config(tuple(kernel.config.items()))}"),
            ("time", self._time()),
            *([("loss", f"{self.loss:.1%} against the fastest kernel, at {self.at}")] if self.at else []),
            ("error bound", bound + seen),
            ("modelled" if kernel.modelled else "measured", kernel.measured or "never; a default schedule"),
            *(("refused", reason) for reason in self.refused),
        ]
        return "\n".join([str(self.workload), *(f"  {name:<13}{text}" for name, text in lines)])

    def _time(self) -> str:
        if self.kernel.modelled:  # cycles of a model, and what was counted: no clock ran
            counts = (f"{count} {name.replace('_', ' ')}" for name, count in self.kernel.modelled.items())
            return f"modelled: {', '.join(counts)}"
        if self.seconds is None:
            return "not measured at this shape"
        return f"{self.seconds * 1e6:.2f} us" + (f" at {self.at}" if self.at else "")
