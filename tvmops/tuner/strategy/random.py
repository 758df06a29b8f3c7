"""Uniform random search: the baseline for every other strategy."""

from __future__ import annotations

from tvmops.space import Config
from tvmops.tuner.strategy.base import Strategy


class RandomStrategy(Strategy):
    name = "random"

    def _propose(self, count: int) -> list[Config]:
        return self._fresh_samples(count)
