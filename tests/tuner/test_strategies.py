"""What every strategy over knobs owes: legal configs, each once, in an order that a seed fixes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import pytest

from tvmops.errors import NoTemplateError, UnknownStrategyError
from tvmops.schedules.sketch import Sketch
from tvmops.space import Config, Knob, Space
from tvmops.targets import target
from tvmops.tuner.strategy import (
    STRATEGIES,
    SearchSpace,
    Strategy,
    Trial,
    make_strategy,
    strategy_class,
    templates_of,
)
from tvmops.workloads import workload

OVER_KNOBS = [name for name in STRATEGIES if name != "sketch"]

SMALL = Space(
    "toy",
    (Knob("x", (1, 2, 4, 8)), Knob("y", (1, 2, 4, 8)), Knob("z", (False, True))),
    lambda config: config.number("x") * config.number("y") <= 32,
)
POWERS = tuple(2**exponent for exponent in range(12))
LARGE = Space("toy", tuple(Knob(name, POWERS) for name in "xyzw"), lambda config: True)
BEST = {"x": 64, "y": 8, "z": 256, "w": 2}


def valley(config: Config) -> float:
    """Seconds that grow with the distance from one best config: what tile sizes do."""
    steps = [abs(math.log2(config.number(name) / BEST[name])) for name in "xyzw"]
    return 1e-3 * (1 + sum(step**1.5 for step in steps))


def logarithms(config: Config) -> dict[str, float]:
    return {name: math.log2(1 + config.number(name)) for name, _ in config.items}


def start(name: str, space: Space = SMALL, seed: int = 0) -> Strategy:
    default = next(iter(space))
    return make_strategy(name, SearchSpace(space, default, lambda config: 1.0, logarithms), seed)


def drain(
    strategy: Strategy, batch: int, time: Callable[[Config], float], limit: int = 10_000
) -> list[Config]:
    """Ask until the strategy has nothing more to propose, and tell it all results."""
    asked: list[Config] = []
    while len(asked) < limit and (configs := strategy.ask(batch)):
        asked += configs
        strategy.tell([Trial(config, time(config)) for config in configs])
    return asked


def small_time(config: Config) -> float:
    return 1.0 / (config.number("x") * config.number("y"))


@pytest.mark.parametrize("name", OVER_KNOBS)
class TestEvery:
    @pytest.mark.parametrize("batch", [3, 1000])
    def test_the_whole_space_is_proposed_once_the_default_first(self, name: str, batch: int) -> None:
        strategy = start(name)
        asked = drain(strategy, batch, small_time)
        assert asked[0] == strategy.search.default
        assert len(asked) == len(set(asked))
        assert set(asked) == set(SMALL)
        assert strategy.ask(8) == []

    def test_no_more_than_asked_for(self, name: str) -> None:
        strategy = start(name, LARGE)
        for count in (1, 8, 5):
            configs = strategy.ask(count)
            assert 1 <= len(configs) <= count
            strategy.tell([Trial(config, valley(config)) for config in configs])

    def test_the_seed_fixes_the_sequence(self, name: str) -> None:
        first, again = (drain(start(name, LARGE, seed=5), 8, valley, limit=32) for _ in range(2))
        assert first == again
        if name != "grid":
            assert first != drain(start(name, LARGE, seed=6), 8, valley, limit=32)

    def test_a_search_that_was_broken_off_goes_on_where_it_was(self, name: str) -> None:
        """Told the same results in the same batches, a new strategy asks what the old one would."""
        whole = drain(start(name, LARGE), 8, valley, limit=32)
        known = {config: valley(config) for config in whole[:24]}
        resumed = start(name, LARGE)
        for _ in range(3):
            resumed.tell([Trial(config, known[config]) for config in resumed.ask(8)])
        assert resumed.ask(8) == whole[24:32]

    def test_failures_are_results_like_others(self, name: str) -> None:
        for time in (lambda config: math.inf, lambda config: small_time(config) if config["z"] else math.inf):
            assert set(drain(start(name), 8, time)) == set(SMALL)

    def test_a_space_of_one(self, name: str) -> None:
        only = Space("toy", (Knob("x", (1,)), Knob("y", (2,))), lambda config: True)
        assert drain(start(name, only), 8, lambda config: 1.0) == [Config.of(x=1, y=2)]


def best_of(name: str, seed: int, trials: int) -> float:
    return min(map(valley, drain(start(name, LARGE, seed), 16, valley, limit=trials)))


def test_a_model_finds_in_few_trials_what_chance_does_not() -> None:
    """The replay lab asks the same of measured spaces."""
    best = {name: statistics.median(best_of(name, seed, 64) for seed in range(3)) for name in OVER_KNOBS}
    assert best["xgboost"] < best["random"] / 2, best


def test_the_first_batch_follows_the_estimate() -> None:
    search = SearchSpace(LARGE, next(iter(LARGE)), valley, logarithms)
    batch = make_strategy("xgboost", search, seed=0).ask(8)[1:]
    typical = statistics.median(valley(config) for config in make_strategy("random", search, 0).ask(200))
    assert sum(valley(config) < typical / 2 for config in batch) >= 4


def test_random_draws_reach_every_corner() -> None:
    strategy = start("random", LARGE)
    asked = strategy.ask(500)
    for knob in LARGE.knobs:
        assert {config[knob.name] for config in asked} == set(knob.values)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownStrategyError) as caught:
        strategy_class("annealing")
    assert "'annealing'" in str(caught.value)
    for name in ("auto", "template", *STRATEGIES):
        assert name in str(caught.value)


def test_auto_and_template_are_the_model_guided_one() -> None:
    assert strategy_class("auto") is strategy_class("template") is STRATEGIES["xgboost"]
    assert {strategy.name for strategy in STRATEGIES.values()} == set(STRATEGIES)


def test_each_strategy_searches_templates_of_its_kind() -> None:
    work, machine = workload("matmul", m=8, n=8, k=8), target("x86-64-v3")
    for name in OVER_KNOBS:
        (template,) = templates_of(name, work, machine)
        assert not isinstance(template, Sketch)
    (template,) = templates_of("sketch", work, machine)
    assert isinstance(template, Sketch)
    assert len(templates_of("auto", work, machine)) >= 2


def test_a_strategy_without_a_template_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from tvmops.tuner import strategy

    monkeypatch.setattr(strategy, "templates_for", lambda work, machine: [Sketch()])
    with pytest.raises(NoTemplateError, match="'matmul m=8"):
        templates_of("random", workload("matmul", m=8, n=8, k=8), target("x86-64-v3"))
