"""Model-guided search: measure what a learned cost model likes, learn from it, repeat.

After T. Chen et al., Learning to Optimize Tensor Programs, NeurIPS 2018, section 3: a
gradient-boosted ranking over configs, candidates found by local search on the model, a
share of each batch left to chance. The first batch follows the template's own estimate.

Two models share the work. One knows the knobs, is asked about hundreds of configs and picks a
few; the other also knows the code that a config becomes, and chooses among these few.
"""

from __future__ import annotations

from tvmops.space import Config
from tvmops.tuner.cost_model import CostModel, Experience
from tvmops.tuner.strategy.base import SearchSpace, Strategy, Trial

_POOL = 256  # random configs that the model ranks each round
_LEADERS = 16  # whose neighbourhoods are searched
_STEPS = 4  # of local search
_EXPLORE = 0.1  # share of a batch left to chance
_BY_ESTIMATE = 0.1  # share of the rest that the template's estimate chooses
_SHORT_LIST = 2  # configs whose code is looked at, for each that is chosen
_FIRST_POOL = 1000  # random configs that the estimate ranks for the first batch


class XGBoostStrategy(Strategy):
    name = "xgboost"

    def __init__(self, search: SearchSpace, seed: int) -> None:
        super().__init__(search, seed)
        self._model = CostModel(seed, search.prior)
        self._code_model = CostModel(seed)
        self._known_features: dict[Config, dict[str, float]] = {}
        self._known_code: dict[Config, dict[str, float] | None] = {}

    def _propose(self, count: int) -> list[Config]:
        """Share a batch among the model, the template's estimate and chance.

        Before there are results of this very search, estimate and prior knowledge are worth
        the same; after, the model leads, and what it dislikes still gets a look now and then.
        """
        if not self._model.ready:
            chance, guessed = count // 4, count - count // 4
        elif not self.trials:
            chance, guessed = 0, count - count // 4
        else:
            chance = sum(self.rng.random() < _EXPLORE for _ in range(count))
            guessed = sum(self.rng.random() < _BY_ESTIMATE for _ in range(count - chance))
        batch = self._by_estimate(guessed) if guessed else []
        if self._model.ready:
            batch = self._by_model(count - guessed - chance) + batch
        return batch + self._fresh_samples(chance)

    def tell(self, trials: list[Trial]) -> None:  # type: ignore[override]
        super().tell(trials)
        configs = [trial.config for trial in self.trials]
        seconds = [trial.seconds for trial in self.trials]
        self._model.fit(Experience([self._features(config) for config in configs], seconds))
        known = [(trial.seconds, row) for trial, row in zip(self.trials, self._with_code(configs)) if row]
        self._code_model.fit(Experience([row for _, row in known], [time for time, _ in known]))

    def _by_estimate(self, count: int) -> list[Config]:
        return sorted(self._fresh_samples(_FIRST_POOL), key=self.search.estimate)[:count]

    def _by_model(self, count: int) -> list[Config]:
        pool = dict.fromkeys(self._fresh_samples(_POOL))
        front = [t.config for t in sorted(self.trials, key=lambda t: t.seconds)[:_LEADERS]]
        for _ in range(_STEPS):
            near = [n for config in front for n in self.search.space.neighbours(config) if n not in pool]
            pool.update(dict.fromkeys(near))
            front = self._ranked(list(pool))[:_LEADERS]
        fresh = [config for config in pool if config not in self._proposed]
        ranked = self._ranked(fresh)
        if not self._code_model.ready:
            return ranked[:count]
        few = ranked[: _SHORT_LIST * count]
        known = [(config, row) for config, row in zip(few, self._with_code(few)) if row]
        scores = self._code_model.score([row for _, row in known])
        return _by_score([config for config, _ in known], scores)[:count]

    def _ranked(self, configs: list[Config]) -> list[Config]:
        return _by_score(configs, self._model.score([self._features(config) for config in configs]))

    def _features(self, config: Config) -> dict[str, float]:
        if config not in self._known_features:
            self._known_features[config] = self.search.features(config)
        return self._known_features[config]

    def _with_code(self, configs: list[Config]) -> list[dict[str, float] | None]:
        """Return the features of each config and of its code; None where that can't be had."""
        if self.search.code is None:
            return [None] * len(configs)
        new = [config for config in configs if config not in self._known_code]
        for config, code in zip(new, self.search.code(new)):
            self._known_code[config] = {**self._features(config), **code} if code else None
        return [self._known_code[config] for config in configs]


def _by_score(configs: list[Config], scores: list[float]) -> list[Config]:
    """Return `configs`, the most promising first; of equal ones the earlier first."""
    return [configs[i] for i in sorted(range(len(configs)), key=lambda i: -scores[i])]
