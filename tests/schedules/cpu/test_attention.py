"""Attention by tiles is right for every shape, mask and config, at any address."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.schedules.cpu.attention_kernels import (
    ADVERSARIAL,
    UNUSUAL,
    Dims,
    altered,
    attention,
    generic_kernels_of,
    kernels_of,
    run,
)
from tests.schedules.cpu.guarded import check, compiled
from tvmops.machine import this_machine
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cpu.attention import CpuAttention
from tvmops.signatures.attention import MASK_DIMS
from tvmops.targets import names, target
from tvmops.workloads import Workload

TEMPLATE = CpuAttention()
default_kernel, generic_kernels = kernels_of(TEMPLATE), generic_kernels_of(TEMPLATE)
TARGETS = [name for name in ("x86-64-v3", "x86-64-v4") if not target(name).missing(this_machine())]

WORK: list[tuple[Dims, dict[str, object], str]] = [
    ((1, 1, 1, 1, 1, 1), {}, "the least"),
    ((1, 2, 2, 32, 48, 16), {}, "whole tiles"),
    ((2, 3, 3, 33, 49, 17), {}, "one more than whole tiles"),
    ((1, 2, 2, 31, 47, 15), {"causal": True}, "one less than whole tiles"),
    ((2, 4, 2, 17, 130, 80), {"causal": True}, "two heads share one; several blocks"),
    ((1, 4, 1, 70, 20, 24), {"causal": True}, "queries before the first key; all heads share one"),
    ((1, 2, 1, 50, 70, 96), {"causal": True, "align": "top-left"}, "later keys that no query sees"),
    ((2, 4, 2, 37, 41, 8), {"mask": "bool"}, "one mask for all heads"),
    ((2, 2, 1, 19, 70, 128), {"mask": "float32", "mask_dims": "bhqk"}, "a mask each"),
    ((2, 2, 2, 20, 33, 5), {"mask": "bool", "mask_dims": "bk"}, "padding"),
    ((1, 3, 1, 18, 35, 40), {"mask": "float32", "mask_dims": "hk", "causal": True}, "two masks at once"),
    ((1, 1, 1, 5, 300, 256), {"causal": True}, "less than a vector of queries"),
    ((2, 6, 2, 3, 70, 24), {}, "queries of three heads fill a vector"),
    ((1, 4, 1, 5, 49, 17), {"dtype": "bfloat16"}, "queries of four heads fill more than one"),
    ((2, 8, 2, 5, 70, 24), {"causal": True}, "a few positions of four heads"),
    ((1, 6, 1, 8, 3, 16), {"causal": True}, "positions before the first key, of six heads"),
    ((1, 6, 2, 7, 40, 16), {"causal": True, "align": "top-left"}, "few keys that a query sees"),
    ((2, 4, 2, 33, 70, 24), {"causal": True, "layout": "blhd"}, "heads lie within positions"),
    ((2, 4, 2, 33, 130, 80), {"causal": True, "dtype": "bfloat16"}, "two heads share one; several blocks"),
    ((1, 3, 1, 17, 49, 17), {"mask": "float32", "mask_dims": "hk", "dtype": "bfloat16"}, "edges everywhere"),
]
CASES = [pytest.param(attention(dims, **fields), id=f"{dims}: {why}") for dims, fields, why in WORK]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("work", CASES)
def test_the_default_config(work: Workload, name: str) -> None:
    check(default_kernel(work, name), work, offset=3)


@pytest.mark.parametrize("dims", MASK_DIMS)
@pytest.mark.parametrize("kind", ["bool", "float32"])
def test_masks_of_every_form(dims: str, kind: str) -> None:
    work = attention((2, 2, 1, 18, 21, 8), mask=kind, mask_dims=dims)
    check(default_kernel(work, TARGETS[-1]), work, offset=1)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3)),
    st.tuples(st.integers(1, 70), st.integers(1, 90), st.integers(1, 70)),
    st.booleans(),
    st.sampled_from(["none", "bool", "float32"]),
    st.sampled_from(TARGETS),
    st.sampled_from(["float32", "bfloat16"]),
    st.sampled_from(["bhld", "blhd"]),
    st.integers(0, 2**16),
)
def test_any_config_at_any_shape(
    heads: tuple[int, int, int],
    lengths: tuple[int, int, int],
    causal: bool,
    mask: str,
    name: str,
    dtype: str,
    layout: str,
    seed: int,
) -> None:
    batch, kv_heads, group = heads
    work = attention(
        (batch, kv_heads * group, kv_heads, *lengths),
        causal=causal,
        mask=mask,
        mask_dims="k" if lengths[0] == 1 and mask != "none" else "qk",
        dtype=dtype,
        layout=layout,
    )
    config = TEMPLATE.space(work, target(name)).sample(random.Random(seed))
    assert config is not None
    check(compiled(TEMPLATE, work, target(name), config), work, offset=seed % 16)


PATTERNS: list[dict[str, object]] = [
    {},
    {"causal": True},
    {"causal": True, "align": "top-left", "mask": "bool"},
    {"mask": "float32", "mask_dims": "bk"},
    {"causal": True, "dtype": "bfloat16", "layout": "blhd"},
]


@pytest.mark.parametrize("fields", PATTERNS, ids=str)
def test_the_generic_kernels(fields: dict[str, object]) -> None:
    """Each at every shape: ranges say what a kernel is meant for, not what it can do."""
    for dims in [(2, 4, 2, 33, 50, 24), (2, 3, 3, 16, 7, 24), (3, 2, 1, 100, 290, 24), (2, 1, 1, 2, 1, 24)]:
        work = attention(dims, **fields)
        for name in TARGETS:
            for kernel in generic_kernels(work.generic(), name):
                check(kernel, work, offset=5)


def test_some_generic_kernel_takes_every_shape() -> None:
    pattern = attention((1, 1, 1, 1, 1, 8)).generic()
    assert any(not generic.ranges for generic in TEMPLATE.generic(pattern, target(TARGETS[0])))


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("unusual", UNUSUAL)
def test_unusual_values_do_as_in_float64(unusual: str, name: str) -> None:
    for dtype in ("float32", "bfloat16"):
        work = ADVERSARIAL.replace(dtype=dtype)
        check(default_kernel(work, name), work, altered(unusual, dtype))


@pytest.mark.parametrize("name", TARGETS)
def test_the_largest_of_scores_far_apart_takes_all(name: str) -> None:
    """Scores of some 10**4 err by 10**-3, so compare with the value of the largest."""
    q, k, v, mask = altered("scores far apart")
    result = run(default_kernel(ADVERSARIAL, name), ADVERSARIAL, [q, k, v, mask])
    scores = q[0, 0].astype("float64") @ k[0, 0].T
    first, second = np.sort(scores)[:, -1], np.sort(scores)[:, -2]
    clear = first - second > 1000
    assert clear.sum() > 10
    np.testing.assert_allclose(result[0, 0][clear], v[0, 0][scores.argmax(1)][clear], rtol=1e-6)


@pytest.mark.parametrize("name", TARGETS)
def test_what_keys_hold_that_are_not_seen_does_not_matter(name: str) -> None:
    for fields in ({"causal": True}, {"mask": "bool", "mask_dims": "k"}):
        work = attention((1, 1, 1, 20, 40, 16), **fields)
        kernel = default_kernel(work, name)
        inputs = op_of(work).random_inputs(work, seed=3)
        if "mask" in fields:
            inputs[3][..., 30:] = 0
        before = run(kernel, work, inputs)
        inputs[1][0, 0, 30:] = np.nan
        after = run(kernel, work, inputs)
        rows = slice(0, 10 if "causal" in fields else 20)  # query 9 sees keys up to 29
        assert np.array_equal(before[0, 0, rows], after[0, 0, rows])


@pytest.mark.parametrize("offset", range(0, 16, 3))
def test_arrays_may_start_at_any_element(offset: int) -> None:
    work = attention((1, 2, 1, 17, 33, 24))
    for kernel in generic_kernels(work.generic(), TARGETS[-1]):
        check(kernel, work, offset=offset)


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_an_output_that_overlaps_an_input_is_refused_before_it_is_written(argument: int) -> None:
    work = attention((1, 1, 1, 16, 16, 8))
    inputs = op_of(work).random_inputs(work, seed=0)
    memory = np.ones(2 * 128, "float32")
    inputs[argument] = memory[:128].reshape(1, 1, 16, 8)
    with pytest.raises(ValueError, match=f"'out' shares memory with '{'qkv'[argument]}'"):
        default_kernel(work, TARGETS[0])(*inputs, 1.0, memory[127:255].reshape(1, 1, 16, 8))
    assert (memory == 1).all()


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("cores", [1, 6])
def test_the_default_is_in_the_space(name: str, cores: int) -> None:
    machine = replace(target(name), cores=cores)
    rng = random.Random(name)
    for _ in range(100):
        q_len, kv_len = (rng.choice((1, 2, 8, 17, 64, 127, 513, 4096)) for _ in range(2))
        work = attention((1, 2, 1, q_len, kv_len, rng.choice((1, 5, 64, 80, 96, 128, 256))))
        if not TEMPLATE.covers(work, machine):
            pytest.skip("the template is for other machines")
        config = TEMPLATE.default(work, machine)
        assert config in TEMPLATE.space(work, machine), work
        assert TEMPLATE.estimate(work, machine, config) > 0


def test_building_twice_gives_the_same_code() -> None:
    work, machine = attention((1, 2, 1, 17, 33, 24)), target(TARGETS[0])
    config = TEMPLATE.default(work, machine)
    first, second = (TEMPLATE.build(work, machine, config).script() for _ in range(2))
    assert first == second


def test_it_is_among_the_templates_for_attention() -> None:
    found = templates_for(attention((1, 1, 1, 64, 64, 64)), target(TARGETS[0]))
    assert any(isinstance(template, CpuAttention) for template in found)
