"""`Region`: a workload with ranges, tuned as one job a representative shape, with kernels for all shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

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


@dataclass(frozen=True)
class Region:
    """The jobs of one workload with ranges."""

    workload: Workload
    jobs: Sequence[Job]

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

    def choose(self) -> None:
        """Make the fewest kernels that might serve all shapes rivals of the leaders where they are near."""
        measured = [job for job in self.jobs if job.leaders(1)]
        if not measured:
            return
        proposals = list(dict.fromkeys(p for job in measured for p in _leaders(job)))
        chosen = [proposals[row] for row in fewest(_times(measured, proposals), _REGRET)]
        for job in measured:
            job.rivals = tuple(p for p in chosen if _loss(job, p) <= 2 * _NEAR)

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
        names = list(self.workload.ranges)
        axes = [sorted({job.workload.dims(name)[0] for job in self.jobs}) for name in names]
        return {
            job.workload: tuple(axis.index(size) for axis, size in zip(axes, job.workload.dims(*names)))
            for job in self.jobs
        }


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


__all__ = ["Region", "representatives", "sizes_along"]
