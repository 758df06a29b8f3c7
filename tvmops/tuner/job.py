"""`Job`: the search for one workload. Asks a strategy, takes results from log or measurer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tvmops.machine import this_machine
from tvmops.measure.candidate import Candidate, Plan
from tvmops.measure.peak import Peak
from tvmops.ops import op_of
from tvmops.records import Record
from tvmops.schedules import Template
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.tuner.cost_model import Experience
from tvmops.tuner.progress import JobStatus
from tvmops.tuner.strategy import SearchSpace, Strategy, Trial, make_strategy
from tvmops.workloads import Workload

FINALISTS = 4  # besides the default config
_SLOW = 3.0  # a candidate that takes this many times the best is given up after one run
_PROMISING = 1.3  # one that takes more is timed no longer than it takes to see that
_AT_ROOFLINE = 0.97
_FAR = 0.7  # of the roofline: a best below this share of it leaves room for another template
_START_SECONDS = 3.0  # for a runner to read large inputs, and for a machine that stalls


@dataclass(frozen=True)
class Stage:
    """A template to search, and what a strategy may know of it."""

    template: Template
    search: SearchSpace

    @classmethod
    def of(
        cls, template: Template, workload: Workload, target: Target, prior: Sequence[Experience] = ()
    ) -> Stage:
        search = SearchSpace(
            space=template.space(workload, target),
            default=template.default(workload, target),
            estimate=lambda config: template.estimate(workload, target, config),
            features=lambda config: template.features(workload, target, config),
            prior=prior,
        )
        return cls(template, search)


@dataclass
class Job:
    """One workload, the templates that may schedule it, and what is known of their configs.

    Templates are searched one after the other, each with an equal share of the trials; the
    next only where the best so far is far from the roofline.
    """

    workload: Workload
    target: Target
    stages: Sequence[Stage]
    strategy: Strategy  # of the stage at hand
    seed: int
    roofline: float
    memory_bound: bool
    weight: float = 1.0
    stage: int = 0
    known: dict[str, Record] = field(default_factory=dict)  # from the log, by config
    finals: dict[str, Record] = field(default_factory=dict)
    records: dict[Config, Record] = field(default_factory=dict)
    winner: Record | None = None
    state: str = "waiting"
    stale_trials: int = 0  # since the best last improved by more than noise

    @classmethod
    def start(
        cls,
        workload: Workload,
        target: Target,
        stages: Sequence[Stage],
        strategy: str,
        seed: int,
        peak: Peak,
        weight: float = 1.0,
    ) -> Job:
        op = op_of(workload)
        flops, nbytes = op.flops(workload), op.nbytes(workload)
        roofline = peak.seconds(flops, nbytes)
        memory_bound = peak.seconds(flops, 0) < roofline
        made = make_strategy(strategy, stages[0].search, seed)
        return cls(workload, target, stages, made, seed, roofline, memory_bound, weight)

    @property
    def default(self) -> Config:
        return self.stages[0].search.default

    def template_of(self, config: Config) -> Template:
        """Return the template that `config` is one of."""
        owners = [stage.template for stage in self.stages if config in stage.search.space]
        return owners[0] if owners else self.stages[0].template

    def needs_next_stage(self, trials: int) -> bool:
        """True if the next template should have what is left of so many trials."""
        last = self.stage + 1 == len(self.stages)
        had_its_share = len(self.records) >= trials * (self.stage + 1) // len(self.stages)
        ended = had_its_share or self.state in ("converged", "whole space measured")
        left = len(self.records) < trials
        return ended and left and not last and self.roofline < _FAR * self.best_time

    def next_stage(self) -> None:
        """Turn to the next template; what the one before found stays."""
        self.stage += 1
        self.strategy = make_strategy("auto", self.stages[self.stage].search, self.seed)
        self.state, self.stale_trials = "searching", 0

    def remember(self, records: Iterable[Record]) -> None:
        """Take results of earlier runs of this very search on this machine, e.g. from a log.

        Of final comparisons the last one counts; it begins with its winner.
        """
        search = (str(self.workload), self.target.name, this_machine().fingerprint)
        labels = {stage.template.label for stage in self.stages}
        for record in records:
            if (record.workload, record.target, record.machine) != search or record.template not in labels:
                continue
            if record.stage == "final":
                if record.rank == 0:
                    self.finals.clear()
                self.finals[record.config_key] = record
            elif record.stage == "search" or not record.ran:  # a later check that held changes nothing
                self.known[record.config_key] = record

    def candidate(self, config: Config) -> Candidate:
        return Candidate(self.workload, self.target, self.template_of(config).path, config)

    @property
    def best(self) -> Record | None:
        ran = [record for record in self.records.values() if record.ran]
        return min(ran, key=lambda r: (r.status != "ok", r.fastest, r.config_key), default=None)

    @property
    def best_time(self) -> float:
        best = self.best
        return best.fastest if best else float("inf")

    def take(self, results: dict[Config, Record]) -> None:
        """Note the results of a batch and pass them to the strategy."""
        before = self.best_time
        self.records.update(results)
        self.strategy.tell([Trial(config, record.fastest) for config, record in results.items()])
        improved = self.best_time < 0.995 * before
        self.stale_trials = 0 if improved else self.stale_trials + len(results)

    def plan(self) -> Plan:
        """Say how long to time a candidate, from the roofline and from the best so far."""
        guess = min(self.best_time, 100 * self.roofline)
        give_up = _SLOW * self.best_time + 20e-6
        samples = 5 if guess < 0.05 else 3
        patience = _START_SECONDS + 20 * guess + samples * max(_SLOW * guess, 0.002)
        promising = _PROMISING * self.best_time
        return Plan(samples, give_up_above=give_up, promising_below=promising, timeout=patience)

    def finalists(self) -> list[Config]:
        """Return the configs to compare turn by turn: the fastest few known, and the default."""
        logged = {Config(tuple(record.config.items())): record for record in self.known.values()}
        results = {**logged, **self.records}
        ran = [(r.fastest, r.config_key, c) for c, r in results.items() if r.status == "ok"]
        leaders = [config for _, _, config in sorted(ran, key=lambda item: item[:2])[:FINALISTS]]
        default = self.default
        return leaders if default in leaders or self.records[default].status != "ok" else [*leaders, default]

    def at_roofline(self) -> bool:
        """True if nothing can be gained; memory's bandwidth is no limit to what the caches hold."""
        in_cache = op_of(self.workload).nbytes(self.workload) <= self.target.l3_bytes
        limited = not (self.memory_bound and in_cache)
        return limited and self.best_time * _AT_ROOFLINE <= self.roofline

    def status(self) -> JobStatus:
        op = op_of(self.workload)
        default = self.default
        record = self.finals.get(default.key) if self.winner else self.records.get(default)
        return JobStatus(
            workload=self.workload,
            trials=len(self.records),
            failures=sum(not record.ran for record in self.records.values()),
            best=self.winner.time if self.winner else self.best_time,
            default=(record.time if self.winner else record.fastest) if record else float("inf"),
            winner=self.winner,
            flops=op.flops(self.workload),
            nbytes=op.nbytes(self.workload),
            roofline=self.roofline,
            memory_bound=self.memory_bound,
            state=self.state,
        )
