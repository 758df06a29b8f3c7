"""`Search`: what one template may become for a workload, and what a strategy has made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvmops.measure.candidate import Candidate
from tvmops.schedules import Template
from tvmops.schedules.sketch import TraceSpace
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.tuner.cost_model import Experience
from tvmops.tuner.strategy import SearchSpace, Strategy, make_strategy
from tvmops.workloads import Workload

BATCH = 8  # configs that are asked for at a time, and built side by side before any is run

Describe = Callable[[Sequence[Candidate]], list[dict[str, float] | None]]


@dataclass
class Search:
    """The search of one template for a workload, and how it stands."""

    template: Template
    space: SearchSpace
    strategy: Strategy
    trials: int = 0
    best: float = float("inf")
    is_over: bool = False  # no config is left to propose

    @classmethod
    def start(
        cls,
        template: Template,
        workload: Workload,
        target: Target,
        strategy: str,
        seed: int,
        prior: Sequence[Experience] = (),
        describe: Describe | None = None,
        kernel: Workload | None = None,
    ) -> Search:
        """Begin a search for `workload`; `kernel`, if given, is what its configs are built for."""
        built = kernel or workload

        def code(configs: list[Config]) -> list[dict[str, float] | None]:
            assert describe is not None
            return describe([Candidate(built, target, template.path, config) for config in configs])

        known = template.space(workload, target)
        space = SearchSpace(
            space=known if kernel is None else template.symbolic_space(known, kernel),
            default=template.default(workload, target),
            estimate=lambda config: template.estimate(workload, target, config),
            features=lambda config: template.features(workload, target, config),
            prior=prior,
            code=code if describe else None,
        )
        return cls(template, space, make_strategy(strategy, space, seed))

    @property
    def is_over_traces(self) -> bool:
        return isinstance(self.space.space, TraceSpace)

    def keeps_up_with(self, leader: float) -> bool:
        """True while this template may still win: it must come nearer the leader with each batch."""
        return not self.trials or self.best <= leader * (1 + BATCH / self.trials)
