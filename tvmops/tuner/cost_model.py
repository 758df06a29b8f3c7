"""A learned cost model: features of a config to a score, larger where it should be faster."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xgboost

_ENOUGH = 8  # results before the model says anything
_ROUNDS = 60
_SLOWEST = -5.0  # label of anything 32 times slower than the best, or more
_PRIOR_WEIGHT = 0.25
_PARAMETERS = {
    "objective": "reg:squarederror",
    "max_depth": 5,
    "eta": 0.2,
    "min_child_weight": 1,
    "subsample": 0.9,
    "nthread": 1,  # with more, sums are added in another order from run to run
    "verbosity": 0,
}


@dataclass(frozen=True)
class Experience:
    """Results of one workload: the features of each config, and its seconds."""

    features: Sequence[Mapping[str, float]]
    seconds: Sequence[float]


class CostModel:
    """Gradient-boosted trees over configs' features.

    The target is the logarithm of speed relative to the best of the same workload, so that
    a config twice as slow is wrong by the same amount at any size; failures count as much
    slower than anything that ran. `prior` is what earlier searches of other shapes taught.
    """

    def __init__(self, seed: int, prior: Sequence[Experience] = ()) -> None:
        self._seed = seed
        self._booster: xgboost.Booster | None = None
        self._names: list[str] = []
        self._prior = [experience for experience in prior if experience.features]
        if self._prior:
            self._train(self._prior)

    @property
    def ready(self) -> bool:
        return self._booster is not None

    def fit(self, own: Experience) -> None:
        """Learn from all results so far; fewer than `_ENOUGH` teach nothing yet."""
        if len(own.seconds) >= _ENOUGH and math.isfinite(min(own.seconds)):
            self._train([*self._prior, own])

    def score(self, features: Sequence[Mapping[str, float]]) -> list[float]:
        """Return a score for each; callers may ask only once the model is `ready`."""
        assert self._booster is not None
        if not features:
            return []
        return [float(s) for s in self._booster.inplace_predict(self._matrix(features))]

    def _train(self, experiences: Sequence[Experience]) -> None:
        self._names = sorted(experiences[-1].features[0])
        rows = [row for experience in experiences for row in experience.features]
        labels = [label for experience in experiences for label in _relative_speed(experience.seconds)]
        last = len(experiences[-1].seconds)
        earlier = len(rows) - last  # all together count as much as half of the last, at most
        weights = [min(_PRIOR_WEIGHT, 0.5 * last / max(earlier, 1))] * earlier + [1.0] * last
        data = xgboost.DMatrix(self._matrix(rows), np.array(labels), weight=np.array(weights))
        self._booster = xgboost.train({**_PARAMETERS, "seed": self._seed}, data, num_boost_round=_ROUNDS)

    def _matrix(
        self, features: Sequence[Mapping[str, float]]
    ) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return np.array([[row[name] for name in self._names] for row in features], dtype=np.float32)


def _relative_speed(seconds: Sequence[float]) -> list[float]:
    best = min(seconds)
    return [max(math.log2(best / t), _SLOWEST) if math.isfinite(t) else _SLOWEST - 1 for t in seconds]
