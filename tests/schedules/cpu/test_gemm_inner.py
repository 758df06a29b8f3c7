"""Inner products of few rows and a transposed b: right at every edge, for every config."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.schedules.cpu.guarded import check, compiled
from tvmops.machine import this_machine
from tvmops.schedules import templates_for
from tvmops.schedules.cpu.gemm_inner import CpuGemmInner
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = CpuGemmInner()
RUNNABLE = [name for name in ("x86-64-v3", "x86-64-v4") if not target(name).missing(this_machine())]
FORMS: list[dict[str, Any]] = [{}, {"bias": True, "activation": "gelu", "residual": True}]
SHAPES = {
    (1, 1, 1): "less than a vector",
    (1, 32, 128): "whole vectors",
    (1, 33, 67): "one more than whole vectors, k between steps",
    (3, 15, 31): "one less than a vector",
    (4, 40, 300): "as many rows as there may be",
}


def matmul(shape: tuple[int, int, int], **fields: Any) -> Workload:
    m, n, k = shape
    return workload("matmul", m=m, n=n, k=k, trans_b=True, **fields)


@pytest.fixture(scope="module", autouse=True)
def _threads() -> None:
    from tvmops.runtime.backend import load_backend, ready_threads

    load_backend()
    ready_threads()


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("fields", FORMS, ids=str)
def test_the_default_config(fields: dict[str, Any], name: str) -> None:
    machine = target(name)
    for shape in SHAPES:
        work = matmul(shape, **fields)
        check(compiled(TEMPLATE, work, machine, TEMPLATE.default(work, machine)), work, offset=3)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 100), st.integers(1, 200)),
    st.sampled_from(RUNNABLE),
    st.integers(0, 2**16),
)
def test_any_config_at_any_shape(shape: tuple[int, int, int], name: str, seed: int) -> None:
    work, machine = matmul(shape, bias=seed % 2 == 1), target(name)
    config = TEMPLATE.space(work, machine).sample(random.Random(seed))
    assert config is not None
    check(compiled(TEMPLATE, work, machine, config), work, offset=seed % 16)


def test_what_lies_beyond_a_row_has_no_part() -> None:
    """k is odd: infinities at the start of the next row must not reach this one's sums."""
    work, machine = matmul((1, 20, 21)), target(RUNNABLE[-1])
    a, b = np.ones((1, 21), "float32"), np.ones((20, 21), "float32")
    b[7] = np.inf
    out = np.empty((1, 20), "float32")
    compiled(TEMPLATE, work, machine, TEMPLATE.default(work, machine))(a, b, out)
    assert (np.delete(out, 7) == 21).all()
    assert out[0, 7] == np.inf


@pytest.mark.parametrize(
    "fields, is_covered",
    [
        ({"m": 4}, True),
        ({"m": 5}, False),
        ({"m": 1, "trans_a": True}, False),
        ({"m": 1, "batch": 2}, False),
        ({"m": 1, "dtype": "bfloat16"}, False),
    ],
)
def test_it_covers_few_rows_alone(fields: dict[str, Any], is_covered: bool) -> None:
    work = workload("matmul", n=64, k=64, trans_b=True, **fields)
    machine = target("x86-64-v4")
    assert TEMPLATE.covers(work, machine) is is_covered
    assert isinstance(templates_for(work, machine)[0], CpuGemmInner) is is_covered
    assert not TEMPLATE.covers(workload("matmul", n=64, k=64, m=1), machine)
    assert not TEMPLATE.covers(work.generic(), machine)
