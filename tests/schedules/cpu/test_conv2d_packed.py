"""Direct convolutions whose weights were packed beforehand, in memory and through a library."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.libraries import default_record, write_log
from tests.schedules.cpu.convs import check, compiled
from tvmops.errors import CallError, WorkloadError
from tvmops.library.export import export
from tvmops.machine import this_machine
from tvmops.measure.build import compile_module
from tvmops.ops import op_of
from tvmops.runtime.calls.conv2d import call, held_layout, pack
from tvmops.runtime.load import Library, load
from tvmops.schedules import templates_for
from tvmops.schedules.cpu.conv2d_channels import Conv2DChannels
from tvmops.schedules.sketch import tensor_program
from tvmops.signatures.layouts import ConvPanels
from tvmops.targets import Target, target
from tvmops.workloads import Workload

TARGETS = [name for name in ("x86-64-v3", "x86-64-v4") if not target(name).missing(this_machine())]
LAYOUTS = ("NCHW", "NHWC")
SHAPES: dict[str, str] = {
    "n=1 h=7 w=7 ci=5 co=9 kh=3 kw=3 padding=1": "less than a panel",
    "n=2 h=7 w=7 ci=19 co=49 kh=1 kw=1 bias=true activation=relu": "pointwise, one channel more than panels",
    "n=1 h=14 w=14 ci=16 co=64 kh=1 kw=1 stride=2": "panels that are whole",
    "n=1 h=9 w=20 ci=6 co=33 kh=3 kw=2 stride=2x1 padding=1x0x2x1 dilation=1x2 residual=true": "everything",
    "n=2 h=7 w=9 ci=10 co=96 kh=3 kw=3 padding=1 groups=2 bias=true": "groups that end where panels do",
    "n=1 h=6 w=7 ci=8 co=64 kh=1 kw=1 groups=4": "pointwise groups of one panel each",
    "n=1 h=9 w=8 ci=37 co=37 kh=3 kw=3 padding=1 groups=37 bias=true": "each channel a group",
}
CASES = [pytest.param(shape, id=why) for shape, why in SHAPES.items()]


@pytest.fixture(scope="module", autouse=True)
def _threads() -> None:
    from tvmops.runtime.backend import load_backend, ready_threads

    load_backend()
    ready_threads()


def machine(name: str) -> Target:
    return replace(target(name), cores=2)


def conv(shape: str, layout: str) -> Workload:
    return Workload.parse(f"conv2d {shape} layout={layout} packed=panels-{layout.lower()}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", CASES)
def test_the_default_and_random_configs(shape: str, layout: str) -> None:
    work = conv(shape, layout)
    for name in TARGETS:
        where = machine(name)
        template = templates_for(work, where)[0]
        space, rng = template.space(work, where), random.Random(shape)
        for config in (template.default(work, where), space.sample(rng), space.sample(rng)):
            assert config is not None
            assert config in space
            check(compiled(template, work, where, config), work, offset=3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", CASES)
def test_generic_kernels_read_packed_weights(shape: str, layout: str) -> None:
    work = conv(shape, layout)
    for name in TARGETS:
        where = machine(name)
        pattern = work.generic()
        template = templates_for(work, where)[0]
        (generic,) = template.generic(pattern, where)
        kernel = compiled(template, pattern, where, generic.config)
        smaller = work.replace(h=work.dims("h")[0] - 2, n=3)
        for each in (work, smaller):
            check(kernel, each, offset=1)


def test_a_generic_kernel_refuses_weights_packed_for_other_channels() -> None:
    work, where = conv("n=1 h=5 w=5 ci=4 co=20 kh=1 kw=1", "NCHW"), machine(TARGETS[0])
    pattern = work.generic()
    template = templates_for(pattern, where)[0]
    kernel = compiled(template, pattern, where, template.generic(pattern, where)[0].config)
    x, w = op_of(work).random_inputs(work, seed=1)
    y = np.full((1, 20, 5, 5), np.nan, "float32")
    for wrong in (w[:1], w[:, :3].copy()):
        with pytest.raises(ValueError, match="packed for other channels"):
            kernel(x, wrong, y)
    assert np.isnan(y).all()


def test_groups_that_end_within_a_panel_need_channels_first() -> None:
    shape = "n=1 h=6 w=6 ci=4 co=20 kh=3 kw=3 groups=2"
    work, where = conv(shape, "NCHW"), machine(TARGETS[0])
    template = templates_for(work, where)[0]
    check(compiled(template, work, where, template.default(work, where)), work)
    assert not Conv2DChannels().covers(conv(shape, "NHWC"), where)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_packed_and_unpacked(layout: str) -> None:
    w = np.random.default_rng(0).standard_normal((21, 5, 3, 2), dtype="float32")
    packed = ConvPanels(layout).pack(w)
    assert packed.shape == ConvPanels(layout).shape(*w.shape) == (2, 30, 16)
    assert packed.ctypes.data % 64 == 0
    assert packed[1, (4 * 3 + 2) * 2 + 1 if layout == "NCHW" else (2 * 2 + 1) * 5 + 4, 3] == w[19, 4, 2, 1]
    np.testing.assert_array_equal(ConvPanels(layout).unpack(packed, *w.shape), w)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_expression_is_the_reference(layout: str) -> None:
    work = conv("n=1 h=5 w=6 ci=3 co=18 kh=3 kw=2 padding=1", layout)
    inputs = op_of(work).random_inputs(work, seed=1)
    (expected,) = op_of(work).reference(work, *inputs)
    result = np.full(expected.shape, np.nan, "float32")
    compile_module(tensor_program(work), target("native"))["main"](*inputs, result)
    assert np.abs(result - expected).max() <= op_of(work).tolerance(work)


BASE = "n=1 h=9 w=9 ci=4 co=20 kh=3 kw=3 padding=1"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder, native = tmp_path_factory.mktemp("packed"), target("native")
    work = [conv(BASE, "NCHW"), conv(BASE.replace("ci=4", "ci=16"), "NHWC")]
    work += [Workload.parse(f"conv2d {BASE.replace('ci=4', 'ci=17')} packed=winograd2")]
    work += [conv(f"{BASE.replace('ci=4', 'ci=8').replace('co=20', 'co=64')} groups=4", "NHWC")]
    log = write_log(folder / "log.jsonl", *(default_record(each, native) for each in work))
    return load(export(work, native, [log], Path(folder / "library")))


@pytest.mark.parametrize(
    "layout, ci, chosen", [("NCHW", 4, "panels-nchw"), ("NHWC", 16, "panels-nhwc"), ("NCHW", 17, "winograd2")]
)
def test_a_library_packs_for_the_kernels_that_it_holds(
    library: Library, layout: str, ci: int, chosen: str
) -> None:
    plain = Workload.parse(f"conv2d {BASE} layout={layout}").replace(ci=ci)
    x, w = op_of(plain).random_inputs(plain, seed=5)
    weight = library.pack("conv2d", w, layout=layout)
    assert weight.layout == chosen
    attributes: dict[str, Any] = {"padding": 1, "layout": layout}
    assert library.explain("conv2d", x, weight, **attributes).tier == "exact"
    y = library.conv2d(x, weight, **attributes)
    assert np.abs(y - op_of(plain).reference(plain, x, w)[0]).max() <= op_of(plain).tolerance(plain)


def test_a_weight_without_kernels_is_packed_and_answered_all_the_same(library: Library) -> None:
    plain = Workload.parse("conv2d n=1 h=8 w=9 ci=6 co=20 kh=3 kw=3 padding=1")
    x, w = op_of(plain).random_inputs(plain, seed=5)
    weight = library.pack("conv2d", w)
    assert weight.layout == "panels-nchw"
    with pytest.warns(UserWarning, match="was not tuned"):
        y = library.conv2d(x, weight, padding=1)
    assert np.abs(y - op_of(plain).reference(plain, x, w)[0]).max() <= op_of(plain).tolerance(plain)


@pytest.mark.parametrize(
    "layout, ci, co, groups, answered",
    [
        ("NHWC", 3, 64, 4, "panels-nhwc"),  # channels of a group fill panels
        ("NHWC", 3, 40, 4, "none"),  # they do not: kernels of plain weights
        ("NCHW", 6, 20, 1, "panels-nchw"),
    ],
)
def test_packed_weights_serve_images_of_any_size(
    library: Library, layout: str, ci: int, co: int, groups: int, answered: str
) -> None:
    plain = Workload.parse(f"conv2d n=2 h=8 w=5 ci={ci * groups} co={co} kh=3 kw=3 padding=1 groups={groups}")
    plain = plain.replace(layout=layout)
    x, w = op_of(plain).random_inputs(plain, seed=5)
    weight = library.pack("conv2d", w, layout=layout)
    attributes: dict[str, Any] = {"padding": 1, "layout": layout, "groups": groups}
    explanation = library.explain("conv2d", x, weight, **attributes)
    assert (explanation.tier, explanation.workload["packed"]) == ("generic", answered)
    with pytest.warns(UserWarning, match="was not tuned"):
        y = library.conv2d(x, weight, **attributes)
    assert np.abs(y - op_of(plain).reference(plain, x, w)[0]).max() <= op_of(plain).tolerance(plain)


def test_most_kernels_decide_then_the_fastest() -> None:
    w = np.zeros((20, 4, 3, 3), "float32")
    panels, winograd = conv(BASE, "NCHW"), Workload.parse(f"conv2d {BASE} packed=winograd4")
    assert held_layout([(panels, 2.0), (winograd, 1.0)], w) == "winograd4"
    assert held_layout([(panels, 2.0), (winograd, 1.0), (panels.replace(h=7), 1.0)], w) == "panels-nchw"
    assert held_layout([(panels.replace(ci=5), 2.0), (panels.replace(packed="none"), 1.0)], w) is None
    assert held_layout([(panels, 2.0)], np.moveaxis(w, 1, 3), layout="NHWC") is None


def test_what_does_not_fit_is_refused_by_name() -> None:
    x, w = np.zeros((1, 4, 9, 9), "float32"), np.zeros((4, 4, 5, 5), "float32")
    with pytest.raises(CallError, match=re.escape("(co, ci, kh, kw)")):
        pack(w[0])
    with pytest.raises(CallError, match="'layout' is NHCW"):
        pack(w, layout="NHCW")
    with pytest.raises(CallError, match="expected layout another one with layout=NHWC"):
        call(x.transpose(0, 2, 3, 1), pack(w), layout="NHWC")
    with pytest.raises(WorkloadError, match="none or panels with groups"):
        Workload.parse(f"conv2d {BASE} groups=2 packed=winograd2")
