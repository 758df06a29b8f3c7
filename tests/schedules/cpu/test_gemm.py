"""The GEMM template is right at every shape, for every config, at any address."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.schedules.cpu.kernels import (
    TEMPLATE,
    Kernel,
    Shape,
    check,
    check_call,
    compiled,
    matmul,
    survives,
)
from tvmops.errors import NoTemplateError
from tvmops.machine import this_machine
from tvmops.schedules import templates_for
from tvmops.space import Config
from tvmops.targets import Target, names, target
from tvmops.workloads import Workload

TARGETS = [name for name in ("x86-64-v3", "x86-64-v4") if not target(name).missing(this_machine())]

SHAPES: dict[Shape, str] = {
    (1, 1, 1): "the least",
    (1, 64, 32): "one row",
    (1, 31, 61): "one row, and an edge in n",
    (2, 100, 300): "two rows, several blocks of k",
    (61, 1, 17): "one column",
    (17, 31, 1): "no sum",
    (3, 5, 2): "less than a register tile each way",
    (5, 15, 3): "n one less than a vector, k below the unrolling",
    (17, 31, 61): "primes",
    (16, 64, 64): "whole tiles",
    (15, 63, 63): "one less than whole tiles",
    (17, 65, 65): "one more than whole tiles",
    (13, 257, 37): "n one more than a block of panels",
    (40, 97, 600): "k more than a block, not a multiple of one",
    (130, 40, 520): "m more than a block",
}
CASES = [pytest.param(shape, id=f"{'x'.join(map(str, shape))}: {why}") for shape, why in SHAPES.items()]


@cache
def default_kernel(shape: Shape, name: str) -> Kernel:
    work, machine = matmul(*shape), target(name)
    return compiled(work, machine, TEMPLATE.default(work, machine))


def samples(work: Workload, machine: Target, count: int, seed: int) -> list[Config]:
    rng = random.Random(seed)
    drawn = [TEMPLATE.space(work, machine).sample(rng) for _ in range(count)]
    return [config for config in drawn if config is not None]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("shape", CASES)
def test_the_default_config(shape: Shape, name: str) -> None:
    check(default_kernel(shape, name), shape, offset=3)


@pytest.mark.parametrize("shape", CASES)
def test_a_random_config(shape: Shape) -> None:
    work, machine = matmul(*shape), target(TARGETS[-1])
    (config,) = samples(work, machine, count=1, seed=sum(shape))
    check(compiled(work, machine, config), shape, offset=1)


def extremes(work: Workload, machine: Target) -> list[Config]:
    """Configs that hold one knob at its least or greatest legal value, the others drawn at random."""
    space, rng = TEMPLATE.space(work, machine), random.Random(0)
    drawn = [config for _ in range(300) if (config := space.sample(rng)) is not None]
    found = {}
    for knob in space.knobs:
        at = {config[knob.name]: config for config in drawn}
        legal = [at[value] for value in knob.values if value in at]
        found.update(dict.fromkeys((legal[0], legal[-1])))
    return list(found)


def test_every_knob_at_its_extremes() -> None:
    shape = (23, 150, 140)
    work, machine = matmul(*shape), target(TARGETS[-1])
    chosen = extremes(work, machine)
    for knob in TEMPLATE.space(work, machine).knobs:
        assert len({config[knob.name] for config in chosen}) >= min(2, len(knob.values))
    for config in chosen:
        check(compiled(work, machine, config), shape)


@pytest.mark.parametrize("form", ["", " packed=panels", " trans_b=true batch=2", " trans_a=true"])
def test_rows_of_a_read_by_vectors(form: str) -> None:
    """As ARM's kernels do, compiled for this machine: k that vectors or the unrolling do not divide."""
    machine = replace(target(TARGETS[0]), arch="aarch64", vector_bits=128, vector_registers=32)
    assert machine.multiplies_by_lane
    for m, n, k in ((17, 31, 61), (9, 48, 40), (23, 17, 4), (8, 33, 103)):
        work = Workload.parse(f"matmul m={m} n={n} k={k}{form}")
        for config in samples(work, machine, count=3, seed=k):
            for tile in (
                {"mr": 4, "nv": 4, "ku": 4},
                {"mr": 4, "nv": 4, "ku": 8},
                {"mr": 5, "nv": 4, "ku": 4},
            ):
                chosen = config.replace(**tile, kc=0)
                if chosen in TEMPLATE.space(work, machine):
                    check_call(compiled(work, machine, chosen), work, offset=1)


