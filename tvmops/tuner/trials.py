"""`Trials`: measures what jobs propose, and compares their leaders, each result in the log at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import datetime, timezone

from tvmops.measure.base import Measurer, as_completed
from tvmops.measure.candidate import Outcome, Plan
from tvmops.measure.toolchain import toolchain
from tvmops.records import LogWriter, Record
from tvmops.targets import Target
from tvmops.tuner.job import Job, Proposal
from tvmops.tuner.winner import pick_winner

_FINAL_ROUNDS = 15
_FINAL_SAMPLE_SECONDS = 0.002
_GUESSED = 2.0  # times the roofline, where nothing was measured


class Trials:
    """A measurer, and the log that its results go to."""

    def __init__(self, target: Target, writer: LogWriter, measurer: Measurer, seed: int) -> None:
        self._target, self._writer, self._measurer, self._seed = target, writer, measurer, seed

    def measure(self, job: Job, proposals: list[Proposal]) -> Iterator[tuple[Proposal, Record]]:
        """Yield proposals and their records, as they come; each is in the log by then."""
        candidates = [job.candidate(proposal) for proposal in proposals]
        for number, outcome in as_completed(self._measurer, candidates, job.plan()):
            record = self._record(job, proposals[number], outcome, "search")
            self._writer.append(record)
            yield proposals[number], record

    def compare(self, job: Job, finalists: list[Proposal]) -> None:
        """Time `finalists` turn by turn, unless the log has that."""
        if all(proposal.key in job.finals for proposal in finalists):
            return
        seconds = comparing_seconds(job, len(finalists))
        plan = Plan(
            _final_rounds(job), _FINAL_SAMPLE_SECONDS, timeout=10 + 5 * seconds, cold=job.kernel is None
        )
        outcomes = self._measurer.compare([job.candidate(proposal) for proposal in finalists], plan)
        self._log_finals(job, finalists, outcomes)

    def _log_finals(self, job: Job, finalists: list[Proposal], outcomes: list[Outcome]) -> None:
        """Log a comparison as a whole, so that none is ever half there: the winner first, then by time."""
        records = [self._record(job, p, outcome, "final") for p, outcome in zip(finalists, outcomes)]
        winner = pick_winner(records, job.default.key)
        records.sort(key=lambda record: (record is not winner, record.time, record.config_key))
        ranked = [dataclasses.replace(record, rank=rank) for rank, record in enumerate(records)]
        self._writer.append(*ranked)
        job.remember(ranked)

    def _record(self, job: Job, proposal: Proposal, outcome: Outcome, stage: str) -> Record:
        workload, shape = job.names
        return Record(
            workload=workload,
            shape=shape,
            target=self._target.name,
            machine=self._measurer.machine,
            template=proposal.template.label,
            config=proposal.config.as_dict(),
            status=outcome.status,
            stage=stage,
            seconds=outcome.seconds,
            cold_seconds=outcome.cold_seconds,
            error=outcome.error,
            detail=outcome.detail,
            kind=outcome.kind,
            cycles=outcome.cycles,
            counts=outcome.counts,
            strategy=job.strategy_of(proposal),
            seed=self._seed,
            toolchain=toolchain(),
            clock=outcome.clock,
            when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )


def _final_rounds(job: Job) -> int:
    """Return how often leaders are timed in turn: less often where a call takes long."""
    return max(5, min(_FINAL_ROUNDS, round(0.15 / _call_seconds(job))))


def comparing_seconds(job: Job, finalists: int) -> float:
    """Guess how long a comparison takes: each warm and, if so, cold, twice a round."""
    kinds = 5 if job.kernel is None else 2.5
    return 0.3 + kinds * max(_call_seconds(job), _FINAL_SAMPLE_SECONDS) * _final_rounds(job) * finalists


def _call_seconds(job: Job) -> float:
    return job.best_time if job.best else _GUESSED * job.roofline
