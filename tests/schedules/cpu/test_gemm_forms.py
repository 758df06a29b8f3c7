"""All forms of a matmul: batches, transposes, epilogues, packed weights; tuned and generic."""

from __future__ import annotations

import random
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.schedules.cpu.kernels import TEMPLATE, Kernel, check_call, compiled
from tvmops.errors import WorkloadError
from tvmops.machine import this_machine
from tvmops.signatures.activations import ACTIVATIONS
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TARGETS = [name for name in ("x86-64-v3", "x86-64-v4") if not target(name).missing(this_machine())]

FORMS: dict[str, str] = {
    "trans_a=true": "columns of a side by side",
    "trans_b=true": "b is transposed where it is packed",
    "trans_a=true trans_b=true": "both",
    "packed=panels": "b was packed",
    "bias=true activation=relu": "short enough for registers",
    "bias=true residual=true activation=gelu": "too long for registers",
    "batch=3": "several matrices",
    "batch=3 shared=a trans_b=true residual=true": "one a for several b",
    "batch=3 shared=b trans_a=true bias=true": "one b for several a that can't be one",
    "packed=panels bias=true residual=true activation=silu": "a layer of a network",
}
SIZES: dict[tuple[int, int, int], str] = {
    (1, 1, 1): "the least",
    (1, 133, 70): "one row; panels that are no multiple of a tile's",
    (5, 15, 33): "less than a vector of columns",
    (17, 31, 61): "primes",
    (33, 130, 40): "rows and columns one or two beyond whole tiles",
    (70, 80, 1030): "k of several blocks, the last short",
}


def forms(sizes: tuple[int, int, int], form: str) -> Workload:
    return Workload.parse("matmul m={} n={} k={} ".format(*sizes) + form)


@cache
def generic_kernels(pattern: Workload, name: str) -> list[Kernel]:
    machine = target(name)
    return [compiled(pattern, machine, each.config) for each in TEMPLATE.generic(pattern, machine)]


@pytest.mark.parametrize("form", FORMS)
def test_every_generic_kernel_at_every_size(form: str) -> None:
    for name in TARGETS:
        for sizes in SIZES:
            work = forms(sizes, form)
            for kernel in generic_kernels(work.generic(), name):
                check_call(kernel, work, offset=3)


@pytest.mark.parametrize("form", FORMS)
def test_the_default_and_a_random_config(form: str) -> None:
    rng = random.Random(form)
    for name in TARGETS:
        for sizes in ((5, 50, 33), (70, 80, 300)):
            work, machine = forms(sizes, form), target(name)
            space = TEMPLATE.space(work, machine)
            default, drawn = TEMPLATE.default(work, machine), space.sample(rng)
            assert default in space
            assert drawn is not None
            for config in (default, drawn):
                check_call(compiled(work, machine, config), work, offset=1)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 140), st.integers(1, 140)),
    st.sampled_from(TARGETS),
    st.fixed_dictionaries(
        {
            "batch": st.integers(1, 3),
            "shared": st.sampled_from(("none", "a", "b")),
            "trans_a": st.booleans(),
            "trans_b": st.booleans(),
            "bias": st.booleans(),
            "residual": st.booleans(),
            "activation": st.sampled_from(ACTIVATIONS),
            "packed": st.sampled_from(("none", "panels")),
        }
    ),
    st.integers(0, 2**16),
)
def test_any_form_with_any_config(
    sizes: tuple[int, int, int], name: str, fields: dict[str, object], seed: int
) -> None:
    m, n, k = sizes
    try:
        work = workload("matmul", m=m, n=n, k=k, **fields)
    except WorkloadError:  # what contradicts itself
        return
    config = TEMPLATE.space(work, target(name)).sample(random.Random(seed))
    assert config is not None
    check_call(compiled(work, target(name), config), work, offset=seed % 16)


def test_the_next_block_of_b_is_fetched_without_effect_on_the_result() -> None:
    for form in ("", "trans_b=true"):
        work, machine = forms((30, 520, 1100), form), target(TARGETS[-1])
        space = TEMPLATE.space(work, machine)
        for ahead in (False, True):
            config = TEMPLATE.default(work, machine).replace(pack_b=True, ahead=ahead, kc=256)
            assert config in space
            kernel = compiled(work, machine, config)
            assert ("llvm.prefetch" in TEMPLATE.build(work, machine, config).script()) == ahead
            check_call(kernel, work)