def test_parts_that_do_not_divide() -> None:
    """Three panels over two tasks, four tiles over three: the last has less room to fill."""
    shape = (23, 40, 150)
    for name in TARGETS:
        work, machine = matmul(*shape), replace(target(name), cores=12)
        whole = TEMPLATE.default(work, machine).replace(kc=0, nc=0, mc=0, pack_a=True, pack_b=True)
        for split in ({"split_m": 3}, {"split_n": 2}, {"split_m": 3, "split_n": 2}):
            config = whole.replace(mr=6, nv=1, split_m=1, split_n=1).replace(**split)
            assert config in TEMPLATE.space(work, machine)
            check(compiled(work, machine, config), shape)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 140), st.integers(1, 140)),
    st.sampled_from(TARGETS),
    st.integers(0, 2**16),
    st.integers(0, 15),
)
def test_any_config_at_any_shape(shape: Shape, name: str, seed: int, offset: int) -> None:
    work, machine = matmul(*shape), target(name)
    for config in samples(work, machine, count=1, seed=seed):
        check(compiled(work, machine, config), shape, offset)


@cache
def generic_kernels(name: str) -> list[tuple[dict[str, tuple[int, int]], Kernel]]:
    machine, pattern = target(name), matmul(1, 1, 1).generic()
    return [
        (dict(generic.ranges), compiled(pattern, machine, generic.config))
        for generic in TEMPLATE.generic(pattern, machine)
    ]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("shape", CASES)
def test_the_generic_kernels(shape: Shape, name: str) -> None:
    """Each at every shape: ranges say what a kernel is meant for, not what it can do."""
    for _, kernel in generic_kernels(name):
        check(kernel, shape, offset=5)


@pytest.mark.parametrize("name", TARGETS)
def test_some_generic_kernel_takes_every_shape(name: str) -> None:
    assert any(not ranges for ranges, _ in generic_kernels(name))


@pytest.mark.parametrize("offset", range(16))
def test_arrays_may_start_at_any_element(offset: int) -> None:
    for name in TARGETS:
        for _, kernel in generic_kernels(name):
            check(kernel, (17, 33, 20), offset)


def test_arrays_may_start_at_any_byte() -> None:
    """NumPy calls such an array unaligned; the CPU reads it all the same."""
    m, n, k = 17, 33, 20
    rng = np.random.default_rng(0)
    b = rng.random((k, n), dtype="float32")
    for offset in (1, 2, 3):
        a = np.frombuffer(bytearray(4 * m * k + offset), "uint8")[offset:].view("float32").reshape(m, k)
        a[...] = rng.random((m, k))
        c = np.frombuffer(bytearray(4 * m * n + offset), "uint8")[offset:].view("float32").reshape(m, n)
        for name in TARGETS:
            for _, kernel in generic_kernels(name):
                kernel(a, b, c)
                np.testing.assert_allclose(c, a.astype("float64") @ b, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 31, 61), (7, 37, 13), (17, 65, 65), (9, 1, 7)], ids=str)
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_beyond_the_arrays_is_touched(name: str, shape: Shape) -> None:
    work, machine = matmul(*shape), target(name)
    (config,) = samples(work, machine, count=1, seed=7)
    generic = [kernel for _, kernel in generic_kernels(name)]
    for kernel in (default_kernel(shape, name), compiled(work, machine, config), *generic):
        for at_end in (True, False):
            assert survives(kernel, shape, at_end), f"{config}, fence {'after' if at_end else 'before'}"


