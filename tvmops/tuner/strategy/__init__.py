"""Search strategies, by name."""

from __future__ import annotations

from tvmops.errors import UnknownStrategyError
from tvmops.tuner.strategy.base import SearchSpace, Strategy, Trial
from tvmops.tuner.strategy.grid import GridStrategy
from tvmops.tuner.strategy.random import RandomStrategy
from tvmops.tuner.strategy.xgboost import XGBoostStrategy

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy for strategy in (XGBoostStrategy, RandomStrategy, GridStrategy)
}


def strategy_class(name: str) -> type[Strategy]:
    """Return the strategy called `name`; "auto" and "template" are the best one over templates."""
    name = "xgboost" if name in ("auto", "template") else name
    if name not in STRATEGIES:
        raise UnknownStrategyError(name=name, known=", ".join(["auto", "template", *STRATEGIES]))
    return STRATEGIES[name]


def make_strategy(name: str, search: SearchSpace, seed: int) -> Strategy:
    """Start a search with the strategy called `name`."""
    return strategy_class(name)(search, seed)


__all__ = ["STRATEGIES", "SearchSpace", "Strategy", "Trial", "make_strategy", "strategy_class"]
