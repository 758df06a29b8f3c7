"""What the final comparisons of a bundle say: its best kernel of each workload against the best peer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvmops.errors import BundleError
from tvmops.measure.bundle.content import COPY, Bundle, Result, read_results


@dataclass(frozen=True)
class Final:
    """Median seconds of a call, each `inf` where there is none; all measured turn by turn."""

    workload: str
    kernel: str
    seconds: float
    peer: str
    peer_seconds: float
    copy_seconds: float
    sustained_seconds: float  # by turns of seconds each, as hot as that makes a GPU
    sustained_peer_seconds: float  # of the same peer, so
    megahertz: float  # of the clock meanwhile, and
    peer_megahertz: float  # NaN where it is not known

    @property
    def speedup(self) -> float:
        """How many times as fast as the best peer."""
        return self.peer_seconds / self.seconds

    @property
    def sustained_speedup(self) -> float:
        """The same where both are run for seconds."""
        return self.sustained_peer_seconds / self.sustained_seconds

    @property
    def of_copy(self) -> float:
        """The share of the bandwidth that a copy of these bytes reaches."""
        return self.copy_seconds / self.seconds


def finals(folder: Path) -> list[Final]:
    """Return the comparisons of the bundle at `folder`, in its order.

    Raises
    ------
    BundleError
        There is no bundle, or it was not run.
    """
    bundle, results = Bundle.read(folder), read_results(folder)
    compared = [r for r in results if r.stage == "final" and r.status == "ok" and r.seconds]
    if not compared:
        raise BundleError(path=folder, detail="holds no comparisons; run its run.py first")
    found = []
    for text, entries in bundle.workloads().items():
        own = {entry.key for entry in entries}
        here = [result for result in compared if result.workload == text]
        kernel, seconds = _best([r for r in here if r.key in own])
        peer, peer_seconds = _best([r for r in here if r.key not in own and r.key != COPY])
        _, copy_seconds = _best([r for r in here if r.key == COPY])
        if kernel:
            long = [r for r in results if (r.workload, r.stage, r.status) == (text, "sustained", "ok")]
            hot, hot_peer = ([r for r in long if (r.key in own) is is_own] for is_own in (True, False))
            sustained = _best(hot)[1], _best(hot_peer)[1], _megahertz(hot), _megahertz(hot_peer)
            found.append(Final(text, kernel, seconds, peer, peer_seconds, copy_seconds, *sustained))
    return found


def _megahertz(results: Sequence[Result]) -> float:
    samples = [sample for result in results for sample in result.megahertz]
    return statistics.median(samples) if samples else math.nan


def _best(results: Sequence[Result]) -> tuple[str, float]:
    times = {result.key: statistics.median(result.seconds) for result in results}
    return min(times.items(), key=lambda item: item[1], default=("", math.inf))


def geometric_mean(ratios: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, ratios)))
