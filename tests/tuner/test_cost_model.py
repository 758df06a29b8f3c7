from __future__ import annotations

import math
import random

import pytest

from tvmops.tuner.cost_model import CostModel, Experience


def experience(count: int, seed: int = 0, unit: float = 1e-3) -> Experience:
    """Results whose seconds grow with `a`, shrink with `b`, and ignore `c`."""
    rng = random.Random(seed)
    features = [{name: rng.uniform(0, 8) for name in "abc"} for _ in range(count)]
    return Experience(features, [unit * seconds(row) for row in features])


def seconds(row: dict[str, float]) -> float:
    return 2 ** (row["a"] / 2) / (1 + row["b"])


def agreement(model: CostModel, fresh: Experience) -> float:
    """The share of pairs that the model puts in the right order."""
    scores = model.score(fresh.features)
    pairs = [(i, j) for i in range(len(scores)) for j in range(i)]
    right = [(scores[i] > scores[j]) == (fresh.seconds[i] < fresh.seconds[j]) for i, j in pairs]
    return sum(right) / len(right)


def fitted(own: Experience, seed: int = 0) -> CostModel:
    model = CostModel(seed)
    model.fit(own)
    assert model.ready
    return model


def test_few_results_teach_nothing() -> None:
    model = CostModel(seed=0)
    for count in (0, 1, 7):
        model.fit(experience(count))
        assert not model.ready
    model.fit(experience(8))
    assert model.ready


def test_failures_alone_teach_nothing() -> None:
    model = CostModel(seed=0)
    model.fit(Experience(experience(20).features, [math.inf] * 20))
    assert not model.ready


def test_it_orders_configs_that_it_has_not_seen() -> None:
    assert agreement(fitted(experience(200)), experience(60, seed=1)) > 0.9


def test_more_results_teach_more() -> None:
    fresh = experience(60, seed=1)
    assert agreement(fitted(experience(400)), fresh) > agreement(fitted(experience(16)), fresh)


def test_a_failure_is_worse_than_anything_that_ran() -> None:
    own = experience(200)
    times = [math.inf if row["c"] > 6 else time for row, time in zip(own.features, own.seconds)]
    model = fitted(Experience(own.features, times))
    slow, failing = {"a": 4.0, "b": 1.0, "c": 1.0}, {"a": 0.0, "b": 8.0, "c": 7.5}
    assert model.score([slow])[0] > model.score([failing])[0]


def test_scores_do_not_depend_on_the_unit_of_time() -> None:
    fresh = experience(20, seed=1).features
    assert fitted(experience(100)).score(fresh) == pytest.approx(
        fitted(experience(100, unit=1.0)).score(fresh), abs=1e-5
    )


def test_the_same_results_and_seed_give_the_same_scores() -> None:
    fresh = experience(50, seed=1).features
    first, again = (fitted(experience(100), seed=3).score(fresh) for _ in range(2))
    assert first == again


def test_no_rows_have_no_scores() -> None:
    assert fitted(experience(20)).score([]) == []


def test_the_order_of_features_in_a_row_means_nothing() -> None:
    model = fitted(experience(100))
    row = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert model.score([row]) == model.score([dict(reversed(row.items()))])


def test_earlier_searches_teach_before_the_first_result() -> None:
    model = CostModel(seed=0, prior=[experience(100, seed=2, unit=5.0)])
    assert model.ready
    assert agreement(model, experience(60, seed=1)) > 0.85


def test_own_results_outweigh_earlier_ones_that_say_nothing() -> None:
    noise = experience(400, seed=2)
    noise = Experience(noise.features, random.Random(0).sample(list(noise.seconds), 400))
    model = CostModel(seed=0, prior=[noise])
    fresh = experience(60, seed=1)
    assert 0.3 < agreement(model, fresh) < 0.7
    model.fit(experience(200))
    assert agreement(model, fresh) > 0.75


def test_earlier_searches_may_lack_a_knob_or_have_one_more() -> None:
    """Knobs that make sense for some shapes alone are in those shapes' spaces."""
    more = experience(100, seed=2)
    more = Experience([row | {"d": 1.0} for row in more.features], more.seconds)
    for prior, own in ((more, experience(100)), (experience(100), more)):
        model = CostModel(seed=0, prior=[prior])
        assert agreement(model, own) > 0.85
        model.fit(own)
        assert agreement(model, own) > 0.85
