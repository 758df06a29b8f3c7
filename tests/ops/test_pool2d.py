from __future__ import annotations

import numpy as np
import pytest

from tvmops.errors import WorkloadError
from tvmops.measure.build import compile_module
from tvmops.ops import op_of
from tvmops.schedules.sketch import tensor_program
from tvmops.targets import target
from tvmops.workloads import Workload, workload

SIZES = "n=2 h=8 w=9 c=3"
FORMS = (
    "kernel=3 stride=2 padding=1 kind=max",
    "kernel=3x2 stride=2x1 padding=1x0x0x1 dilation=2x1 ceil_mode=true kind=max",
    "kernel=3x2 stride=2x1 padding=1 kind=average",
    "kernel=3x2 stride=2 padding=0x1x1x0 ceil_mode=true kind=average",
    "kernel=3 stride=2 padding=1 ceil_mode=true kind=average count_include_pad=false",
)


def pool(text: str) -> Workload:
    return Workload.parse(f"pool2d {text}")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("form", FORMS)
def test_the_reference_is_that_of_the_elements_under_the_window(form: str, layout: str) -> None:
    work = pool(f"{SIZES} {form} layout={layout}")
    op = op_of(work)
    (x,) = op.random_inputs(work, seed=1)
    (result,) = op.reference(work, x)
    if layout == "NHWC":
        x, result = (np.moveaxis(each, 3, 1) for each in (x, result))
    assert result.shape[2:] == tuple(_size(work, axis) for axis in (0, 1))
    for b, c, i, j in np.ndindex(result.shape):
        rows, columns = _places(work, 0, i), _places(work, 1, j)
        inside = [x[b, c, r, s] for r in rows for s in columns if 0 <= r < 8 and 0 <= s < 9]
        if work["kind"] == "max":
            expected = max(inside)
        else:
            counted = len(rows) * len(columns) if work["count_include_pad"] else len(inside)
            expected = sum(map(float, inside)) / counted
        assert result[b, c, i, j] == pytest.approx(expected, rel=1e-13)


def _sizes(work: Workload, name: str) -> tuple[int, ...]:
    value = work[name]
    assert isinstance(value, tuple)
    return value


def _size(work: Workload, axis: int) -> int:
    """Count the windows one by one: those that begin inside, and end there or may overhang."""
    extent, stride, padding = (8, 9)[axis], _sizes(work, "stride")[axis], _sizes(work, "padding")
    reach = (_sizes(work, "kernel")[axis] - 1) * _sizes(work, "dilation")[axis] + 1
    begin, end = -padding[axis], extent + padding[axis + 2]
    starts = range(begin, extent if work["ceil_mode"] else end - reach + 1, stride)
    fitting = [start for start in starts if start + reach <= end]
    return len(fitting) + (
        work["ceil_mode"] is True and fitting[-1] + reach < end and len(starts) > len(fitting)
    )


def _places(work: Workload, axis: int, step: int) -> list[int]:
    """Return the rows (columns) of the padded image under the window."""
    extent, padding = (8, 9)[axis], _sizes(work, "padding")
    start, dilation = step * _sizes(work, "stride")[axis] - padding[axis], _sizes(work, "dilation")[axis]
    places = (start + k * dilation for k in range(_sizes(work, "kernel")[axis]))
    return [place for place in places if place < extent + padding[axis + 2]]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("form", (*FORMS, "kernel=global kind=average", "kernel=global kind=max"))
def test_the_expression_says_the_same_as_the_reference(form: str, layout: str) -> None:
    work = pool(f"{SIZES} {form} layout={layout}")
    op = op_of(work)
    (x,) = op.random_inputs(work, seed=1)
    x.reshape(-1)[40:60], x.reshape(-1)[0] = np.nan, -np.inf
    (expected,) = op.reference(work, x)
    assert np.isnan(expected).any()
    result = np.full(expected.shape, 7, "float32")
    compile_module(tensor_program(work), target("native"))["main"](x, result)
    np.testing.assert_allclose(result, expected, rtol=0, atol=op.tolerance(work))


def test_a_global_kernel_is_one_as_large_as_the_image() -> None:
    for kind in ("max", "average"):
        whole, given = (pool(f"{SIZES} kernel={kernel} kind={kind}") for kernel in ("global", "8x9"))
        (x,) = op_of(whole).random_inputs(whole, seed=1)
        np.testing.assert_array_equal(op_of(whole).reference(whole, x), op_of(given).reference(given, x))
        assert op_of(whole).flops(whole) == op_of(given).flops(given) == 2 * 3 * 8 * 9


@pytest.mark.parametrize(
    "form, field",
    [
        ("kernel=3 padding=2", "padding"),  # a window would lie outside altogether
        ("kernel=2 dilation=2 kind=average", "dilation"),
        ("kernel=2 count_include_pad=false", "count_include_pad"),
        ("kernel=global stride=2", "stride"),
        ("kernel=global padding=1 kind=average", "padding"),
        ("kernel=9", "h"),
        ("kernel=0", "kernel"),
        ("kernel=2 kind=min", "kind"),
    ],
)
def test_what_pytorch_refuses_is_refused(form: str, field: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        pool(f"{SIZES} {form}")
    assert caught.value.fields["field"] == field


def test_words_for_padding_and_the_text() -> None:
    made = workload("pool2d", n=1, h=7, w=8, c=1, kernel=3, stride=2, padding="same")
    assert made["padding"] == (1, 0, 1, 1)
    assert str(made) == "pool2d n=1 h=7 w=8 c=1 kernel=3 stride=2 padding=1x0x1x1 kind=max dtype=float32"
    assert Workload.parse(str(made)) == made
    assert made.generic()["kernel"] == (3, 3)
