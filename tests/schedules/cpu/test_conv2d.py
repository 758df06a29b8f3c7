"""The conv2d templates are right at every shape, for every config, at any address."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.schedules.cpu.convs import check, compiled
from tests.schedules.cpu.kernels import Kernel
from tvmops.errors import WorkloadError
from tvmops.machine import this_machine
from tvmops.ops import op_of
from tvmops.schedules.cpu.conv2d_channels import Conv2DChannels
from tvmops.schedules.cpu.conv2d_depthwise import Conv2DDepthwise
from tvmops.schedules.cpu.conv2d_pixels import Conv2DPixels
from tvmops.schedules.template import Template
from tvmops.signatures.activations import ACTIVATIONS
from tvmops.targets import Target, names, target
from tvmops.workloads import Workload, workload

TARGETS = [name for name in ("x86-64-v3", "x86-64-v4") if not target(name).missing(this_machine())]
TEMPLATES = (Conv2DDepthwise(), Conv2DPixels(), Conv2DChannels())

SHAPES: dict[str, str] = {
    "n=1 h=1 w=1 ci=1 co=1 kh=1 kw=1": "the least",
    "n=1 h=7 w=7 ci=5 co=9 kh=3 kw=3 padding=1": "rows shorter than a vector, odd channels",
    "n=2 h=7 w=7 ci=3 co=17 kh=1 kw=1 bias=true activation=relu6": "pointwise, one pixel more than vectors",
    "n=1 h=14 w=14 ci=16 co=32 kh=1 kw=1": "pointwise, an end of a quarter of a vector",
    "n=1 h=23 w=30 ci=3 co=8 kh=7 kw=7 stride=2 padding=3": "a first layer",
    "n=1 h=15 w=15 ci=6 co=10 kh=1 kw=1 stride=2 groups=2": "one phase of four is read",
    "n=1 h=2 w=3 ci=580 co=4 kh=2 kw=2 padding=1 groups=2": "rows of many channels of a group, copied",
    "n=2 h=9 w=11 ci=4 co=6 kh=3 kw=2 stride=2x1 padding=1x2x0x1 dilation=1x2 groups=2 bias=true "
    "residual=true activation=relu": "everything at once",
    "n=1 h=30 w=30 ci=3 co=4 kh=4 kw=4 stride=4 dilation=2 padding=5": "phases that no row reads",
    "n=1 h=12 w=12 ci=3 co=4 kh=11 kw=11 stride=4 padding=2": "a kernel whose rows are a loop",
    "n=1 h=5 w=33 ci=2 co=5 kh=1 kw=3 padding=0x2x0x1": "padding at two sides, a vector and one pixel",
    "n=1 h=1 w=1 ci=5 co=5 kh=3 kw=3 padding=1 groups=5 stride=2": "depthwise, nothing but edges",
    "n=2 h=20 w=41 ci=17 co=17 kh=3 kw=3 padding=1 stride=2 groups=17 bias=true": "depthwise, odd everything",
    "n=1 h=16 w=40 ci=16 co=16 kh=3 kw=3 groups=16 residual=true": "depthwise, with an inside",
}
CASES = [pytest.param(shape, id=why) for shape, why in SHAPES.items()]
LAYOUTS = ("NCHW", "NHWC")


def conv(shape: str, layout: str = "NCHW") -> Workload:
    return Workload.parse(f"conv2d {shape} layout={layout}")


def machine(name: str) -> Target:
    return replace(target(name), cores=2)


def covering(work: Workload, where: Target) -> list[Template]:
    found = [template for template in TEMPLATES if template.covers(work, where)]
    assert found
    return found


@cache
def generic(pattern: Workload, name: str) -> list[Kernel]:
    where = machine(name)
    return [
        compiled(template, pattern, where, kernel.config)
        for template in covering(pattern, where)
        for kernel in template.generic(pattern, where)
        if not kernel.ranges
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", CASES)
def test_the_default_config(shape: str, layout: str) -> None:
    work = conv(shape, layout)
    for name in TARGETS:
        where = machine(name)
        for template in covering(work, where):
            config = template.default(work, where)
            assert config in template.space(work, where)
            check(compiled(template, work, where, config), work, offset=3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", CASES)
def test_a_random_config(shape: str, layout: str) -> None:
    work, where = conv(shape, layout), machine(TARGETS[-1])
    for template in covering(work, where):
        config = template.space(work, where).sample(random.Random(shape))
        assert config is not None
        check(compiled(template, work, where, config), work, offset=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_generic_kernel_answers_all_shapes_of_its_pattern(layout: str) -> None:
    attributes = "kh=3 kw=3 stride=2x1 padding=1x0x2x1 groups=2 bias=true"
    for sizes in ("n=1 h=1 w=2 ci=2 co=2", "n=3 h=17 w=40 ci=6 co=14", "n=1 h=9 w=16 ci=32 co=34"):
        work = conv(f"{sizes} {attributes}", layout)
        for name in TARGETS:
            (kernel,) = generic(work.generic(), name)
            check(kernel, work, offset=5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_generic_pointwise_kernels(layout: str) -> None:
    for sizes in ("n=1 h=1 w=1 ci=1 co=1", "n=2 h=7 w=7 ci=19 co=35", "n=1 h=14 w=13 ci=64 co=64"):
        work = conv(f"{sizes} kh=1 kw=1 activation=relu", layout)
        for name in TARGETS:
            (kernel,) = generic(work.generic(), name)
            check(kernel, work, offset=2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_generic_depthwise_kernels(layout: str) -> None:
    where = machine(TARGETS[-1])
    pattern = conv("n=* h=* w=* ci=* co=* kh=3 kw=3 padding=1 stride=2 groups=18", layout)
    (offer,) = Conv2DDepthwise().generic(pattern, where)
    assert offer.ranges == {"ci": (18, 18), "co": (18, 18)}
    kernel = compiled(Conv2DDepthwise(), pattern, where, offer.config)
    for size in ("n=1 h=1 w=1", "n=2 h=9 w=70"):
        check(kernel, conv(f"{size} ci=18 co=18 kh=3 kw=3 padding=1 stride=2 groups=18", layout))


@st.composite
def convs(draw: st.DrawFn) -> Workload:
    """Any conv2d of a few thousand products: each attribute at random."""
    small = st.integers(1, 3)
    groups = draw(st.sampled_from((1, 1, 2, 3, 17)))
    each_in, each_out = draw(st.sampled_from(((1, 1), (1, 2), (3, 5), (4, 18))))
    fields = {
        "n": draw(small),
        "h": draw(st.integers(1, 20)),
        "w": draw(st.integers(1, 40)),
        "ci": groups * each_in,
        "co": groups * each_out,
        "kh": draw(st.integers(1, 4)),
        "kw": draw(st.integers(1, 4)),
        "stride": draw(st.tuples(small, small)),
        "padding": draw(st.tuples(*[st.integers(0, 4)] * 4) | st.sampled_from(("same", "valid"))),
        "dilation": draw(st.tuples(small, small)),
        "groups": groups,
        "layout": draw(st.sampled_from(LAYOUTS)),
        "bias": draw(st.booleans()),
        "residual": draw(st.booleans()),
        "activation": draw(st.sampled_from(ACTIVATIONS)),
    }
    try:
        return workload("conv2d", **fields)
    except WorkloadError:
        assume(False)
        raise


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(convs(), st.sampled_from(TARGETS), st.integers(0, 2**16), st.integers(0, 15))
def test_any_config_of_any_conv(work: Workload, name: str, seed: int, offset: int) -> None:
    where = machine(name)
    template = random.Random(seed).choice(covering(work, where))
    config = template.space(work, where).sample(random.Random(seed), tries=5000)
    assert config is not None
    check(compiled(template, work, where, config), work, offset)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e18, 1e-42])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_unusual_values_go_where_the_reference_puts_them(layout: str, value: float) -> None:
    """Inside the image, and as a weight, which meets the zeros around it."""
    where = machine(TARGETS[-1])
    for shape in (
        "ci=2 co=3 kh=3 kw=3 padding=1",
        "ci=3 co=3 kh=3 kw=3 padding=1 groups=3",
        "ci=2 co=3 kh=1 kw=1",
    ):
        work = conv(f"n=1 h=6 w=20 {shape} bias=true activation=relu", layout)
        x, w, bias = op_of(work).random_inputs(work, seed=0)
        x.reshape(-1)[[0, 50]] = value
        w.reshape(-1)[0] = value if np.isfinite(value) else w.reshape(-1)[0]
        for template in covering(work, where):
            check(compiled(template, work, where, template.default(work, where)), work, 0, [x, w, bias])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_infinite_weights_meet_zeros_around_the_image(layout: str) -> None:
    where = machine(TARGETS[-1])
    for groups in (1, 3):
        work = conv(f"n=1 h=6 w=20 ci=3 co=3 kh=3 kw=3 padding=1 groups={groups}", layout)
        x, w = op_of(work).random_inputs(work, seed=0)
        w.reshape(-1)[0] = np.inf
        assert np.isnan(op_of(work).reference(work, x, w)[0]).any()
        for template in covering(work, where):
            check(compiled(template, work, where, template.default(work, where)), work, 0, [x, w])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("argument", ["x", "w", "bias", "residual"])
def test_an_output_that_overlaps_an_input_is_refused_before_it_is_written(argument: str, layout: str) -> None:
    work = conv("n=1 h=4 w=4 ci=4 co=4 kh=1 kw=1 bias=true residual=true", layout)
    where, op = machine(TARGETS[0]), op_of(work)
    memory = np.zeros(300, "float32")
    inputs = dict(zip(("x", "w", "bias", "residual"), op.random_inputs(work, seed=0)))
    inputs[argument] = memory[40 : 40 + inputs[argument].size].reshape(inputs[argument].shape)
    out = memory[41 : 41 + 64].reshape(op.outputs(work)[0].shape)
    for template in covering(work, where):
        kernel = compiled(template, work, where, template.default(work, where))
        with pytest.raises(ValueError, match=f"argument 'out' shares memory with '{argument}'"):
            kernel(*inputs.values(), out)
        assert not memory.any()


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("cores", [1, 2, 64])
def test_the_default_is_in_the_space(name: str, cores: int) -> None:
    where = replace(target(name), cores=cores)
    rng = random.Random(name)
    for _ in range(25):
        groups, channels = rng.choice(((1, 64), (1, 3), (1, 1000), (32, 4), (33, 1)))
        kernel, stride = rng.choice(((1, 1), (3, 1), (3, 2), (1, 2), (7, 2)))
        size = rng.choice((7, 8, 13, 56, 224))
        work = workload(
            "conv2d",
            **dict.fromkeys(("h", "w"), size),
            **dict.fromkeys(("ci", "co"), groups * channels),
            **dict.fromkeys(("kh", "kw"), kernel),
            n=rng.choice((1, 5)),
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            layout=rng.choice(LAYOUTS),
        )
        for template in TEMPLATES:
            if template.covers(work, where):
                assert template.default(work, where) in template.space(work, where), work


def test_depthwise_covers_nothing_else() -> None:
    where = machine(TARGETS[0])
    for shape in ("ci=4 co=8 kh=3 kw=3 groups=4", "ci=4 co=4 kh=3 kw=3", "ci=4 co=4 kh=3 kw=3 groups=2"):
        assert not Conv2DDepthwise().covers(conv(f"n=1 h=8 w=8 {shape}"), where)
    assert Conv2DDepthwise().covers(conv("n=1 h=8 w=8 ci=4 co=4 kh=3 kw=3 groups=4"), where)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_building_twice_gives_the_same_code(template: Template) -> None:
    layout = "NHWC" if isinstance(template, Conv2DChannels) else "NCHW"
    groups = 4 if isinstance(template, Conv2DDepthwise) else 1
    work, where = conv(f"n=1 h=8 w=8 ci=4 co=4 kh=3 kw=3 groups={groups}", layout), machine(TARGETS[0])
    config = template.default(work, where)
    first, second = (template.build(work, where, config).script() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_estimate_prefers_wide_tiles_and_all_cores(layout: str) -> None:
    work, where = conv("n=1 h=28 w=28 ci=128 co=128 kh=3 kw=3 padding=1", layout), machine(TARGETS[-1])
    (template,) = covering(work, where)
    default = template.default(work, where)
    for worse in (default.replace(mr=1, nv=1), default.replace(split_co=1, split_px=1)):
        assert template.estimate(work, where, default) < template.estimate(work, where, worse)
