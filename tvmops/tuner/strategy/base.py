"""`Strategy`: proposes configs, learns from results (ask and tell). Never compiles."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from tvmops.space import Config, Space
from tvmops.tuner.cost_model import Experience

_IN_VAIN = 200  # draws in a row without a new config


@dataclass(frozen=True)
class SearchSpace:
    """What a strategy may know of a template: its knobs, its guess, its view of a config."""

    space: Space
    default: Config
    estimate: Callable[[Config], float]
    features: Callable[[Config], dict[str, float]]
    prior: Sequence[Experience] = ()  # from earlier searches of other shapes
    code: Callable[[list[Config]], list[dict[str, float] | None]] | None = None  # features of their code


@dataclass(frozen=True)
class Trial:
    """A config and the seconds it took; infinite where it failed."""

    config: Config
    seconds: float


class Strategy(ABC):
    """One search over one space.

    What `ask` returns depends on the seed and on what `tell` was told, on nothing else:
    a run that was broken off is replayed from its log to the same state.
    """

    name: ClassVar[str]

    def __init__(self, search: SearchSpace, seed: int) -> None:
        self.search = search
        self.seed = seed
        self.rng = random.Random(seed)
        self.trials: list[Trial] = []
        self._proposed: set[Config] = set()

    def ask(self, count: int) -> list[Config]:
        """Propose up to `count` configs not proposed before; none once the space is exhausted.

        The template's default config always comes first.
        """
        batch = [] if self._proposed else [self.search.default]
        self._proposed.update(batch)
        for config in self._propose(count - len(batch)) if count > len(batch) else []:
            if config not in self._proposed:
                self._proposed.add(config)
                batch.append(config)
        return batch

    def tell(self, trials: Sequence[Trial]) -> None:
        """Take the results of the last batch."""
        self.trials.extend(trials)

    @abstractmethod
    def _propose(self, count: int) -> list[Config]:
        """Return up to `count` configs; those proposed before are dropped by the caller."""

    def _fresh_samples(self, count: int) -> list[Config]:
        """Draw up to `count` different configs that were not proposed; fewer only if no more are left."""
        fresh: dict[Config, None] = {}
        in_vain = 0
        while in_vain < _IN_VAIN:
            if len(fresh) == count:
                return list(fresh)
            config = self.search.space.sample(self.rng)
            before = len(fresh)
            if config is not None and config not in self._proposed:
                fresh[config] = None
            in_vain = 0 if len(fresh) > before else in_vain + 1
        # Drawing hardly finds new ones: the space is small or nearly used up, so walk it.
        rest = (c for c in self.search.space if c not in self._proposed and c not in fresh)
        return [*fresh, *islice(rest, count - len(fresh))]
