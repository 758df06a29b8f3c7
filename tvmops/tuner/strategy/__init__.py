"""Search strategies, by name."""

from __future__ import annotations

from tvmops.errors import NoTemplateError, UnknownStrategyError
from tvmops.schedules import Template, templates_for
from tvmops.schedules.sketch import Sketch, TraceSpace
from tvmops.targets import Target
from tvmops.tuner.strategy.base import SearchSpace, Strategy, Trial
from tvmops.tuner.strategy.grid import GridStrategy
from tvmops.tuner.strategy.random import RandomStrategy
from tvmops.tuner.strategy.sketch import SketchStrategy
from tvmops.tuner.strategy.xgboost import XGBoostStrategy
from tvmops.workloads import Workload

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy for strategy in (XGBoostStrategy, RandomStrategy, GridStrategy, SketchStrategy)
}


def strategy_class(name: str) -> type[Strategy]:
    """Return the strategy called `name`; "auto" and "template" are the best one over templates."""
    name = "xgboost" if name in ("auto", "template") else name
    if name not in STRATEGIES:
        raise UnknownStrategyError(name=name, known=", ".join(["auto", "template", *STRATEGIES]))
    return STRATEGIES[name]


def make_strategy(name: str, search: SearchSpace, seed: int) -> Strategy:
    """Start a search with the strategy called `name`; "auto" over traces is sketch search."""
    over_traces = isinstance(search.space, TraceSpace)
    return strategy_class("sketch" if over_traces else name)(search, seed)


def templates_of(strategy: str, workload: Workload, target: Target) -> list[Template]:
    """Return what `strategy` searches for `workload`, in this order.

    "auto" tries all that fit, others all of their kind: templates, or traces of sketch search.

    Raises
    ------
    NoTemplateError
        It needs a template, and none covers `workload`.
    """
    fitting = templates_for(workload, target)
    if strategy == "auto":
        return fitting
    of_its_kind = [t for t in fitting if isinstance(t, Sketch) == (strategy == SketchStrategy.name)]
    if not of_its_kind:
        raise NoTemplateError(workload=workload, target=target.name)
    return of_its_kind


__all__ = [
    "STRATEGIES",
    "SearchSpace",
    "Strategy",
    "Trial",
    "make_strategy",
    "strategy_class",
    "templates_of",
]
