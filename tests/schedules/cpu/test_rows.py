"""Softmax, norms and activations against float64, amid guard bands, on vectors of each width."""

from __future__ import annotations

import dataclasses
import itertools
import random
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schedules.cpu import guarded
from tests.schedules.cpu.kernels import Kernel
from tvmops.measure.build import compile_module
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.signatures.activations import ACTIVATIONS
from tvmops.signatures.dtypes import decode, encode
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
    {"op": "softmax", "dtype": "bfloat16"},
    {"op": "softmax", "log": True, "scaled": True, "mask_rows": 3, "dtype": "bfloat16"},
    {"op": "layer_norm", **ALL_NORM, "dtype": "bfloat16"},
    {"op": "rms_norm", "weight": True, "dtype": "bfloat16"},
]
DTYPES = ("float32", "bfloat16")
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
    """Call `kernel` on random inputs, which `change` may alter, and compare with float64."""
    op, dtype = op_of(work), str(work["dtype"])
    values = [decode(array, dtype).copy() for array in op.random_inputs(work, seed=7)]
    if change is not None:
        change(values)
    guarded.check(kernel, work, [encode(array, dtype) for array in values], offset)


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


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("on", ["x86-64-v3", "x86-64-v4"])
def test_results_past_the_caches(form: dict[str, Any], on: str) -> None:
    """Rows that begin at any element; one shorter than the way to an aligned one."""
    pattern = shaped(form, 3, 1).generic()
    config = templates_for(pattern, machine(on))[0].generic(pattern, machine(on))[-1].config
    kernel = built(pattern, machine(on), config.replace(stream=True))
    for rows, cols in ((3, 1), (3, 17), (6, 64), (3, 131)):
        for offset in (0, 1, 12):
            check(kernel, shaped(form, rows, cols), offset)


@pytest.mark.parametrize("on", ["x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("stream", [False, True])
def test_only_streaming_makes_stores_that_pass_the_caches(on: str, stream: bool) -> None:
    work = workload("layer_norm", rows=8, cols=256)
    template = templates_for(work, machine(on))[0]
    config = template.default(work, machine(on)).replace(stream=stream)
    code = compile_module(template.build(work, machine(on), config), machine(on)).inspect_source("asm")
    assert ("vmovntps" in code) is stream
    assert ("sfence" in code) is stream


@pytest.mark.parametrize(
    "spec, rows",  # that are asked for: the next one of each large input
    [("softmax", 1), ("layer_norm", 1), ("layer_norm residual=true", 2), ("rms_norm", 1)],
)
@pytest.mark.parametrize("ahead", [False, True])
def test_the_next_row_is_asked_for_once(spec: str, rows: int, ahead: bool) -> None:
    work, target = Workload.parse(f"{spec} rows=1000 cols=64"), machine("x86-64-v4")
    template = templates_for(work, target)[0]
    config = template.default(work, target).replace(slots=4, tasks=1, ahead=ahead)
    code = compile_module(template.build(work, target, config), target).inspect_source("asm")
    assert code.count("prefetcht0") == (4 * rows if ahead else 0)  # four vectors, each a line


def unusual(drawn: list[Any]) -> None:
    x = drawn[0]
    x[0] = -np.inf
    x[1, 3] = np.nan
    x[2, 5] = np.inf
    x[3] = 3e38
    x[4] = 1e-40  # denormal
    x[5, :7] = -np.inf
    x[6] = -1024
    x[6, 4] = 1024


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("index", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_of_unusual_values_is_that_of_float64(
    log: bool, scaled: bool, index: int, dtype: str
) -> None:
    work = workload("softmax", rows=9, cols=37, log=log, scaled=scaled, dtype=dtype)
    check(generic(work.generic(), "x86-64-v4", index), work, change=unusual)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("on", ["x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_along_another_axis(log: bool, on: str, dtype: str) -> None:
    for scaled, mask_rows in ((False, 0), (True, 0), (True, 1)):
        form = {"axis": "middle", "log": log, "scaled": scaled, "mask_rows": mask_rows, "dtype": dtype}
        pattern = workload("softmax", rows=9, cols=9, inner=9, **form).generic()
        for rows, cols, inner in ((1, 5, 2), (3, 1, 16), (2, 7, 37), (3, 40, 131), (2, 9, 64)):
            work = workload("softmax", rows=rows, cols=cols, inner=inner, **form)
            masks = (work, work.replace(mask_rows=rows)) if mask_rows else (work,)
            for index, masked in itertools.product((0, 1), masks):
                check(generic(pattern, on, index), masked, offset=1)
    check(generic(pattern, on, 1), work, change=unusual_columns)


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
@pytest.mark.parametrize("dtype, on", [("float32", "x86-64-v4"), ("bfloat16", "x86-64-v3")])
def test_activations(name: str, dtype: str, on: str) -> None:
    for index, size in itertools.product((0, 1), (1, 63, 64, 1000, 40_000)):
        work = workload("activation", size=size, activation=name, dtype=dtype)
        check(generic(work.generic(), on, index), work, offset=1)


def infinite(drawn: list[Any]) -> None:
    drawn[0][:5] = np.nan, np.inf, -np.inf, 1e-40, -1e-40


@pytest.mark.parametrize("name", ["relu", "relu6", "sigmoid", "tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_of_unusual_values(name: str, dtype: str) -> None:
    work = workload("activation", size=70, activation=name, dtype=dtype)
    check(generic(work.generic(), "x86-64-v4", 0), work, change=infinite)


def unusual_rows(drawn: list[Any]) -> None:
    x = drawn[0]
    x[0] = np.inf
    x[1, 3] = np.nan
    x[2, 5] = -np.inf
    x[3] = 1e-40
    x[4] *= 1e18


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_of_unusual_values(op: str, dtype: str) -> None:
    work = workload(op, rows=7, cols=37, weight=True, dtype=dtype)
    check(generic(work.generic(), "x86-64-v4", 2), work, change=unusual_rows)


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
