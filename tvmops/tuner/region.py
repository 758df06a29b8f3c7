"""`Region`: a workload with ranges, tuned as one job a representative shape, with kernels for all shapes.

A search at each size would take too long, and leaders of neighbours may both be bad between them:
a tile of 12 rows takes twice as long at 13. So the leaders of all are timed at sizes between, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product

import numpy as np

from tvmops.signatures import Range
from tvmops.tuner.job import Job, Proposal
from tvmops.tuner.regret import Matrix, fewest
from tvmops.workloads import Workload

_MOST_SHAPES = 24
_FEWEST_SHAPES = 6
_ENOUGH = 16  # sizes along a range, to spend half of them on the smallest
_SECONDS_A_SHAPE = 4.0
_LEADERS = 8  # of a shape, that are tried at its neighbours
_NEAR = 0.10  # those that lose no more there
_REGRET = 0.04  # of the kernels that are compared: less than an export allows by default
_FINER = 3  # times as many shapes are timed as are searched
_REST = 8  # sizes that a tile may compute in vain, more or less


def representatives(ranged: Workload, seconds: float | None) -> list[Workload]:
    """Return shapes to measure: a grid, denser at small sizes, both ends of each range included.

    Parameters
    ----------
    seconds
        What there is to tune them all; with little time there are few. No limit if None.
    """
    wanted = _MOST_SHAPES if seconds is None else int(seconds / _SECONDS_A_SHAPE)
    count = min(max(wanted, _FEWEST_SHAPES), _MOST_SHAPES)
    along = max(2, int(count ** (1 / len(ranged.ranges)) + 1e-9))
    axes = [sizes_along(each, along) for each in ranged.ranges.values()]
    return [ranged.replace(**dict(zip(ranged.ranges, sizes))) for sizes in product(*axes)]


def sizes_along(sizes: Range, count: int) -> list[int]:
    """Return up to `count` sizes: each of the smallest, then nearly equal ratios; the ends are among them.

    A tile may hold all of a small size, and costs twice at the next one: of many sizes, half are
    such. Larger ones are rounded to odd numbers, so that they leave rests in any tile.
    """
    half = count // 2 if count >= _ENOUGH else 0
    small = list(range(sizes.low, min(half, sizes.high) + 1)) or [sizes.low]
    steps = count - len(small)
    ratio = (sizes.high / small[-1]) ** (1 / steps)
    between = (round(small[-1] * ratio**step) for step in range(1, steps))
    odd = {min(size | 1, sizes.high) if size > 4 else size for size in between}
    return sorted({*small, sizes.high, *odd})


def refined(sizes: Sequence[int], count: int) -> list[int]:
    """Return `sizes` and others between them, `count` in all where there are so many.

    The next one halves the gap whose ends differ most in time a row: as their ratio does, and by
    the rest that a tile has at its lower end.
    """
    found = sorted(sizes)
    while len(found) < count:
        gaps = [(math.log(high / low) + _REST / low, low, high) for low, high in pairwise(found)]
        open_gaps = [gap for gap in gaps if gap[2] - gap[1] > 1]
        if not open_gaps:
            break
        _, low, high = max(open_gaps)
        found = sorted([*found, max(low + 1, math.isqrt(low * high))])
    return found


@dataclass(frozen=True)
class Region:
    """The jobs of one workload with ranges."""

    workload: Workload
    jobs: Sequence[Job]

    @cached_property
    def between(self) -> list[Workload]:
        """Shapes of a finer grid that have no job."""
        searched = {job.workload for job in self.jobs}
        along = int((_FINER * len(self.jobs)) ** (1 / len(self._axes)) + 1e-9)
        grid = product(*(refined(axis, along) for axis in self._axes))
        shapes = (self.workload.replace(**dict(zip(self.workload.ranges, sizes))) for sizes in grid)
        return [shape for shape in shapes if shape not in searched]

    def spread(self) -> Iterator[tuple[Job, list[Proposal]]]:
        """Yield what to measure next: leaders of a shape at its neighbours, where they may be good, too.

        Each is known when the next is asked for. It ends when no leader is new to a neighbour.
        """
        pending = True
        while pending:
            pending = False
            for job in self.jobs:
                known, templates = job.results(), [search.template for search in job.searches]
                leaders = (p for near in self._neighbours(job) for p in _leaders(near))
                new = [p for p in leaders if p not in known and p.template in templates]
                if new:
                    pending = True
                    yield job, list(dict.fromkeys(new))

    def choose(self) -> tuple[Proposal, ...]:
        """Return the winners and the fewest kernels that might serve all shapes.

        They become rivals of a shape's leaders where they are near.
        """
        measured = [job for job in self.jobs if job.leaders(1)]
        if not measured:
            return ()
        proposals = list(dict.fromkeys(p for job in measured for p in _leaders(job)))
        chosen = [proposals[row] for row in fewest(_times(measured, proposals), _REGRET)]
        for job in measured:
            job.rivals = tuple(p for p in chosen if _loss(job, p) <= 2 * _NEAR)
        return tuple(dict.fromkeys([*chosen, *(job.leaders(1)[0] for job in measured)]))

    def _neighbours(self, job: Job) -> list[Job]:
        at = self._places[job.workload]
        return [
            other
            for other in self.jobs
            if sum(abs(a - b) for a, b in zip(at, self._places[other.workload])) == 1
        ]

    @cached_property
    def _places(self) -> dict[Workload, tuple[int, ...]]:
        """Where each shape stands in the grid."""
        places = {}
        for job in self.jobs:
            sizes = job.workload.dims(*self.workload.ranges)
            places[job.workload] = tuple(axis.index(size) for axis, size in zip(self._axes, sizes))
        return places

    @cached_property
    def _axes(self) -> list[list[int]]:
        """The sizes of the jobs along each range."""
        return [sorted({job.workload.dims(name)[0] for job in self.jobs}) for name in self.workload.ranges]


def _leaders(job: Job) -> list[Proposal]:
    """Return the fastest configs at the shape of `job`, none far behind the first."""
    return [proposal for proposal in job.leaders(_LEADERS) if _loss(job, proposal) <= _NEAR]


def _loss(job: Job, proposal: Proposal) -> float:
    """Return what `proposal` loses against the best at the shape of `job`."""
    results = job.results()
    best = results[job.leaders(1)[0]].fastest
    return results[proposal].fastest / best - 1 if proposal in results else float("inf")


def _times(jobs: Sequence[Job], proposals: Sequence[Proposal]) -> Matrix:
    known = [job.results() for job in jobs]
    return np.array([[r[p].fastest if p in r else np.inf for r in known] for p in proposals])


__all__ = ["Region", "refined", "representatives", "sizes_along"]
