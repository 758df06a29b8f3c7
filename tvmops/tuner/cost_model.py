"""A learned cost model: features of a config to a score, larger where it should be faster."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xgboost

_ENOUGH = 8  # results before the model says anything
_ROUNDS = 40
_LEVELS = 32  # of speed, from that of anything some 15 times slower than the best, or more, to the best
_PRIOR_WEIGHT = 0.25
_THREADS = 1  # more add sums in another order from run to run, and wait for each other longer than they work
_PARAMETERS = {
    "objective": "rank:pairwise",
    "lambdarank_pair_method": "mean",
    "lambdarank_num_pair_per_sample": 8,
    "max_depth": 5,
    "eta": 0.2,
    "min_child_weight": 1,
    "subsample": 0.9,
    "nthread": _THREADS,
    "verbosity": 0,
}


@dataclass(frozen=True)
class Experience:
    """Results of one workload: the features of each config, and its seconds."""

    features: Sequence[Mapping[str, float]]
    seconds: Sequence[float]


class CostModel:
    """Gradient-boosted trees over configs' features, trained to rank the configs of a workload.

    Only pairs of one workload are compared (C. Burges, From RankNet to LambdaRank to
    LambdaMART, 2010), so that results of other shapes teach without being of the same scale.
    Configs count as different where their speeds are an eighth of a doubling apart; a failure
    is below anything that ran. `prior` is what earlier searches of other shapes taught.
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
        labels = [label for experience in experiences for label in _levels(experience.seconds)]
        sizes = [len(experience.seconds) for experience in experiences]
        earlier, last = sum(sizes[:-1]), sizes[-1]  # together at most a third as much as the last
        weights = [min(_PRIOR_WEIGHT, 0.3 * last / max(earlier, 1))] * (len(sizes) - 1) + [1.0]
        data = xgboost.DMatrix(self._matrix(rows), np.array(labels), nthread=_THREADS)
        data.set_group(sizes)
        data.set_weight(np.array(weights))
        self._booster = xgboost.train({**_PARAMETERS, "seed": self._seed}, data, num_boost_round=_ROUNDS)

    def _matrix(
        self, features: Sequence[Mapping[str, float]]
    ) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Return a row for each; NaN, a missing value to xgboost, for a knob that its workload lacks."""
        rows = [[row.get(name, math.nan) for name in self._names] for row in features]
        return np.array(rows, dtype=np.float32)


def _levels(seconds: Sequence[float]) -> list[int]:
    """Return the level of each speed relative to the best: larger is faster, 0 for what failed."""
    best = min(seconds)
    return [max(1, int(_LEVELS + 8 * math.log2(best / t))) if math.isfinite(t) else 0 for t in seconds]
