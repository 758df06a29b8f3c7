"""Attention against a cache is right for every shape, mask and config, at any address."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.schedules.cpu.attention_kernels import Dims, attention, kernels_of
from tests.schedules.cpu.guarded import check, compiled
from tvmops.machine import this_machine
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cpu.attention_decode import CpuDecode
from tvmops.signatures.dtypes import encode
from tvmops.targets import names, target
from tvmops.workloads import Workload

TEMPLATE = CpuDecode()
default_kernel = kernels_of(TEMPLATE)
TARGETS = [name for name in ("x86-64-v3", "x86-64-v4") if not target(name).missing(this_machine())]

WORK: list[tuple[Dims, dict[str, object], str]] = [
    ((1, 1, 1, 1, 1, 1), {}, "the least"),
    ((2, 2, 2, 1, 256, 64), {}, "whole tiles and blocks"),
    ((1, 6, 2, 1, 255, 80), {}, "one less; three heads share one"),
    ((1, 4, 4, 3, 257, 17), {"causal": True}, "one more; an edge in head_dim"),
    ((1, 8, 1, 8, 150, 128), {"causal": True}, "64 queries share a head"),
    ((1, 2, 1, 4, 70, 96), {"causal": True, "align": "top-left"}, "later keys that no query sees"),
    ((1, 2, 2, 8, 3, 24), {"causal": True}, "queries before the first key"),
    ((2, 2, 1, 5, 37, 256), {"mask": "bool"}, "one mask for all heads"),
    ((2, 2, 1, 3, 130, 8), {"mask": "float32", "mask_dims": "bhqk"}, "a mask each"),
    ((2, 2, 2, 1, 33, 5), {"mask": "bool", "mask_dims": "bk", "causal": True}, "padding"),
    ((2, 4, 2, 3, 150, 80), {"causal": True, "dtype": "bfloat16"}, "whole vectors"),
    ((2, 4, 2, 3, 150, 24), {"causal": True, "layout": "blhd"}, "heads lie within positions"),
    ((1, 2, 1, 1, 70, 17), {"mask": "float32", "mask_dims": "k", "dtype": "bfloat16"}, "an edge in head_dim"),
]
CASES = [pytest.param(attention(dims, **fields), id=f"{dims}: {why}") for dims, fields, why in WORK]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("work", CASES)
def test_the_default_config(work: Workload, name: str) -> None:
    check(default_kernel(work, name), work, offset=3)


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 4)),
    st.tuples(st.integers(2, 8), st.integers(1, 300), st.integers(1, 70)),
    st.booleans(),
    st.sampled_from(["none", "bool", "float32"]),
    st.sampled_from(TARGETS),
    st.sampled_from(["float32", "bfloat16"]),
    st.integers(0, 2**16),
)
def test_any_config_at_any_shape(
    heads: tuple[int, int, int],
    lengths: tuple[int, int, int],
    causal: bool,
    mask: str,
    name: str,
    dtype: str,
    seed: int,
) -> None:
    batch, kv_heads, group = heads
    dims = (batch, kv_heads * group, kv_heads, *lengths)
    work = attention(dims, causal=causal, mask=mask, dtype=dtype)
    config = TEMPLATE.space(work, target(name)).sample(random.Random(seed))
    assert config is not None
    check(compiled(TEMPLATE, work, target(name), config), work, offset=seed % 16)


@pytest.mark.parametrize("name", TARGETS)
def test_stretches_of_keys_are_merged(name: str) -> None:
    """More of them than cores; the last shorter; one that a causal mask hides from all queries."""
    machine = target(name)
    for dims, fields in [
        ((1, 1, 1, 1, 130, 16), {}),
        ((1, 2, 1, 2, 70, 17), {"causal": True, "align": "top-left"}),
    ]:
        work = attention(dims, **fields)
        config = TEMPLATE.default(work, machine).replace(splits=4, parallel=True, tiles=1, prefetch=1024)
        assert config in TEMPLATE.space(work, machine)
        check(compiled(TEMPLATE, work, machine, config), work)


@pytest.mark.parametrize(
    "fields", [{}, {"causal": True, "mask": "bool"}, {"dtype": "bfloat16", "layout": "blhd"}], ids=str
)
def test_the_generic_kernels(fields: dict[str, object]) -> None:
    """Each at every shape: ranges say what a kernel is meant for, not what it can do."""
    pattern = attention((2, 2, 1, 2, 2, 24), **fields).generic()
    for name in TARGETS:
        for generic in TEMPLATE.generic(pattern, target(name)):
            kernel = compiled(TEMPLATE, pattern, target(name), generic.config)
            for dims in [(2, 4, 2, 2, 200, 24), (1, 3, 3, 8, 7, 24), (3, 2, 1, 12, 130, 24)]:
                check(kernel, attention(dims, **fields), offset=5)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("unusual", ["nothing is seen", "NaN in k", "NaN in v", "inf in q", "+inf in a mask"])
def test_unusual_values_do_as_in_float64(unusual: str, name: str) -> None:
    work = attention((1, 2, 2, 2, 150, 16), mask="float32")
    q, k, v, mask = op_of(work).random_inputs(work, seed=3)
    mask[...] = 0
    if unusual == "nothing is seen":
        mask[..., 1, :] = -np.inf
    elif unusual == "+inf in a mask":
        mask[..., 1, 140] = np.inf
    elif unusual == "inf in q":
        q[0, 1, 1, 3] = np.inf
    else:
        {"k": k, "v": v}[unusual[-1]][0, 1, 149, 3] = np.nan
    check(default_kernel(work, name), work, [q, k, v, mask])
    narrow = work.replace(dtype="bfloat16")
    bits = [encode(array, "bfloat16") for array in (q, k, v)]
    check(default_kernel(narrow, name), narrow, [*bits, mask])


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("cores", [1, 6])
def test_the_default_is_in_the_space(name: str, cores: int) -> None:
    machine = replace(target(name), cores=cores)
    rng = random.Random(name)
    for _ in range(100):
        q_len, kv_len = rng.randint(1, 8), rng.choice((1, 2, 8, 17, 64, 127, 513, 4096))
        work = attention((1, 8, rng.choice((1, 2, 8)), q_len, kv_len, rng.choice((1, 5, 64, 80, 128, 256))))
        if not TEMPLATE.covers(work, machine):
            pytest.skip("the template is for other machines")
        config = TEMPLATE.default(work, machine)
        assert config in TEMPLATE.space(work, machine), work
        assert TEMPLATE.estimate(work, machine, config) > 0


def test_it_is_the_first_template_for_few_queries_and_none_for_many() -> None:
    machine = target(TARGETS[0])
    found = templates_for(attention((1, 1, 1, 8, 64, 64)), machine)
    assert isinstance(found[0], CpuDecode)
    assert len(found) > 1
    assert not TEMPLATE.covers(attention((1, 1, 1, 9, 64, 64)), machine)
