"""A learned cost model: features of a config to a score, larger where it should be faster."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import xgboost

_ENOUGH = 8  # results before the model says anything
_ROUNDS = 60
_PARAMETERS = {
    "objective": "reg:squarederror",
    "max_depth": 5,
    "eta": 0.2,
    "min_child_weight": 1,
    "subsample": 0.9,
    "nthread": 1,  # with more, sums are added in another order from run to run
    "verbosity": 0,
}


class CostModel:
    """Gradient-boosted trees over configs' features.

    The target is the logarithm of speed relative to the best seen, so that a config twice
    as slow is wrong by the same amount at any size; failures count as much slower than
    anything that ran.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._booster: xgboost.Booster | None = None
        self._names: list[str] = []

    @property
    def ready(self) -> bool:
        return self._booster is not None

    def fit(self, features: Sequence[Mapping[str, float]], seconds: Sequence[float]) -> None:
        """Learn from all results so far; fewer than `_ENOUGH` teach nothing yet."""
        best = min(seconds, default=math.inf)
        if len(seconds) < _ENOUGH or not math.isfinite(best):
            return
        self._names = sorted(features[0])
        labels = [max(math.log2(best / t), -5.0) if math.isfinite(t) else -6.0 for t in seconds]
        data = xgboost.DMatrix(self._matrix(features), np.array(labels))
        self._booster = xgboost.train({**_PARAMETERS, "seed": self._seed}, data, num_boost_round=_ROUNDS)

    def score(self, features: Sequence[Mapping[str, float]]) -> list[float]:
        """Return a score for each; callers may ask only once the model is `ready`."""
        assert self._booster is not None
        if not features:
            return []
        return [float(s) for s in self._booster.inplace_predict(self._matrix(features))]

    def _matrix(
        self, features: Sequence[Mapping[str, float]]
    ) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return np.array([[row[name] for name in self._names] for row in features], dtype=np.float32)
