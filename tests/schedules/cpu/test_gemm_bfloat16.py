"""matmul of bfloat16: right at every shape and config, with vdpbf16ps and without."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.schedules.cpu.guarded import check, compiled
from tvmops.machine import this_machine
from tvmops.schedules.cpu.gemm_bfloat16 import CpuGemmBfloat16
from tvmops.signatures.dtypes import decode, encode
from tvmops.signatures.layouts import layout_of
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = CpuGemmBfloat16()
CANDIDATES = ("x86-64-v3", "x86-64-v4", "znver4", "sapphirerapids-no-amx")
RUNNABLE = [name for name in CANDIDATES if not target(name).missing(this_machine())]
SHAPES = {
    (1, 1, 1): "less than a word",
    (1, 40, 64): "one row",
    (2, 15, 7): "n one less than a vector, k odd",
    (13, 33, 70): "one more than whole tiles",
    (26, 64, 128): "whole tiles",
}
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "packed": {"packed": "words"},
    "epilogue": {"bias": True, "activation": "relu", "residual": True},
    "packed epilogue": {"packed": "words", "bias": True},
    "transposed": {"trans_a": True, "trans_b": True},
    "batch": {"batch": 3, "shared": "a", "trans_b": True},
    "float32 out": {
        "out_dtype": "float32",
        "bias": True,
        "bias_dtype": "float32",
        "residual": True,
        "batch": 2,
    },
}


def matmul(shape: tuple[int, int, int], **fields: Any) -> Workload:
    m, n, k = shape
    return workload("matmul", m=m, n=n, k=k, dtype="bfloat16", **fields)


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("form", FORMS)
def test_the_default_config(form: str, name: str) -> None:
    machine = target(name)
    for shape in SHAPES:
        work = matmul(shape, **FORMS[form])
        check(compiled(TEMPLATE, work, machine, TEMPLATE.default(work, machine)), work, offset=3)


@pytest.mark.parametrize("name", [RUNNABLE[0], RUNNABLE[-1]])
def test_the_generic_kernels(name: str) -> None:
    for form in ({}, {"packed": "words"}, {"batch": 3, "trans_a": True, "trans_b": True}):
        pattern, machine = matmul((1, 1, 1), **form).generic(), target(name)
        for generic in TEMPLATE.generic(pattern, machine):
            kernel = compiled(TEMPLATE, pattern, machine, generic.config)
            for shape in SHAPES:
                check(kernel, matmul(shape, **form))


@pytest.mark.parametrize("kc, ahead", [(256, True), (512, False), (1024, True)])
@pytest.mark.parametrize("name", RUNNABLE)
def test_a_long_k_is_summed_in_stretches(name: str, kc: int, ahead: bool) -> None:
    """Of 1125 words: the last stretch is short, and the last word is not full."""
    work, machine = matmul((14, 530, 2249), packed="words", bias=True), target(name)
    config = TEMPLATE.default(work, machine).replace(kc=kc, ahead=ahead, nc=2)
    assert TEMPLATE.space(work, machine).is_legal(config)
    check(compiled(TEMPLATE, work, machine, config), work, offset=3)


@settings(max_examples=14, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 100), st.integers(1, 140)),
    st.sampled_from(RUNNABLE),
    st.sampled_from(list(FORMS)),
    st.integers(0, 2**16),
)
def test_any_config_at_any_shape(shape: tuple[int, int, int], name: str, form: str, seed: int) -> None:
    work, machine = matmul(shape, **FORMS[form]), target(name)
    config = TEMPLATE.space(work, machine).sample(random.Random(seed))
    assert config is not None
    check(compiled(TEMPLATE, work, machine, config), work, offset=seed % 32)


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e37, 1e-39])
def test_extreme_values(name: str, value: float) -> None:
    """Infinities and NaN stay in their row; k is odd, so that padding by zeros would turn them to NaN."""
    work, machine = matmul((3, 17, 5)), target(name)
    a, b = (decode(x, "bfloat16").copy() for x in check_inputs(work))
    b = np.abs(b) + 0.25
    a[1, 4] = value
    kernel = compiled(TEMPLATE, work, machine, TEMPLATE.default(work, machine))
    out = np.zeros((3, 17), "uint16")
    kernel(encode(a, "bfloat16"), encode(b, "bfloat16"), out)
    a, b = (decode(encode(x, "bfloat16"), "bfloat16").astype("float64") for x in (a, b))
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(decode(out, "bfloat16"), a @ b, rtol=2**-7, atol=1e-5)


def check_inputs(work: Workload) -> list[np.ndarray]:
    from tvmops.ops import op_of

    return op_of(work).random_inputs(work, seed=2)


def test_packed_words_come_back() -> None:
    work = matmul((1, 33, 7), packed="words")
    weight = encode(np.random.default_rng(0).standard_normal((7, 33)).astype("float32"), "bfloat16")
    layout = layout_of(work)
    assert (layout.unpack(layout.pack(weight), 7, 33) == weight).all()
