"""The whole space, in its own order. For small spaces, and to record complete ones."""

from __future__ import annotations

from itertools import islice

from tvmops.space import Config
from tvmops.tuner.strategy.base import SearchSpace, Strategy


class GridStrategy(Strategy):
    name = "grid"

    def __init__(self, search: SearchSpace, seed: int) -> None:
        super().__init__(search, seed)
        self._rest = iter(search.space)

    def _propose(self, count: int) -> list[Config]:
        return list(islice((config for config in self._rest if config not in self._proposed), count))
