from __future__ import annotations

import random

import pytest

from tvmops.errors import KnobError
from tvmops.space import Config, Knob, Space

KNOBS = (Knob("tile", (1, 2, 4, 8)), Knob("order", ("ij", "ji")), Knob("pack", (False, True)))


def is_legal(config: Config) -> bool:
    return config["tile"] != 8 or config["pack"] is True


SPACE = Space("toy", KNOBS, is_legal)
ALL = list(SPACE)


def test_iteration_yields_each_legal_config_once() -> None:
    assert len(ALL) == 4 * 2 * 2 - 2
    assert len(set(ALL)) == len(ALL)
    assert all(map(is_legal, ALL))
    assert list(SPACE) == ALL


def test_membership_is_the_same_as_iteration() -> None:
    assert all(config in SPACE for config in ALL)
    illegal = Config.of(tile=8, order="ij", pack=False)
    unknown_value = Config.of(tile=3, order="ij", pack=False)
    other_order = Config.of(order="ij", tile=1, pack=False)
    for config in (illegal, unknown_value, other_order, Config.of(tile=1), "tile=1"):
        assert config not in SPACE


def test_samples_are_legal_reach_everything_and_follow_the_seed() -> None:
    rng = random.Random(1)
    drawn = [SPACE.sample(rng) for _ in range(400)]
    assert set(drawn) == set(ALL)
    again = random.Random(1)
    assert [SPACE.sample(again) for _ in range(400)] == drawn


def test_a_space_without_legal_configs_gives_none() -> None:
    assert Space("empty", KNOBS, lambda config: False).sample(random.Random(0), tries=10) is None


@pytest.mark.parametrize("config", ALL, ids=str)
def test_neighbours_differ_by_one_step_of_one_knob(config: Config) -> None:
    values = {knob.name: knob.values for knob in KNOBS}
    for near in SPACE.neighbours(config):
        assert near in SPACE
        changed = [name for name, value in near.items if config[name] != value]
        assert len(changed) == 1
        steps = values[changed[0]]
        assert abs(steps.index(near[changed[0]]) - steps.index(config[changed[0]])) == 1
        assert config in SPACE.neighbours(near)


def test_neighbours_leave_out_what_is_illegal() -> None:
    assert set(SPACE.neighbours(Config.of(tile=8, order="ij", pack=True))) == {
        Config.of(tile=4, order="ij", pack=True),
        Config.of(tile=8, order="ji", pack=True),
    }


def test_a_config_is_read_from_a_log_in_any_order_of_knobs() -> None:
    config = SPACE.config({"pack": True, "order": "ji", "tile": 8})
    assert config == Config.of(tile=8, order="ji", pack=True)
    assert config in SPACE


@pytest.mark.parametrize(
    "knobs, what",
    [
        ({"tile": 3, "order": "ij", "pack": True}, "knob 'tile' is 3; expected one of 1, 2, 4, 8"),
        ({"tile": 1, "order": "ij"}, "knob 'pack' is 'missing'"),
        ({"tile": 1, "order": "ij", "pack": True, "cache": 1}, "knob 'cache' is 1; expected a knob"),
        ({"tile": 8, "order": "ij", "pack": False}, "expected a legal combination"),
    ],
)
def test_a_config_outside_the_space_is_refused_by_name(knobs: dict[str, object], what: str) -> None:
    with pytest.raises(KnobError, match=f"^toy: .*{what}"):
        SPACE.config(knobs)  # type: ignore[arg-type]


def test_the_key_of_equal_configs_is_equal() -> None:
    first, second = Config.of(tile=1, pack=True), Config.of(pack=True, tile=1)
    assert first.key == second.key
    assert first.key != first.replace(tile=2).key


def test_replace_changes_the_named_knobs_alone() -> None:
    config = Config.of(tile=1, order="ij", pack=False).replace(order="ji")
    assert config.as_dict() == {"tile": 1, "order": "ji", "pack": False}
    assert str(config) == "tile=1 order=ji pack=False"
    assert config.number("pack") == 0
    with pytest.raises(KeyError):
        config["cache"]
