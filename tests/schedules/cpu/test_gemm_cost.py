"""The estimate is rough, but never absurd: finite, positive, and it prefers what is plainly better."""

from __future__ import annotations

import math
import random

import pytest

from tests.schedules.cpu.kernels import TEMPLATE, Shape, matmul
from tvmops.space import Config
from tvmops.targets import target

SHAPES = [(1, 1, 1), (1, 4096, 4096), (17, 31, 61), (1024, 1024, 1024), (128, 11008, 4096)]
TARGETS = ["x86-64-v3", "x86-64-v4"]


def sampled(shape: Shape, name: str) -> list[Config]:
    space, rng = TEMPLATE.space(matmul(*shape), target(name)), random.Random(0)
    return [config for _ in range(200) if (config := space.sample(rng)) is not None]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_config_has_a_finite_estimate_and_features(shape: Shape, name: str) -> None:
    work, machine = matmul(*shape), target(name)
    names = set(TEMPLATE.features(work, machine, TEMPLATE.default(work, machine)))
    for config in sampled(shape, name):
        estimate = TEMPLATE.estimate(work, machine, config)
        assert 0 < estimate < math.inf
        features = TEMPLATE.features(work, machine, config)
        assert set(features) == names, "a model needs the same features of every config"
        assert all(map(math.isfinite, features.values()))


@pytest.mark.parametrize("name", TARGETS)
def test_the_names_of_features_hold_across_shapes(name: str) -> None:
    machine = target(name)
    names = {
        frozenset(TEMPLATE.features(matmul(*shape), machine, TEMPLATE.default(matmul(*shape), machine)))
        for shape in SHAPES
    }
    assert len(names) == 1


@pytest.mark.parametrize("name", TARGETS)
def test_the_estimate_prefers_what_is_plainly_better(name: str) -> None:
    work, machine = matmul(1024, 1024, 1024), target(name)
    good = TEMPLATE.default(work, machine)
    for worse in (
        {"mr": 1, "nv": 1},  # one accumulator waits for itself
        {"split_m": 1, "split_n": 1},  # one core of several
        {"kc": 8},  # the output is swept 128 times
    ):
        config = good.replace(**worse)
        assert config in TEMPLATE.space(work, machine)
        assert TEMPLATE.estimate(work, machine, config) > TEMPLATE.estimate(work, machine, good)


@pytest.mark.parametrize("name", TARGETS)
def test_the_default_is_among_the_better_half_by_its_own_estimate(name: str) -> None:
    work, machine = matmul(512, 512, 512), target(name)
    estimates = sorted(TEMPLATE.estimate(work, machine, config) for config in sampled((512, 512, 512), name))
    default = TEMPLATE.estimate(work, machine, TEMPLATE.default(work, machine))
    assert default < estimates[len(estimates) // 2]


def test_no_estimate_is_less_than_the_multiplications_take() -> None:
    """A core retires at most two vector multiplications a cycle."""
    for shape in SHAPES:
        work, machine = matmul(*shape), target("x86-64-v4")
        least = math.prod(shape) / 16 / machine.cores / 2
        for config in sampled(shape, "x86-64-v4"):
            assert TEMPLATE.estimate(work, machine, config) >= least
