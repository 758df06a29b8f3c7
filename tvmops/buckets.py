"""`Bucket`: which of a few kernels answers each shape of a range. Export makes it, dispatch reads it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from tvmops.workloads import Workload


@dataclass(frozen=True)
class Bucket:
    """A table over the ranges of a workload: a grid of sizes, and a kernel around each point of it.

    The cells of the grid are in row-major order, the ranges in the order of the op's fields.
    """

    workload: str  # text form, with ranges
    samples: Mapping[str, tuple[int, ...]]  # by range: sizes at which kernels were measured, ascending
    kernels: tuple[str, ...]  # their functions
    cells: tuple[int, ...]  # which of `kernels` answers
    seconds: tuple[float, ...]  # its time at the nearest shape that was measured
    losses: tuple[float, ...]  # what it loses there against the fastest kernel known, 0.05 for 5%

    def cell(self, shape: Workload) -> int | None:
        """Return the cell of `shape`, None where it is outside of the ranges."""
        if not self._workload.holds(shape):
            return None
        index = 0
        for (name, samples), breaks in zip(self.samples.items(), self._breaks):
            (size,) = shape.dims(name)
            index = index * len(samples) + bisect_right(breaks, size)
        return index

    def sampled(self, cell: int) -> dict[str, int]:
        """Return the sizes in the middle of a cell."""
        sizes = {}
        for name, samples in reversed([*self.samples.items()]):
            cell, at = divmod(cell, len(samples))
            sizes[name] = samples[at]
        return {name: sizes[name] for name in self.samples}

    @property
    def pattern(self) -> Workload:
        """What its kernels were built for."""
        return self._workload.symbolic()

    @cached_property
    def _workload(self) -> Workload:
        return Workload.parse(self.workload)

    @cached_property
    def _breaks(self) -> tuple[tuple[int, ...], ...]:
        return tuple(breaks(samples) for samples in self.samples.values())


def breaks(samples: Sequence[int]) -> tuple[int, ...]:
    """Return where sizes come to be nearer to the next sample, as ratios: at geometric means."""
    return tuple(math.isqrt(low * high) + 1 for low, high in pairwise(samples))
