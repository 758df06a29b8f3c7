"""Attention by products of pairs of bfloat16 is right for every shape, mask and config."""

from __future__ import annotations

import random
from dataclasses import replace

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
)
from tests.schedules.cpu.guarded import check, compiled
from tvmops.machine import this_machine
from tvmops.schedules import templates_for
from tvmops.schedules.cpu.attention_dot import CpuAttentionDot
from tvmops.targets import names, target

TEMPLATE = CpuAttentionDot()
default_kernel, generic_kernels = kernels_of(TEMPLATE), generic_kernels_of(TEMPLATE)
CAPABLE = [name for name in names() if "avx512_bf16" in target(name).needs]
TARGETS = [name for name in CAPABLE if not target(name).missing(this_machine())][-1:]
runs = pytest.mark.parametrize("name", TARGETS)

WORK: list[tuple[Dims, dict[str, object], str]] = [
    ((1, 1, 1, 1, 1, 2), {}, "the least"),
    ((1, 2, 2, 32, 48, 32), {}, "whole tiles and vectors of words"),
    ((2, 3, 3, 33, 49, 34), {}, "one more than these; an odd number of keys"),
    ((2, 4, 2, 17, 131, 80), {"causal": True}, "two heads share one; several blocks"),
    ((1, 4, 1, 70, 20, 24), {"causal": True}, "queries before the first key"),
    ((2, 2, 1, 19, 70, 128), {"mask": "float32", "mask_dims": "bhqk"}, "a mask each"),
    ((2, 2, 2, 20, 33, 6), {"mask": "bool", "mask_dims": "bk"}, "padding"),
    ((2, 6, 2, 3, 71, 64), {}, "queries of three heads fill a vector"),
    ((2, 8, 2, 5, 71, 24), {"causal": True}, "a few positions of four heads"),
    ((2, 4, 2, 33, 70, 96), {"causal": True, "layout": "blhd"}, "heads lie within positions"),
    ((1, 1, 1, 5, 301, 256), {"causal": True}, "less than a vector of queries"),
]


@runs
@pytest.mark.parametrize("dims, fields", [pytest.param(*work[:2], id=work[2]) for work in WORK])
def test_the_default_config(dims: Dims, fields: dict[str, object], name: str) -> None:
    work = attention(dims, dtype="bfloat16", **fields)
    check(default_kernel(work, name), work, offset=3)


@runs
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3)),
    st.tuples(st.integers(1, 70), st.integers(1, 90), st.integers(1, 35)),
    st.booleans(),
    st.sampled_from(["none", "bool", "float32"]),
    st.integers(0, 2**16),
)
def test_any_config_at_any_shape(
    name: str,
    heads: tuple[int, int, int],
    lengths: tuple[int, int, int],
    causal: bool,
    mask: str,
    seed: int,
) -> None:
    (batch, kv_heads, group), (q_len, kv_len, words) = heads, lengths
    dims = (batch, kv_heads * group, kv_heads, q_len, kv_len, 2 * words)
    dims_of_mask = "k" if batch == 1 and mask != "none" else "qk"
    work = attention(dims, causal=causal, mask=mask, mask_dims=dims_of_mask, dtype="bfloat16")
    config = TEMPLATE.space(work, target(name)).sample(random.Random(seed))
    assert config is not None
    check(compiled(TEMPLATE, work, target(name), config), work, offset=seed % 16)


@runs
@pytest.mark.parametrize("fields", [{}, {"causal": True, "layout": "blhd"}, {"mask": "bool"}], ids=str)
def test_the_generic_kernels(fields: dict[str, object], name: str) -> None:
    pattern = attention((2, 4, 2, 33, 51, 24), dtype="bfloat16", **fields).generic()
    for kernel in generic_kernels(pattern, name):
        for dims in [(2, 4, 2, 33, 51, 24), (3, 2, 1, 100, 291, 24), (2, 1, 1, 2, 1, 24)]:
            check(kernel, attention(dims, dtype="bfloat16", **fields), offset=5)


@runs
@pytest.mark.parametrize("unusual", UNUSUAL)
def test_unusual_values_do_as_in_float64(unusual: str, name: str) -> None:
    narrow = ADVERSARIAL.replace(dtype="bfloat16")
    check(default_kernel(narrow, name), narrow, altered(unusual, "bfloat16"))


@pytest.mark.parametrize("name", CAPABLE)
def test_the_default_is_in_the_space(name: str) -> None:
    rng = random.Random(name)
    for cores in (1, 6):
        machine = replace(target(name), cores=cores)
        for _ in range(50):
            q_len, kv_len = (rng.choice((1, 2, 8, 17, 64, 127, 513, 4096)) for _ in range(2))
            work = attention((1, 2, 1, q_len, kv_len, rng.choice((2, 64, 80, 256))), dtype="bfloat16")
            assert TEMPLATE.default(work, machine) in TEMPLATE.space(work, machine), work


def test_it_takes_pairs_of_bfloat16_where_the_target_multiplies_them() -> None:
    work = attention((1, 1, 1, 64, 64, 64), dtype="bfloat16")
    assert any(isinstance(each, CpuAttentionDot) for each in templates_for(work, target("znver4")))
    assert not TEMPLATE.covers(work, target("x86-64-v4"))
    assert not TEMPLATE.covers(work.replace(head_dim=65), target("znver4"))
    assert not TEMPLATE.covers(work.replace(dtype="float32"), target("znver4"))
