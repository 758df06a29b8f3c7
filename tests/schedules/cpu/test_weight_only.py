"""matmul_weight_only: right for all bits, groups and digits, with VNNI and without, and far from 1."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.schedules.cpu.guarded import check, compiled
from tvmops.machine import this_machine
from tvmops.ops import op_of
from tvmops.ops.matmul import ROUNDING
from tvmops.schedules.cpu.weight_only import WeightOnly
from tvmops.signatures.dtypes import decode, encode, stored
from tvmops.signatures.matmul_weight_only import groups_of
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = WeightOnly()
CANDIDATES = ("x86-64-v3", "x86-64-v4", "znver4", "sapphirerapids-no-amx")
RUNNABLE = [name for name in CANDIDATES if not target(name).missing(this_machine())]
SHAPES = {
    (1, 1, 1): "less than a word",
    (2, 33, 300): "edges each way, several groups",
    (5, 40, 64): "more rows than a tile",
    (1, 64, 256): "whole panels and groups",
}
FORMS: list[dict[str, Any]] = [
    {"group": 32},
    {"group": 128, "zero_points": True, "x_bits": 16},
    {"group": 64, "bits": 8},
    {"group": 32, "bits": 8, "zero_points": True, "x_bits": 8},
    {"group": 32, "bias": True, "activation": "gelu"},
    {"group": 64, "dtype": "bfloat16", "x_bits": 16, "bias": True, "activation": "relu"},
]


def matmul(shape: tuple[int, int, int], **fields: Any) -> Workload:
    m, n, k = shape
    return workload("matmul_weight_only", m=m, n=n, k=k, **fields)


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("fields", FORMS, ids=str)
def test_the_default_config(fields: dict[str, Any], name: str) -> None:
    machine = target(name)
    for shape in SHAPES:
        work = matmul(shape, **fields)
        check(compiled(TEMPLATE, work, machine, TEMPLATE.default(work, machine)), work, offset=3)


@pytest.mark.parametrize("name", [RUNNABLE[0], RUNNABLE[-1]])
def test_the_generic_kernels(name: str) -> None:
    pattern, machine = matmul((1, 1, 1), group=32).generic(), target(name)
    assert pattern["group"] == 32
    for generic in TEMPLATE.generic(pattern, machine):
        kernel = compiled(TEMPLATE, pattern, machine, generic.config)
        for shape in SHAPES:
            check(kernel, matmul(shape, group=32))


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 150), st.integers(1, 200)),
    st.sampled_from(RUNNABLE),
    st.sampled_from(FORMS),
    st.integers(0, 2**16),
)
def test_any_config_at_any_shape(
    shape: tuple[int, int, int], name: str, fields: dict[str, Any], seed: int
) -> None:
    work, machine = matmul(shape, **fields), target(name)
    config = TEMPLATE.space(work, machine).sample(random.Random(seed))
    assert config is not None
    check(compiled(TEMPLATE, work, machine, config), work, offset=seed % 16)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e35, 1e-38, 1e-42, 0.0])
def test_extreme_values_follow_the_reference(value: float) -> None:
    """A row far from 1, beside one that is not, in the same tile."""
    for fields in ({"group": 32}, {"group": 32, "zero_points": True}, {"group": 32, "dtype": "bfloat16"}):
        work, machine = matmul((2, 20, 70), **fields), target(RUNNABLE[-1])
        dtype = str(work["dtype"])
        x, w = op_of(work).random_inputs(work, seed=4)
        x = decode(x, dtype).copy()
        x[1] = value if np.isfinite(value) else x[1]
        x[1, 3] = value
        kernel = compiled(TEMPLATE, work, machine, TEMPLATE.default(work, machine))
        out = np.empty((2, 20), stored(dtype))
        kernel(encode(x, dtype), w, out)
        x, out = decode(encode(x, dtype), dtype), decode(out, dtype)
        with np.errstate(invalid="ignore"):
            (expected,) = op_of(work).reference(work, x, w)
        finite = np.abs(value) if np.isfinite(value) else 1.0
        rounding = ROUNDING[dtype]
        np.testing.assert_allclose(out[0], expected[0], rtol=rounding, atol=1e-4)
        least = max(1e-4 * finite, 70 * 2.0**-149, 2.0**-133 * (dtype == "bfloat16"))  # denormals
        np.testing.assert_allclose(out[1], expected[1], rtol=max(1e-4, rounding), atol=least)


def test_packed_weights_come_back() -> None:
    for bits in (4, 8):
        work = matmul((1, 21, 75), bits=bits, group=32, zero_points=True)
        layout, rng = groups_of(work), np.random.default_rng(bits)
        offsets, zeros = rng.integers(0, 1 << bits, (21, 75)), rng.integers(0, 1 << bits, (21, 3))
        scales = rng.random((21, 3), dtype="float32")
        packed = layout.pack(offsets, scales, zeros)
        assert packed.shape == layout.shape(21, 75)
        each = np.repeat(np.arange(3), 32)[:75]
        expected = (offsets - zeros[:, each]) * scales[:, each].astype("float64")
        np.testing.assert_array_equal(layout.unpack(packed, 21, 75), expected)
