"""Pooling against float64, amid guard bands, on vectors of each width."""

from __future__ import annotations

import dataclasses
import random
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.schedules.cpu.guarded import check, compiled
from tvmops.errors import WorkloadError
from tvmops.machine import this_machine
from tvmops.ops import op_of
from tvmops.schedules.cpu.pool import CpuPool
from tvmops.targets import Target, target
from tvmops.workloads import Workload, workload

TARGETS = [name for name in ("x86-64-v3", "x86-64-v4") if not target(name).missing(this_machine())]
LAYOUTS = ("NCHW", "NHWC")
FORMS = (
    "kernel=3 stride=2 padding=1 kind=max",
    "kernel=2 stride=2 kind=average",
    "kernel=3 padding=1 kind=average count_include_pad=false",
    "kernel=3x2 stride=3x2 padding=1 ceil_mode=true kind=average",
    "kernel=2x3 dilation=3x2 padding=2 ceil_mode=true kind=max",
    "kernel=global kind=average",
    "kernel=global kind=max",
)
SIZES = (
    "n=1 h=4 w=4 c=1",  # little but edges
    "n=2 h=7 w=33 c=16",  # a vector of columns and one, channels that fill one
    "n=1 h=9 w=16 c=37",  # channels that do not
)


@cache
def machine(name: str) -> Target:
    return dataclasses.replace(target(name), cores=2)


@pytest.fixture(scope="module", autouse=True)
def _threads() -> None:
    from tvmops.runtime.backend import load_backend, ready_threads

    load_backend()
    ready_threads()


def pool(text: str, layout: str = "NCHW") -> Workload:
    return Workload.parse(f"pool2d {text} layout={layout}")


@cache
def generic(pattern: Workload, name: str) -> Any:
    (offer,) = CpuPool().generic(pattern, machine(name))
    assert not offer.ranges
    return compiled(CpuPool(), pattern, machine(name), offer.config)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
def test_generic_kernels_answer_every_shape(form: str, layout: str) -> None:
    for size in SIZES:
        work = pool(f"{size} {form}", layout)
        for name in TARGETS:
            check(generic(work.generic(), name), work)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
def test_nan_and_infinities_go_where_the_reference_puts_them(form: str, layout: str) -> None:
    work = pool(f"n=1 h=9 w=36 c=5 {form}", layout)
    for first, second in (
        (np.nan, 1.0),
        (1.0, -np.nan),
        (np.inf, -np.inf),
        (-np.inf, -np.inf),
        (1e-42, 1e30),
    ):
        (x,) = op_of(work).random_inputs(work, seed=3)
        x.reshape(-1)[:200] = second
        x.reshape(-1)[::31] = first
        result = check_close(generic(work.generic(), TARGETS[-1]), work, x)
        assert np.isnan(result).any() == (np.isnan([first, second]).any() or _meet(work, first, second))


def _meet(work: Workload, first: float, second: float) -> bool:
    """True if opposite infinities are added up."""
    return work["kind"] == "average" and np.isinf([first, second]).all() and first != second


def check_close(kernel: Any, work: Workload, x: Any) -> Any:
    """Check the result against the reference, its error relative to the largest number."""
    (expected,) = op_of(work).reference(work, x)
    result = np.full(expected.shape, 7, "float32")
    kernel(x, result)
    largest = np.abs(x[np.isfinite(x)]).max()
    np.testing.assert_allclose(result, expected, rtol=0, atol=op_of(work).tolerance(work) * largest)
    return result


@st.composite
def pools(draw: st.DrawFn) -> Workload:
    """Any pooling of a few thousand elements: each attribute at random."""
    small = st.integers(1, 4)
    kind = draw(st.sampled_from(("max", "average")))
    fields: dict[str, Any] = {
        "n": draw(st.integers(1, 2)),
        "h": draw(st.integers(1, 20)),
        "w": draw(st.integers(1, 70)),
        "c": draw(st.sampled_from((1, 3, 16, 35))),
        "kernel": draw(st.tuples(small, small) | st.sampled_from(("global", (18, 2), (2, 17)))),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "kind": kind,
    }
    if fields["kernel"] != "global":
        sides = st.tuples(*[st.integers(0, 2)] * 4) | st.sampled_from(("same", "valid"))
        fields |= {"stride": draw(st.tuples(small, small)), "padding": draw(sides)}
        fields |= {"ceil_mode": draw(st.booleans())}
        own = ("dilation", st.tuples(small, small)) if kind == "max" else ("count_include_pad", st.booleans())
        fields[own[0]] = draw(own[1])
    try:
        return workload("pool2d", **fields)
    except WorkloadError:
        assume(False)
        raise


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(pools(), st.sampled_from(TARGETS), st.integers(0, 2**16), st.integers(0, 15), st.booleans())
def test_any_config_of_any_pooling(work: Workload, name: str, seed: int, offset: int, known: bool) -> None:
    where, template = machine(name), CpuPool()
    config = template.space(work, where).sample(random.Random(seed))
    assert config is not None
    check(compiled(template, work if known else work.generic(), where, config), work, offset=offset)


def test_the_default_is_in_the_space() -> None:
    for size in ("n=1 h=4 w=4 c=1", "n=1 h=112 w=112 c=64"):
        for cores in (1, 2, 64):
            work, where = pool(f"{size} {FORMS[0]}"), dataclasses.replace(machine(TARGETS[0]), cores=cores)
            assert CpuPool().default(work, where) in CpuPool().space(work, where)


@pytest.mark.parametrize("form", (FORMS[0], FORMS[-1]))
def test_an_output_that_overlaps_the_input_is_refused_before_it_is_written(form: str) -> None:
    work = pool(f"n=1 h=8 w=8 c=2 {form}")
    (out,) = op_of(work).outputs(work)
    memory = np.zeros(256, "float32")
    with pytest.raises(ValueError, match="argument 'out' shares memory with 'x'"):
        generic(work.generic(), TARGETS[0])(
            memory[:128].reshape(1, 2, 8, 8), memory[127 : 127 + out.elements].reshape(out.shape)
        )
    assert not memory.any()
