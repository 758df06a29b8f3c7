"""`tune`: search schedules for workloads on this machine, each trial in the log at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from tvmops.measure.base import Measurer
from tvmops.measure.peak import Peak, forget_peak, machine_peak
from tvmops.records import LogWriter, Record, read_log
from tvmops.targets import Target
from tvmops.targets import target as target_named
from tvmops.tuner.bench import Bench, check_measure
from tvmops.tuner.budget import Budget
from tvmops.tuner.checks import check_arguments, check_runs_here
from tvmops.tuner.job import FINALISTS, Job, Proposal
from tvmops.tuner.progress import Observer, Silent
from tvmops.tuner.region import Region, representatives
from tvmops.tuner.search import BATCH, Search
from tvmops.tuner.strategy import strategy_class, templates_of
from tvmops.tuner.transfer import experiences
from tvmops.tuner.trials import Trials, comparing_seconds
from tvmops.tuner.winner import pick_winner
from tvmops.workloads import Workload

_BETWEEN_SECONDS = 0.7  # to compare the kernels of a range at one shape more


def tune(
    work: Sequence[Workload] | Workload,
    target: Target | str = "native",
    log: str | os.PathLike[str] = "tuning.jsonl",
    trials: int = 64,
    seconds: float | None = None,
    strategy: str = "auto",
    seed: int = 0,
    observer: Observer | None = None,
    weights: Mapping[Workload, float] | None = None,
    measure: str = "local",
    measurer: Measurer | None = None,
    peak: Peak | None = None,
    tracker: str = "",
    token_file: str | os.PathLike[str] | None = None,
) -> dict[Workload, Record]:
    """Find a fast schedule for each workload and log every trial.

    Each candidate is verified against float64 before it is timed; the template's default
    config is always among them. Results that `log` holds already are not measured again:
    a run that was broken off goes on where it was.

    Parameters
    ----------
    target
        A `Target` or its name. It must be one that this machine can run, or can model.
    log
        JSON lines, appended to; made if it is not there.
    trials
        Most configs to measure for each workload; for each shape that represents a range.
    seconds
        Budget for the whole run, all workloads together; no limit if None.
    strategy
        "auto", "template", "xgboost", "random", "grid" or "sketch".
    seed
        Fixes the sequence of proposals.
    observer
        Is told of every trial.
    weights
        How much a second saved on a workload counts; 1 where none is given.
    measure
        "local": on this machine. "model": count what runs under emulation, and take cycles of a
        model of one core of an ARM `target`; such records say so, and have no seconds.
        "fleet": on all devices of one kind that `tracker` has for `target`.
    measurer
        What measures, left open at the end, in place of what `measure` names.
    peak
        The machine's limits; measured if None.
    tracker, token_file
        Of a fleet: "HOST:PORT", and the file of its token; that in $TVMOPS_FLEET_TOKEN if None.

    Returns
    -------
    dict
        The winner of each workload, as its record; of one with ranges that at its largest
        shape. A workload of which no config ran, the default included, is not in it.

    Raises
    ------
    LogWriteError
        The log can't be written: the disk is full, say. All records before are kept.
    """
    target = target_named(target) if isinstance(target, str) else target
    work = [work] if isinstance(work, Workload) else list(dict.fromkeys(work))
    weights = weights or {}
    check_arguments(work, trials, seconds, weights)
    check_measure(measure, work)
    strategy_class(strategy)  # an unknown one is refused now, not when the workers have started
    is_local = measurer is None and measure == "local"
    if is_local:
        check_runs_here(target)
    budget = Budget(trials, seconds)
    with ExitStack() as stack:
        writer = stack.enter_context(LogWriter(log))
        if measurer is None:
            bench = Bench.open(stack, measure, target, peak, tracker, token_file)
        else:
            bench = Bench(measurer, target, peak or machine_peak(target))
        session = Session(work, bench, writer, budget, strategy, seed, observer or Silent(), weights)
        winners = session.run()
        if is_local and session.beat_the_roofline():
            forget_peak(target)  # other work must have slowed it down when it was measured
        return winners


class Session:
    """One run over several workloads."""

    def __init__(
        self,
        work: Sequence[Workload],
        bench: Bench,
        writer: LogWriter,
        budget: Budget,
        strategy: str,
        seed: int,
        observer: Observer,
        weights: Mapping[Workload, float],
    ) -> None:
        self._bench, self._target = bench, bench.target
        self._trials = Trials(bench.target, writer, bench.measurer, seed)
        self._budget, self._seed, self._observer = budget, seed, observer
        self._strategy, self._work = strategy, work
        self._past = read_log(writer.path)
        self._jobs: list[Job] = []
        self._regions: list[Region] = []
        for workload in work:
            weight = weights.get(workload, 1.0)
            if workload.ranges:
                self._regions.append(self._region(workload, weight))
                self._jobs += self._regions[-1].jobs
            else:
                self._jobs.append(self._job(workload, weight))

    def _job(self, workload: Workload, weight: float, kernel: Workload | None = None) -> Job:
        """Start the search for `workload`, by kernels built for `kernel` if that is given."""
        target, fitting = self._target, templates_of(self._strategy, workload, self._target)
        if kernel is not None:
            fitting = [template for template in fitting if template.covers(kernel, target)]
        searches = [
            Search.start(
                template,
                workload,
                target,
                self._strategy,
                self._seed,
                prior=experiences(self._past, template, target, excluded=self._work),
                describe=self._bench.measurer.describe,
                kernel=kernel,
            )
            for template in fitting
        ]
        machine, peak = self._bench.measurer.machine, self._bench.peak
        job = Job.start(workload, target, searches, self._seed, peak, weight, kernel, machine)
        job.remember(self._past)
        return job

    def _region(self, workload: Workload, weight: float) -> Region:
        """Start the searches for a range; what one saves counts as a share of its time, not in seconds."""
        shapes = representatives(workload, self._budget.seconds)
        jobs = [self._job(shape, weight, workload.symbolic()) for shape in shapes]
        longest = max(job.roofline for job in jobs)
        for job in jobs:
            job.weight *= longest / job.roofline / len(jobs)
        return Region(workload, jobs)

    def run(self) -> dict[Workload, Record]:
        while (job := self._next_job()) is not None:
            self._batch(job)
        chosen = [self._spread(region) for region in self._regions]
        for job in self._jobs:
            self._finish(job)
        for region, proposals in zip(self._regions, chosen):
            self._fill(region, proposals)
        jobs = {job.workload: job for job in self._jobs if job.kernel is None}
        jobs |= {region.workload: region.jobs[-1] for region in self._regions}
        return {w: winner for w in self._work if (winner := jobs[w].winner) is not None}

    def _spread(self, region: Region) -> tuple[Proposal, ...]:
        """Try leaders of one shape at its neighbours; then choose whom to compare everywhere."""
        for job, proposals in region.spread():
            if self._out_of_time():
                break
            for proposal, record in self._measure(job, proposals).items():
                job.known[proposal.key] = record
        return region.choose()

    def _fill(self, region: Region, proposals: tuple[Proposal, ...]) -> None:
        """Compare the kernels of a range at shapes between those that were searched."""
        for shape in region.between:
            if self._budget.is_spent(reserve=0.0):
                break
            job = self._job(shape, 1.0, region.workload.symbolic())
            templates = [search.template for search in job.searches]
            self._tell_observer(str(shape))
            self._trials.compare(job, [proposal for proposal in proposals if proposal.template in templates])

    def beat_the_roofline(self) -> bool:
        """True if a result was faster than the machine's limits allow, by more than noise."""
        return any(1.03 * job.best_time < job.least for job in self._jobs if not job.memory_bound)

    def _next_job(self) -> Job | None:
        """Return the job whose next batch promises to save the most time."""
        if self._out_of_time():
            for job in self._jobs:
                job.state = "out of time" if job.state == "searching" else job.state
        open_jobs = [job for job in self._jobs if job.state in ("waiting", "searching")]
        if not open_jobs or (self._out_of_time() and all(job.records for job in self._jobs)):
            return None
        fresh = [job for job in open_jobs if not job.records]
        return fresh[0] if fresh else max(open_jobs, key=_expected_gain)

    def _batch(self, job: Job) -> None:
        """Ask for one batch, measure what the log does not know, tell the strategy."""
        job.state = "searching"
        trials = self._budget.trials
        proposals = job.ask(BATCH, trials)  # always as many: a run that is resumed asks the same
        exhausted = not proposals
        left = 1 if self._out_of_time() else trials - len(job.records)  # the default at least
        proposals = proposals[:left]
        results = {p: job.known[p.key] for p in proposals if p.key in job.known}
        results |= self._measure(job, [proposal for proposal in proposals if proposal not in results])
        job.take({proposal: results[proposal] for proposal in proposals if proposal in results})
        job.state = job.stop_reason(trials, exhausted)
        self._tell_observer("")

    def _measure(self, job: Job, proposals: list[Proposal]) -> dict[Proposal, Record]:
        """Measure what the log does not know, each trial in it at once."""
        results: dict[Proposal, Record] = {}
        self._tell_observer(f"{job.workload}: building {len(proposals)} configs")
        for proposal, record in self._trials.measure(job, proposals):
            results[proposal] = record
            self._tell_observer(f"{job.workload}: {proposal.config}")
            if self._out_of_time() and job.records:
                break
        return results

    def _finish(self, job: Job) -> None:
        """Compare the leaders turn by turn, and note the winner."""
        ended, job.state = job.state, "comparing"
        self._tell_observer(str(job.workload))
        finalists = job.finalists()
        self._trials.compare(job, finalists)
        job.winner = (
            pick_winner((job.finals[proposal.key] for proposal in finalists), job.default.key) or job.best
        )
        job.state = ended
        self._tell_observer("")

    def _out_of_time(self) -> bool:
        """True once what is left of the budget is needed to compare the leaders."""
        finals = sum(comparing_seconds(job, FINALISTS + 1 + len(job.rivals)) for job in self._jobs)
        between = sum(len(region.between) for region in self._regions) * _BETWEEN_SECONDS
        return self._budget.is_spent(reserve=finals + between)

    def _tell_observer(self, running: str) -> None:
        jobs, budget = [job.status() for job in self._jobs], self._budget
        self._observer.update(jobs, running, budget.elapsed, budget.seconds)


def _expected_gain(job: Job) -> float:
    """Guess what another batch saves: distance to the least, less with each trial that found nothing."""
    return job.weight * (job.best_time - job.least) / (1 + job.stale_trials / BATCH)


__all__ = ["Session", "tune"]
