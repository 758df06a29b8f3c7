"""matmul_int8's template: exact at every shape, for every config, with and without VNNI."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.schedules.cpu.guarded import check, compiled
from tvmops.machine import this_machine
from tvmops.schedules.cpu.gemm_int8 import CpuGemmInt8
from tvmops.signatures.layouts import layout_of
from tvmops.targets import Target, names, target
from tvmops.workloads import Workload, workload

TEMPLATE = CpuGemmInt8()
Shape = tuple[int, int, int]

CANDIDATES = ("x86-64-v3", "x86-64-v4", "znver4", "sapphirerapids-no-amx")
MACHINES = {name: target(name) for name in CANDIDATES}
MACHINES["plain"] = replace(target("x86-64-v3"), arch="none")  # no instruction of its own
RUNNABLE = [
    name for name, machine in MACHINES.items() if not replace(machine, arch="x86_64").missing(this_machine())
]

SHAPES: dict[Shape, str] = {
    (1, 1, 1): "the least: less than a word",
    (1, 40, 64): "one row",
    (3, 17, 5): "k one more than a word",
    (2, 15, 7): "n one less than a vector, k one less than two words",
    (13, 33, 70): "one more than whole tiles each way, k between words",
    (26, 64, 128): "whole tiles",
    (5, 1, 300): "one column",
    (2, 17, 4): "one column in the last vector",
}
FORMS: dict[str, dict[str, Any]] = {
    "u8 to int32": {},
    "s8 to int32": {"dtype": "int8"},
    "s8 packed": {"dtype": "int8", "packed": "words"},
    "float32 by channel": {"out_dtype": "float32", "scales": "channel", "bias": True, "packed": "words"},
    "float32 with relu": {"out_dtype": "float32", "activation": "relu", "dtype": "int8"},
    "b transposed, a zero point": {"trans_b": True, "b_zero_points": "tensor"},
    "s8 packed, zero points": {"dtype": "int8", "packed": "words", "b_zero_points": "channel"},
    "float32, zero points": {"out_dtype": "float32", "b_zero_points": "channel", "dtype": "int8"},
    "to uint8": {"out_dtype": "uint8", "bias": True},
    "to int8 by channel": {"out_dtype": "int8", "dtype": "int8", "scales": "channel"},
}
CASES = [pytest.param(shape, id=f"{'x'.join(map(str, shape))}: {why}") for shape, why in SHAPES.items()]


def matmul(shape: Shape, **fields: Any) -> Workload:
    m, n, k = shape
    return workload("matmul_int8", m=m, n=n, k=k, **fields)


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("shape", CASES)
def test_the_default_config(shape: Shape, name: str) -> None:
    machine = MACHINES[name]
    for fields in ({}, {"dtype": "int8"}, {"dtype": "int8", "packed": "words"}):
        work = matmul(shape, **fields)
        check(compiled(TEMPLATE, work, machine, TEMPLATE.default(work, machine)), work, offset=3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [RUNNABLE[0], RUNNABLE[-2]])
def test_every_form(form: str, name: str) -> None:
    machine = MACHINES[name]
    for shape in ((7, 37, 66), (1, 1, 1)):
        work = matmul(shape, **FORMS[form])
        check(compiled(TEMPLATE, work, machine, TEMPLATE.default(work, machine)), work)


@pytest.mark.parametrize("kc, ahead", [(256, True), (512, False), (1024, True)])
@pytest.mark.parametrize("name", RUNNABLE)
def test_a_long_k_is_summed_in_stretches(name: str, kc: int, ahead: bool) -> None:
    """Of 1125 words: the last stretch is short, and the last word is not full."""
    work, machine = matmul((14, 530, 4497), packed="words", dtype="int8", out_dtype="float32"), MACHINES[name]
    config = TEMPLATE.default(work, machine).replace(kc=kc, ahead=ahead, nc=2)
    assert TEMPLATE.space(work, machine).is_legal(config)
    check(compiled(TEMPLATE, work, machine, config), work, offset=3)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 100), st.integers(1, 140)),
    st.sampled_from(RUNNABLE),
    st.sampled_from(list(FORMS)),
    st.integers(0, 2**16),
)
def test_any_config_at_any_shape(shape: Shape, name: str, form: str, seed: int) -> None:
    work, machine = matmul(shape, **FORMS[form]), MACHINES[name]
    config = TEMPLATE.space(work, machine).sample(random.Random(seed))
    assert config is not None
    check(compiled(TEMPLATE, work, machine, config), work, offset=seed % 16)


@cache
def generic_kernels(name: str, packed: str) -> list[Any]:
    pattern = matmul((1, 1, 1), dtype="int8", packed=packed).generic()
    machine = MACHINES[name]
    kernels = TEMPLATE.generic(pattern, machine)
    assert any(not generic.ranges for generic in kernels)
    return [compiled(TEMPLATE, pattern, machine, generic.config) for generic in kernels]


@pytest.mark.parametrize("packed", ["none", "words"])
@pytest.mark.parametrize("name", RUNNABLE[:1] + RUNNABLE[-2:-1])
def test_the_generic_kernels(name: str, packed: str) -> None:
    for kernel in generic_kernels(name, packed):
        for shape in SHAPES:
            check(kernel, matmul(shape, dtype="int8", packed=packed), offset=5)


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("packed", ["none", "words"])
def test_extreme_values_do_not_saturate(name: str, packed: str) -> None:
    """Neighbouring products of 255 * -128 would overflow 16 bits."""
    shape, machine = (2, 17, 64), MACHINES[name]
    for dtype, values in (("uint8", (0, 255)), ("int8", (-128, 127))):
        work = matmul(shape, dtype=dtype, packed=packed)
        kernel = compiled(TEMPLATE, work, machine, TEMPLATE.default(work, machine))
        for left in values:
            for right in (-128, 127):
                a, b = np.full((2, 64), left, dtype), np.full((64, 17), right, "int8")
                check(kernel, work, [a, b if packed == "none" else layout_of(work).pack(b)])


def test_packed_words_come_back() -> None:
    for n, k in ((1, 1), (16, 4), (33, 70)):
        layout = layout_of(matmul((1, n, k), packed="words"))
        weight = np.random.default_rng(n).integers(-128, 128, (k, n)).astype("int8")
        packed = layout.pack(weight)
        assert packed.shape == layout.shape(k, n)
        assert (layout.unpack(packed, k, n) == weight).all()
        sums = packed[:, -1].copy().view("int32").ravel()
        assert (sums[:n] == weight.sum(axis=0, dtype="int32")).all()


def test_an_output_that_overlaps_an_input_is_refused() -> None:
    work, machine = matmul((4, 4, 4)), MACHINES[RUNNABLE[0]]
    kernel = compiled(TEMPLATE, work, machine, TEMPLATE.default(work, machine))
    memory = np.zeros(64, "uint8")
    b = np.zeros((4, 4), "int8")
    with pytest.raises(ValueError, match="argument 'out' shares memory with 'a'"):
        kernel(memory[48:].reshape(4, 4), b, 0.0, memory.view("int32").reshape(4, 4))


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("cores", [1, 2, 6, 64])
def test_the_default_is_in_the_space(name: str, cores: int) -> None:
    machine: Target = replace(target(name), cores=cores)
    if not TEMPLATE.covers(matmul((1, 1, 1)), machine):
        pytest.skip("the template is for other machines")
    rng = random.Random(name)
    for _ in range(60):
        shape = tuple(rng.choice((1, 2, 3, 8, 17, 64, 127, 513, 4096)) for _ in range(3))
        work = matmul(shape, packed=rng.choice(("none", "words")))  # type: ignore[arg-type]
        assert TEMPLATE.default(work, machine) in TEMPLATE.space(work, machine), work
        assert TEMPLATE.estimate(work, machine, TEMPLATE.default(work, machine)) > 0