def test_the_fence_holds() -> None:
    """The test above can fail: a read beyond the fence ends the process."""

    def careless(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
        c[0, 0] = np.lib.stride_tricks.as_strided(a, (a.size + 1,), (4,))[-1]

    assert survives(lambda a, b, c: None, (4, 4, 4), at_end=True)
    assert not survives(careless, (4, 4, 4), at_end=True)


@pytest.mark.parametrize("argument", ["a", "b"])
@pytest.mark.parametrize("shift", [0, 1, -1, 255, -255])
def test_an_output_that_overlaps_an_input_is_refused_before_it_is_written(argument: str, shift: int) -> None:
    memory = np.random.default_rng(0).random(4 * 256, dtype="float32")
    shared = memory[300 : 300 + 256].reshape(16, 16)
    other = np.ones((16, 16), "float32")
    out = memory[300 + shift : 300 + shift + 256].reshape(16, 16)
    before = memory.copy()
    exact = default_kernel((16, 16, 16), TARGETS[0])
    for kernel in (exact, *(kernel for _, kernel in generic_kernels(TARGETS[0]))):
        with pytest.raises(ValueError, match=f"argument 'out' shares memory with '{argument}'"):
            kernel(*((shared, other) if argument == "a" else (other, shared)), out)
        assert np.array_equal(memory, before)


def test_an_output_beside_an_input_is_written() -> None:
    memory = np.ones(3 * 256, "float32")
    a, b, c = memory.reshape(3, 16, 16)
    for _, kernel in generic_kernels(TARGETS[0]):
        kernel(a, b, c)
        assert (c == 16).all()


@pytest.mark.parametrize("wrong", ["shape of a", "shape of b", "shape of c", "dtype", "strides", "rank"])
def test_a_kernel_refuses_what_does_not_fit(wrong: str) -> None:
    """The fast way of a call relies on it: nothing checks the arguments before the kernel does."""
    arrays = {name: np.zeros((16, 16), "float32") for name in "abc"}
    if wrong.startswith("shape"):
        arrays[wrong[-1]] = (
            np.zeros((16, 17), "float32") if wrong[-1] != "b" else np.zeros((17, 16), "float32")
        )
    elif wrong == "dtype":
        arrays["a"] = np.zeros((16, 16), "int32")
    elif wrong == "strides":
        arrays["b"] = np.zeros((16, 32), "float32")[:, ::2]
    else:
        arrays["c"] = np.zeros(256, "float32")
    work = matmul(16, 16, 16)
    exact = compiled(work, target(TARGETS[0]), TEMPLATE.default(work, target(TARGETS[0])))
    for kernel in (exact, *(kernel for _, kernel in generic_kernels(TARGETS[0]))):
        with pytest.raises((ValueError, TypeError)):
            kernel(*arrays.values())


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("cores", [1, 2, 6, 64])
def test_the_default_is_in_the_space(name: str, cores: int) -> None:
    machine = replace(target(name), cores=cores)
    if not TEMPLATE.covers(matmul(1, 1, 1), machine):
        pytest.skip("the template is for other machines")
    sizes = (1, 2, 3, 8, 17, 64, 127, 513, 4096)
    rng = random.Random(name)
    for _ in range(100):
        work = matmul(*(rng.choice(sizes) for _ in range(3)))
        assert TEMPLATE.default(work, machine) in TEMPLATE.space(work, machine), work


@pytest.mark.parametrize("name", TARGETS)
def test_the_default_covers_k_in_one_block_where_it_fits(name: str) -> None:
    """A block one short of k would sweep the output twice."""
    work = matmul(64, 64, 61)
    assert TEMPLATE.default(work, target(name))["kc"] == 0


def test_a_target_of_another_kind_is_not_covered() -> None:
    abacus = replace(target(TARGETS[0]), kind="abacus")
    with pytest.raises(NoTemplateError, match="'matmul m=1 n=1 k=1 dtype=float32'"):
        templates_for(matmul(1, 1, 1), abacus)


def test_building_twice_gives_the_same_code() -> None:
    work, machine = matmul(17, 31, 61), target(TARGETS[0])
    config = TEMPLATE.default(work, machine)
    first, second = (TEMPLATE.build(work, machine, config).script() for _ in range(2))
    assert first == second
