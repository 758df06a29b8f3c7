"""Model-guided search: measure what a learned cost model likes, learn from it, repeat.

After T. Chen et al., Learning to Optimize Tensor Programs, NeurIPS 2018, section 3: a
gradient-boosted ranking over configs, candidates found by local search on the model, a
share of each batch left to chance. The first batch follows the template's own estimate.
"""

from __future__ import annotations

from tvmops.space import Config
from tvmops.tuner.cost_model import CostModel, Experience
from tvmops.tuner.strategy.base import SearchSpace, Strategy, Trial

_POOL = 256  # random configs that the model ranks each round
_LEADERS = 16  # whose neighbourhoods are searched
_STEPS = 4  # of local search
_EXPLORE = 0.15  # share of a batch left to chance
_FIRST_POOL = 1000  # random configs that the estimate ranks for the first batch


class XGBoostStrategy(Strategy):
    name = "xgboost"

    def __init__(self, search: SearchSpace, seed: int) -> None:
        super().__init__(search, seed)
        self._model = CostModel(seed, search.prior)
        self._known_features: dict[Config, dict[str, float]] = {}

    def _propose(self, count: int) -> list[Config]:
        if not self._model.ready:
            return self._by_estimate(count)
        chance = sum(self.rng.random() < _EXPLORE for _ in range(count))
        return self._by_model(count - chance) + self._fresh_samples(chance)

    def tell(self, trials: list[Trial]) -> None:  # type: ignore[override]
        super().tell(trials)
        features = [self._features(trial.config) for trial in self.trials]
        self._model.fit(Experience(features, [trial.seconds for trial in self.trials]))

    def _by_estimate(self, count: int) -> list[Config]:
        """Take the better half of the batch from the estimate's favourites, the rest at random."""
        favourites = sorted(self._fresh_samples(_FIRST_POOL), key=self.search.estimate)
        return favourites[: count - count // 4] + self._fresh_samples(count // 4)

    def _by_model(self, count: int) -> list[Config]:
        pool = dict.fromkeys(self._fresh_samples(_POOL))
        front = [t.config for t in sorted(self.trials, key=lambda t: t.seconds)[:_LEADERS]]
        for _ in range(_STEPS):
            near = [n for config in front for n in self.search.space.neighbours(config) if n not in pool]
            pool.update(dict.fromkeys(near))
            front = self._ranked(list(pool))[:_LEADERS]
        fresh = [config for config in pool if config not in self._proposed]
        return self._ranked(fresh)[:count]

    def _ranked(self, configs: list[Config]) -> list[Config]:
        """Return `configs`, the most promising first; of equal ones the earlier first."""
        scores = self._model.score([self._features(config) for config in configs])
        return [configs[i] for i in sorted(range(len(configs)), key=lambda i: -scores[i])]

    def _features(self, config: Config) -> dict[str, float]:
        if config not in self._known_features:
            self._known_features[config] = self.search.features(config)
        return self._known_features[config]
