"""Softmax, norms and activations against float64, amid guard bands, on vectors of each width."""

from __future__ import annotations

import dataclasses
import random
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schedules.cpu.kernels import SENTINEL, Banded, Kernel
from tvmops.measure.build import compile_module
from tvmops.measure.verify import largest_error
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.signatures.activations import ACTIVATIONS
from tvmops.space import Config
from tvmops.targets import Target, target
from tvmops.workloads import Workload, workload

ALL_NORM = {"weight": True, "bias": True, "residual": True}
FORMS: list[dict[str, Any]] = [
    {"op": "softmax"},
    {"op": "softmax", "log": True},
    {"op": "softmax", "scaled": True, "mask_rows": 1},
    {"op": "softmax", "log": True, "scaled": True, "mask_rows": 3},
    {"op": "layer_norm"},
    {"op": "layer_norm", **ALL_NORM},
    {"op": "rms_norm", "weight": True},
    {"op": "rms_norm", **ALL_NORM},
]
SHAPES = [(3, 1), (3, 15), (6, 16), (3, 17), (6, 64), (3, 131), (15, 300)]  # below, at and beyond vectors


@cache
def machine(name: str) -> Target:
    return dataclasses.replace(target(name), cores=2)


def shaped(form: dict[str, Any], rows: int, cols: int) -> Workload:
    fields = {name: value for name, value in form.items() if name != "op"}
    return workload(form["op"], rows=rows, cols=cols, **fields)


def built(work: Workload, on: Target, config: Config) -> Kernel:
    kernel: Kernel = compile_module(templates_for(work, on)[0].build(work, on, config), on)["main"]
    return kernel


@cache
def generic(pattern: Workload, on: str, index: int) -> Kernel:
    kernels = templates_for(pattern, machine(on))[0].generic(pattern, machine(on))
    return built(pattern, machine(on), kernels[index].config)


def check(kernel: Kernel, work: Workload, offset: int = 0, change: Any = None) -> None:
    """Call `kernel` on random inputs, NaN around them, and compare with float64."""
    op = op_of(work)
    drawn = op.random_inputs(work, seed=7)
    if change is not None:
        change(drawn)
    expected = op.reference(work, *drawn)
    inputs = [Banded.of(array.shape, np.nan, offset) for array in drawn]
    for banded, array in zip(inputs, drawn):
        banded.array[...] = array
    outputs = [Banded.of(array.shape, float(SENTINEL), offset) for array in expected]

    kernel(*(each.array for each in inputs), *op.scalars(work), *(each.array for each in outputs))

    for output, right in zip(outputs, expected):
        assert largest_error(output.array, right) <= op.tolerance(work), work
        assert output.is_intact(), "wrote beyond an output"
    for banded, array in zip(inputs, drawn):
        assert np.array_equal(banded.array, array, equal_nan=True), "wrote to an input"
        assert banded.is_intact(), "wrote beyond an input"


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("on", ["x86-64-v3", "x86-64-v4"])
def test_generic_kernels_answer_every_shape(form: dict[str, Any], on: str) -> None:
    pattern = shaped(form, 3, 1).generic()
    for index, (rows, cols) in enumerate(SHAPES):
        for offset in (0, 1):
            check(generic(pattern, on, 2 - index % 2), shaped(form, rows, cols), offset)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_random_configs_of_known_shapes(form: dict[str, Any]) -> None:
    rng = random.Random(str(form))
    for rows, cols in ((3, 131), (6, 64)):
        work = shaped(form, rows, cols)
        space = templates_for(work, machine("x86-64-v4"))[0].space(work, machine("x86-64-v4"))
        config = space.sample(rng)
        assert config is not None
        check(built(work, machine("x86-64-v4"), config), work, offset=1)


@given(st.integers(1, 40), st.integers(1, 400), st.sampled_from(FORMS))
@settings(max_examples=60, deadline=None)
def test_any_rows_and_columns(groups: int, cols: int, form: dict[str, Any]) -> None:
    pattern = shaped(form, 3, 1).generic()
    check(generic(pattern, "x86-64-v4", 2), shaped(form, 3 * groups, cols))


def unusual(drawn: list[Any]) -> None:
    x = drawn[0]
    x[0] = -np.inf
    x[1, 3] = np.nan
    x[2, 5] = np.inf
    x[3] = 3e38
    x[4] = 1e-44
    x[5, :7] = -np.inf
    x[6] = -1000
    x[6, 4] = 1000


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("index", [1, 2])
def test_softmax_of_unusual_values_is_that_of_float64(log: bool, scaled: bool, index: int) -> None:
    work = workload("softmax", rows=9, cols=37, log=log, scaled=scaled)
    check(generic(work.generic(), "x86-64-v4", index), work, change=unusual)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("on", ["x86-64-v3", "x86-64-v4"])
def test_softmax_along_another_axis(log: bool, on: str) -> None:
    for scaled in (False, True):
        for rows, cols, inner in ((1, 5, 2), (3, 1, 16), (2, 7, 37), (3, 40, 131), (2, 9, 64)):
            sizes = {"rows": rows, "cols": cols, "inner": inner}
            work = workload("softmax", axis="middle", log=log, scaled=scaled, **sizes)
            for index in (0, 1):
                check(generic(work.replace(rows=9, cols=9).generic(), on, index), work, offset=1)
    check(generic(work.generic(), on, 1), work, change=unusual_columns)


def unusual_columns(drawn: list[Any]) -> None:
    drawn[0][0, :, :3] = -np.inf
    drawn[0][1, 2, 5:9] = np.nan
    drawn[0][1, :, 11] = 3e38


def large_mean(drawn: list[Any]) -> None:
    drawn[0] += 64  # of a spread of 0.6


def test_a_large_mean_costs_layer_norm_no_more_than_the_rounding_of_its_input() -> None:
    """Squares less the square of the mean would lose some 13 bits; 64 + x keeps all but 6."""
    work = workload("layer_norm", rows=4, cols=500)
    check(generic(work.generic(), "x86-64-v4", 2), work, change=large_mean)


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "none"])
@pytest.mark.parametrize("size", [1, 63, 64, 1000, 40_000])
def test_activations(name: str, size: int) -> None:
    work = workload("activation", size=size, activation=name)
    for index in (0, 1):
        check(generic(work.generic(), "x86-64-v4", index), work, offset=1)


def test_overlap_is_refused_before_anything_is_written() -> None:
    work = workload("layer_norm", rows=4, cols=16, residual=True)
    kernel = generic(work.generic(), "x86-64-v4", 2)
    x, residual, out = np.ones((3, 4, 16), np.float32)
    for arrays in (
        (x, residual, 1e-5, x, out),
        (x, residual, 1e-5, out, residual),
        (x, residual, 1e-5, out, out),
    ):
        with pytest.raises(ValueError, match="shares memory"):
            kernel(*arrays)
    assert (x == 1).all()
    assert (residual == 1).all()
