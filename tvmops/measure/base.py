"""`Measurer`: what a search needs of whoever measures. Workers do it, or a replay of records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from tvmops.measure.candidate import Candidate, Outcome, Plan


class Measurer(Protocol):
    """Tells what becomes of candidates. A candidate that fails is an outcome, never an exception."""

    machine: str  # what records call the machine that was measured, or the model of one

    def measure(self, candidates: Sequence[Candidate], plan: Plan) -> Iterator[Outcome]:
        """Yield the outcome of each candidate, in order, as soon as it is known."""
        ...

    def compare(self, candidates: Sequence[Candidate], plan: Plan) -> list[Outcome]:
        """Time candidates of one workload turn by turn, `plan.samples` turns.

        Sample i of each was taken in the same turn, so their ratios are free of drift.
        """
        ...

    def describe(self, candidates: Sequence[Candidate]) -> list[dict[str, float] | None]:
        """Return features of the code of each candidate; None where it can't be had."""
        ...

    def close(self) -> None:
        """Let go of processes and files."""
        ...


@runtime_checkable
class Concurrent(Protocol):
    """A measurer with several machines, whose outcomes come in any order."""

    def as_completed(self, candidates: Sequence[Candidate], plan: Plan) -> Iterator[tuple[int, Outcome]]:
        """Yield the number and the outcome of each candidate; nothing starts while the caller has one."""
        ...


def as_completed(
    measurer: Measurer, candidates: Sequence[Candidate], plan: Plan
) -> Iterator[tuple[int, Outcome]]:
    """Yield the number and the outcome of each candidate, as soon as it is known."""
    if isinstance(measurer, Concurrent):
        return measurer.as_completed(candidates, plan)
    return enumerate(measurer.measure(candidates, plan))
