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
from tvmops.schedules.cpu.dots import products_at_once
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.tuner.progress import JobStatus
from tvmops.tuner.search import Search
from tvmops.tuner.strategy import Trial
from tvmops.workloads import Workload

CONVERGED = 96  # trials without a better config, after which a search has ended
FINALISTS = 4  # besides the default config
_SLOW = 3.0  # a candidate that takes this many times the best is given up after one run
_PROMISING = 1.3  # one that takes more is timed no longer than it takes to see that
_AT_ROOFLINE = 0.97
_FAR = 0.7  # of the roofline: a best below this share of it leaves room for another template
_START_SECONDS = 3.0  # for a runner to read large inputs, and for a machine that stalls


@dataclass(frozen=True)
class Proposal:
    """A config of one of a job's templates."""

    template: Template
    config: Config

    @property
    def key(self) -> tuple[str, str]:
        """What a record of it holds: the template's label and the config's text."""
        return self.template.label, self.config.key


@dataclass
class Job:
    """One workload, the searches for it, and what is known of their configs.

    Templates race: they take turns, and those that fall too far behind are left. Where there
    is sketch search, too, they have half of the trials, and it has the rest where the best is
    far from the roofline.
    """

    workload: Workload
    target: Target
    searches: Sequence[Search]
    seed: int
    roofline: float  # of the op's definition, in float32
    # seconds that no algorithm or instruction undercuts; memory is no limit to what the caches hold
    least: float
    memory_bound: bool
    weight: float = 1.0
    kernel: Workload | None = None  # what is built, where that answers other shapes, too
    rivals: tuple[Proposal, ...] = ()  # to be among the leaders that are compared, whatever their time
    machine: str = ""  # whose results count, as records call it
    known: dict[tuple[str, str], Record] = field(default_factory=dict)  # from the log, by proposal's key
    finals: dict[tuple[str, str], Record] = field(default_factory=dict)
    records: dict[Proposal, Record] = field(default_factory=dict)
    winner: Record | None = None
    state: str = "waiting"
    stale_trials: int = 0  # since the best last improved by more than noise

    @classmethod
    def start(
        cls,
        workload: Workload,
        target: Target,
        searches: Sequence[Search],
        seed: int,
        peak: Peak,
        weight: float = 1.0,
        kernel: Workload | None = None,
        machine: str | None = None,
    ) -> Job:
        op = op_of(workload)
        flops, nbytes = op.flops(workload), op.nbytes(workload)
        fewest = op.least_flops(workload) / products_at_once(workload, target)
        least = peak.seconds(fewest, nbytes if nbytes > target.l3_bytes else 0)
        roofline = peak.seconds(flops, nbytes)
        memory_bound = peak.seconds(flops, 0) < roofline
        here = machine or this_machine().fingerprint
        fields = (roofline, least, memory_bound, weight, kernel)
        return cls(workload, target, searches, seed, *fields, machine=here)

    @property
    def default(self) -> Proposal:
        first = self.searches[0]
        return Proposal(first.template, first.space.default)

    def ask(self, count: int, trials: int) -> list[Proposal]:
        """Return up to `count` configs of one template to try next, of a budget of so many trials."""
        while (search := self._next_search(trials)) is not None:
            configs = search.strategy.ask(count)
            if configs:
                return [Proposal(search.template, config) for config in configs]
            search.is_over = True
        return []

    def _next_search(self, trials: int) -> Search | None:
        racing = [search for search in self.searches if not search.is_over_traces]
        sketches = [search for search in self.searches if search.is_over_traces and not search.is_over]
        leader = min((search.best for search in racing), default=float("inf"))
        running = [s for s in racing if not s.is_over and s.keeps_up_with(leader)]
        if sketches and self._is_sketches_turn(racing, running, trials):
            return sketches[0]
        return min(running, key=lambda search: search.trials, default=None)

    def _is_sketches_turn(self, racing: list[Search], running: list[Search], trials: int) -> bool:
        if not racing or sum(search.trials for search in racing) < len(self.records):
            return True  # it has begun
        # at least one of theirs, which is the default
        had_their_share = len(self.records) >= max(trials // 2, 1) or self.stale_trials >= CONVERGED
        return (had_their_share or not running) and self.roofline < _FAR * self.best_time

    def remember(self, records: Iterable[Record]) -> None:
        """Take results of earlier runs of this very search on the same machine, e.g. from a log.

        Of final comparisons the last one counts; it begins with its winner.
        """
        own = (*self.names, self.target.name, self.machine)
        labels = {search.template.label for search in self.searches}
        for record in records:
            found = (record.workload, record.shape, record.target, record.machine)
            if found != own or record.template not in labels:
                continue
            if record.stage == "final":
                if record.rank == 0:
                    self.finals.clear()
                self.finals[record.template, record.config_key] = record
            elif record.stage == "search" or not record.ran:  # a later check that held changes nothing
                self.known[record.template, record.config_key] = record

    @property
    def names(self) -> tuple[str, str]:
        """What its records have as `workload` and as `shape`."""
        return (str(self.kernel), str(self.workload)) if self.kernel else (str(self.workload), "")

    def candidate(self, proposal: Proposal) -> Candidate:
        path, config = proposal.template.path, proposal.config
        if self.kernel is None:
            return Candidate(self.workload, self.target, path, config)
        return Candidate(self.kernel, self.target, path, config, self.workload)

    def strategy_of(self, proposal: Proposal) -> str:
        """Return the name of the strategy that proposed it."""
        return next(s.strategy.name for s in self.searches if s.template is proposal.template)

    @property
    def best(self) -> Record | None:
        ran = [record for record in self.records.values() if record.ran]
        return min(ran, key=lambda r: (r.status != "ok", r.fastest, r.config_key), default=None)

    @property
    def best_time(self) -> float:
        best = self.best
        return best.fastest if best else float("inf")

    def take(self, results: dict[Proposal, Record]) -> None:
        """Note the results of a batch and pass them to the strategy that asked for them."""
        before = self.best_time
        self.records.update(results)
        for search in self.searches:
            own = {p.config: record for p, record in results.items() if p.template is search.template}
            search.trials += len(own)
            search.best = min([search.best, *(record.fastest for record in own.values())])
            if own:
                search.strategy.tell([Trial(config, record.fastest) for config, record in own.items()])
                if search.is_over_traces and search.trials == len(own):
                    before = float("inf")  # a new kind of search starts with all of its patience
        improved = self.best_time < 0.995 * before
        self.stale_trials = 0 if improved else self.stale_trials + len(results)

    def stop_reason(self, trials: int, exhausted: bool) -> str:
        """Say why the search ends here; "searching" if it goes on."""
        if exhausted:
            return "whole space measured"
        if self.at_roofline():
            return "at the machine's roofline"
        if len(self.records) >= trials:
            return "all trials used"
        if self.stale_trials >= CONVERGED and not self._sketches_are_next(trials):
            return "converged"
        return "searching"

    def _sketches_are_next(self, trials: int) -> bool:
        search = self._next_search(trials)
        return search is not None and search.is_over_traces and not search.trials

    def plan(self) -> Plan:
        """Say how long to time a candidate, from the roofline and from the best so far."""
        guess = min(self.best_time, 100 * self.roofline)
        give_up = _SLOW * self.best_time + 20e-6
        samples = 5 if guess < 0.05 else 3
        patience = _START_SECONDS + 20 * guess + samples * max(_SLOW * guess, 0.002)
        promising = _PROMISING * self.best_time
        return Plan(samples, give_up_above=give_up, promising_below=promising, timeout=patience)

    def finalists(self) -> list[Proposal]:
        """Return the configs to compare turn by turn: the fastest few known, rivals and the default."""
        results = self.results()
        leaders = self.leaders(FINALISTS)
        others = [*self.rivals, self.default]
        fit = [p for p in others if p in results and results[p].status == "ok" and p not in leaders]
        return [*leaders, *dict.fromkeys(fit)]

    def leaders(self, count: int) -> list[Proposal]:
        """Return the fastest configs known, the fastest first."""
        ran = [(r.fastest, p.key, p) for p, r in self.results().items() if r.status == "ok"]
        return [proposal for _, _, proposal in sorted(ran, key=lambda item: item[:2])[:count]]

    def results(self) -> dict[Proposal, Record]:
        """Return all that is known of this job's configs, from this run and from the log."""
        templates = {search.template.label: search.template for search in self.searches}
        logged = {
            Proposal(templates[record.template], Config(tuple(record.config.items()))): record
            for record in self.known.values()
        }
        return {**logged, **self.records}

    def at_roofline(self) -> bool:
        """True if nothing can be gained."""
        return self.best_time * _AT_ROOFLINE <= self.least

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
            is_modelled=self.best is not None and self.best.is_modelled,
        )
