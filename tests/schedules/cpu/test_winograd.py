"""Winograd kernels give what float64 gives, on tiles that overhang, on odd channels, in each layout."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.libraries import default_record, write_log
from tests.schedules.cpu.convs import check, compiled
from tests.schedules.cpu.kernels import SENTINEL, Banded
from tvmops.errors import CallError, CallTypeError
from tvmops.library.export import export
from tvmops.machine import this_machine
from tvmops.measure.build import compile_module
from tvmops.ops import op_of
from tvmops.runtime.calls.conv2d import call, pack
from tvmops.runtime.load import load
from tvmops.schedules import templates_for
from tvmops.schedules.cpu.winograd import Winograd2, Winograd4, Winograd6
from tvmops.space import Config
from tvmops.targets import Target, native, target
from tvmops.workloads import Workload, workload

TARGETS = [target(name) for name in ("x86-64-v3", "x86-64-v4") if not target(name).missing(this_machine())]
WIDEST = TARGETS[-1]
FAMILY = (Winograd2(), Winograd4(), Winograd6())
Winograd = Winograd2 | Winograd4 | Winograd6


def conv(**fields: Any) -> Workload:
    sizes = {"n": 1, "h": 13, "w": 15, "ci": 32, "co": 32, "kh": 3, "kw": 3, "padding": 1}
    return workload("conv2d", **{**sizes, **fields})


def largest_error(
    template: Winograd, work: Workload, machine: Target, config: Config | None = None, offset: int = 0
) -> float:
    """Call a kernel amid bands, and return the largest error of its result.

    NaN lies around the inputs: what is read beyond them must not reach the result.
    """
    config = config or template.default(work, machine)
    kernel = compile_module(template.build(work, machine, config), machine)["main"]
    op = op_of(work)
    drawn = op.random_inputs(work, seed=1)
    inputs = [Banded.of(array.shape, np.nan, offset) for array in drawn]
    for banded, array in zip(inputs, drawn):
        banded.array[...] = array
    output = Banded.of(op.outputs(work)[0].shape, SENTINEL, offset)
    output.array[...] = np.nan
    kernel(*(banded.array for banded in inputs), output.array)
    assert output.is_intact(), "wrote beyond the output"
    for banded, array in zip(inputs, drawn):
        assert np.array_equal(banded.array, array), "wrote to an input"
        assert banded.is_intact(), "wrote beyond an input"
    return float(np.abs(output.array - op.reference(work, *drawn)[0]).max())


def assert_right(template: Winograd, work: Workload, machine: Target, config: Config | None = None) -> None:
    error = largest_error(template, work, machine, config, offset=1)
    assert error <= template.bound(work), f"{template.name} {work}: off by {error}"  # False where it is NaN


def _(**fields: Any) -> dict[str, Any]:
    return fields


SHAPES = [
    (_(h=12, w=12), "whole tiles of each size"),
    (_(h=13, w=17), "tiles that overhang at the bottom and the right"),
    (_(h=3, w=3, padding=0), "one output"),
    (_(h=1, w=1), "an image smaller than a tile, all edges"),
    (_(h=14, w=9, padding=0), "no padding"),
    (_(padding="2x0x1x3"), "another padding on each side"),
    (_(padding="5x4x5x4", h=4, w=3), "columns and rows of tiles that lie in the padding alone"),
    (_(ci=19, co=21), "channels that fill no vector"),
    (_(ci=16, co=1), "one channel out"),
    (_(n=3, h=7, w=7, ci=17, co=49), "several images"),
    (_(h=5, w=40), "rows longer than two vectors"),
]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("template", FAMILY, ids=lambda each: each.name)
@pytest.mark.parametrize("fields", [fields for fields, _ in SHAPES], ids=[why for _, why in SHAPES])
def test_default_configs_are_right(fields: dict[str, Any], template: Winograd, layout: str) -> None:
    assert_right(template, conv(**fields, layout=layout), WIDEST)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("machine", TARGETS, ids=lambda each: each.name)
@pytest.mark.parametrize("template", FAMILY, ids=lambda each: each.name)
def test_random_configs_are_right(template: Winograd, machine: Target, layout: str) -> None:
    rng = random.Random(template.m)
    work = conv(h=22, w=27, ci=35, co=70, layout=layout, bias=True, residual=True, activation="relu")
    space = template.space(work, machine)
    for _ in range(4):
        config = space.sample(rng)
        assert config is not None
        assert_right(template, work, machine, config)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("machine", TARGETS, ids=lambda each: each.name)
@pytest.mark.parametrize("template", FAMILY[:2], ids=lambda each: each.name)
def test_packed_weights_are_right(template: Winograd, machine: Target, layout: str) -> None:
    packed = f"winograd{template.m}"
    work = conv(ci=21, co=37, layout=layout, packed=packed, bias=True, residual=True, activation="relu")
    assert [each.name for each in templates_for(work, machine)] == [template.name, "sketch"]
    assert_right(template, work, machine)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("machine", TARGETS, ids=lambda each: each.name)
@pytest.mark.parametrize("template", FAMILY[:2], ids=lambda each: each.name)
def test_generic_kernels_take_transformed_weights_at_any_size(
    template: Winograd, machine: Target, layout: str
) -> None:
    """Each at every shape: ranges say what a kernel is meant for, not what it can do."""
    for padding in (1, "5x0x1x4"):
        form = _(layout=layout, packed=f"winograd{template.m}", padding=padding, bias=True, residual=True)
        pattern = conv(**form).generic()
        for generic in template.generic(pattern, machine):
            kernel = compiled(template, pattern, machine, generic.config)
            for sizes, _why in SHAPES:
                work = conv(**{**sizes, **form})
                check(kernel, work, offset=1)


def test_generic_kernels_are_for_channels_whose_error_is_within_the_ops() -> None:
    def least(template: Winograd) -> int:
        pattern = conv(packed=f"winograd{template.m}", activation="gelu").generic()
        *_others, widest = template.generic(pattern, WIDEST)
        return widest.ranges["ci"][0] if widest.ranges else 1

    assert least(Winograd2()) == 1
    assert Winograd4().covers(conv(ci=least(Winograd4())), WIDEST)
    assert not Winograd4().covers(conv(ci=least(Winograd4()) - 1), WIDEST)
    assert Winograd4().generic(conv().generic(), WIDEST) == []  # in each call, transforms cost too much


def test_a_generic_kernel_refuses_weights_transformed_for_other_channels() -> None:
    work = conv(ci=16, co=40, packed="winograd4")
    pattern, template = work.generic(), Winograd4()
    kernel = compiled(template, pattern, WIDEST, template.generic(pattern, WIDEST)[-1].config)
    x, w = op_of(work).random_inputs(work, seed=1)
    y = np.full((1, 40, 13, 15), np.nan, "float32")
    with pytest.raises(ValueError, match="packed for other channels"):
        kernel(x, w[:2], y)
    with pytest.raises(ValueError, match=r"Mismatched .* on argument #1"):
        kernel(x, w[:, :, :8].copy(), y)
    assert np.isnan(y).all()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("panels", [1, 0])
def test_both_orders_of_the_loops_are_right(shared: bool, panels: int) -> None:
    work = conv(h=18, w=18, ci=48, co=100)
    config = Config.of(mr=4, nb=3, rows=2, columns=4, panels=panels, ku=4, shared=shared, parallel=True)
    assert_right(Winograd4(), work, WIDEST, config)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_workload_is_right(data: st.DataObject) -> None:
    sides = st.integers(0, 4)
    work = conv(
        n=data.draw(st.integers(1, 2)),
        h=data.draw(st.integers(3, 20)),
        w=data.draw(st.integers(3, 20)),
        ci=data.draw(st.integers(1, 40)),
        co=data.draw(st.integers(1, 40)),
        padding=tuple(data.draw(sides) for _ in range(4)),
        layout=data.draw(st.sampled_from(["NCHW", "NHWC"])),
        bias=data.draw(st.booleans()),
        residual=data.draw(st.booleans()),
        activation=data.draw(st.sampled_from(["none", "relu6", "gelu"])),
    )
    assert_right(data.draw(st.sampled_from(FAMILY)), work, data.draw(st.sampled_from(TARGETS)))


@pytest.mark.parametrize("template", FAMILY, ids=lambda each: each.name)
def test_the_bound_is_near_what_is_seen(template: Winograd) -> None:
    work = conv(h=48, w=48, ci=64, co=64, layout="NHWC")
    error = largest_error(template, work, WIDEST)
    assert 0.3 * template.bound(work) < error <= template.bound(work)


def test_tiles_whose_bound_is_beyond_the_ops_are_refused() -> None:
    def names(**fields: Any) -> list[str]:
        return [each.name for each in templates_for(conv(**fields), WIDEST) if "winograd" in each.name]

    assert names(ci=64) == ["cpu.winograd4", "cpu.winograd2"]
    assert names(ci=3) == ["cpu.winograd2"]
    assert names(ci=1024) == ["cpu.winograd4", "cpu.winograd2"]


@pytest.mark.parametrize(
    "fields", [_(stride=2), _(dilation=2), _(kh=1, kw=1), _(kw=5), _(groups=2), _(h="*", ci="*")]
)
def test_other_convolutions_are_refused(fields: dict[str, Any]) -> None:
    assert not Winograd2().covers(conv(**fields), WIDEST)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_stays_in_its_tiles(value: float) -> None:
    """Outputs that see it are not finite, as they should be; those of tiles without it are right."""
    work = conv(h=24, w=24, layout="NHWC")
    x, w = op_of(work).random_inputs(work, seed=2)
    x[0, 9, 9, 5] = value
    config = Winograd4().default(work, WIDEST)
    y = np.empty((1, 24, 24, 32), "float32")
    compile_module(Winograd4().build(work, WIDEST, config), WIDEST)["main"](x, w, y)
    assert not np.isfinite(y[0, 8:11, 8:11]).any()
    expected = op_of(work).reference(work, x, w)[0]
    far = np.ones((24, 24), bool)
    far[8:12, 8:12] = False
    assert np.abs(y - expected)[0][far].max() <= Winograd4().bound(work)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30])
def test_tiny_and_huge_images_are_right(scale: float) -> None:
    work = conv(h=16, w=16, layout="NHWC")
    x, w = op_of(work).random_inputs(work, seed=3)
    x = (x * scale).astype("float32")
    config = Winograd4().default(work, WIDEST)
    y = np.empty((1, 16, 16, 32), "float32")
    compile_module(Winograd4().build(work, WIDEST, config), WIDEST)["main"](x, w, y)
    error = np.abs(y - op_of(work).reference(work, x, w)[0]).max()
    smallest = np.finfo("float32").smallest_subnormal
    assert error <= Winograd4().bound(work) * scale + 400 * smallest


def test_the_bound_is_in_a_librarys_manifest(tmp_path: Path) -> None:
    work = conv(layout="NHWC")
    template = Winograd4()
    config = template.default(work, native())
    record = default_record(work, native(), template=template.label, config=config.as_dict())
    export(work, native(), [write_log(tmp_path / "log.jsonl", record)], tmp_path / "library")
    library = load(tmp_path / "library")
    x, w = op_of(work).random_inputs(work, seed=4)
    explanation = library.explain("conv2d", x, w, padding=1, layout="NHWC")
    assert explanation.kernel.template == template.label
    assert explanation.kernel.tolerance == template.bound(work) < op_of(work).tolerance(work)
    y = library.conv2d(x, w, padding=1, layout="NHWC")
    assert np.abs(y - op_of(work).reference(work, x, w)[0]).max() <= template.bound(work)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("packed", ["winograd2", "winograd4"])
def test_a_library_takes_packed_weights(packed: str, layout: str, tmp_path: Path) -> None:
    work = conv(layout=layout, packed=packed, activation="relu")
    record = default_record(work, native())
    export(work, native(), [write_log(tmp_path / "log.jsonl", record)], tmp_path / "library")
    library = load(tmp_path / "library")
    plain = conv(layout=layout, activation="relu")
    x, w = op_of(plain).random_inputs(plain, seed=5)
    weight = library.pack("conv2d", w, packed=packed, layout=layout)
    attributes: dict[str, Any] = {"padding": 1, "layout": layout, "activation": "relu"}
    assert library.explain("conv2d", x, weight, **attributes).tier == "exact"
    y = library.conv2d(x, weight, **attributes)
    assert np.abs(y - op_of(plain).reference(plain, x, w)[0]).max() <= op_of(plain).tolerance(plain)

    too_few = packed if packed == "winograd2" else "none"  # channels, that is, for F(4)
    for sizes, answered in ((_(h=8), packed), (_(n=2, h=3, w=41, ci=18, co=7), packed), (_(ci=9), too_few)):
        other = conv(**sizes, layout=layout, activation="relu")
        x, w = op_of(other).random_inputs(other, seed=6)
        weight = library.pack("conv2d", w, packed=packed, layout=layout)
        explanation = library.explain("conv2d", x, weight, **attributes)
        assert (explanation.tier, explanation.workload["packed"]) == ("generic", answered)
        with pytest.warns(UserWarning, match="was not tuned"):
            y = library.conv2d(x, weight, **attributes)
        assert np.abs(y - op_of(other).reference(other, x, w)[0]).max() <= op_of(other).tolerance(other)


def test_a_weight_that_can_not_be_packed_is_refused() -> None:
    small = pack(np.zeros((4, 4, 3, 3), "float32"), packed="winograd4")
    with pytest.raises(CallError, match="expected shape \\(co, ci, 3, 3\\)"):
        pack(np.zeros((4, 4, 5, 5), "float32"), packed="winograd4")
    with pytest.raises(CallTypeError, match="float64"):
        pack(np.zeros((4, 4, 3, 3)))
    with pytest.raises(CallError, match="winograd2, winograd4"):
        pack(np.zeros((4, 4, 3, 3), "float32"), packed="panels")
    with pytest.raises(CallError, match="stride"):
        call(np.zeros((1, 4, 9, 9), "float32"), small, stride=2)
    with pytest.raises(CallError, match="for 4 input channels"):
        call(np.zeros((1, 5, 9, 9), "float32"), small)
