from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tvmops.errors import CallError, CallTypeError, WorkloadError
from tvmops.measure.build import compile_module
from tvmops.ops import op_of
from tvmops.runtime.calls import CALL_ARGUMENTS, CALLS
from tvmops.schedules.sketch import tensor_program
from tvmops.signatures.windows import output_size
from tvmops.targets import target
from tvmops.workloads import Workload, workload

SIZES = "n=2 h=9 w=11 ci=4 co=6 kh=3 kw=2"
EVERYTHING = "stride=2x1 padding=1x2x0x1 dilation=1x2 groups=2 bias=true residual=true activation=relu"


def conv(text: str) -> Workload:
    return Workload.parse(f"conv2d {text}")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_reference_is_the_sum_over_the_window(layout: str) -> None:
    work = conv(f"{SIZES} {EVERYTHING} layout={layout}")
    op = op_of(work)
    inputs = op.random_inputs(work, seed=1)
    (result,) = op.reference(work, *inputs)
    x, w, bias, residual = (array.astype("float64") for array in inputs)
    if layout == "NHWC":
        x, w, residual, result = (np.moveaxis(each, 3, 1) for each in (x, w, residual, result))
    padded = np.zeros((2, 4, 9 + 1, 11 + 3))
    padded[:, :, 1:, 2:-1] = x
    expected = residual + bias[:, None, None]
    for b, o, i, j in np.ndindex(expected.shape):
        for c, r, s in product(range(2), range(3), range(2)):
            expected[b, o, i, j] += padded[b, o // 3 * 2 + c, 2 * i + r, j + 2 * s] * w[o, c, r, s]
    np.testing.assert_allclose(result, np.maximum(expected, 0), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("attributes", ["", EVERYTHING])
def test_the_expression_says_the_same_as_the_reference(layout: str, attributes: str) -> None:
    work = conv(f"{SIZES} {attributes} layout={layout}")
    op = op_of(work)
    inputs = op.random_inputs(work, seed=1)
    (expected,) = op.reference(work, *inputs)
    result = np.full(expected.shape, np.nan, "float32")
    compile_module(tensor_program(work), target("native"))["main"](*inputs, result)
    assert np.abs(result - expected).max() <= op.tolerance(work)


def test_work_is_counted() -> None:
    work = conv("n=2 h=9 w=11 ci=4 co=6 kh=3 kw=2 stride=2x1 groups=2")
    assert output_size(work) == (4, 10)
    assert op_of(work).flops(work) == 2 * (2 * 6 * 4 * 10) * (2 * 3 * 2)


def test_padding_is_one_number_two_or_four_in_the_order_top_left_bottom_right() -> None:
    for given, sides in (
        (1, (1, 1, 1, 1)),
        ((1, 2), (1, 2, 1, 2)),
        ((1, 2, 3, 4), (1, 2, 3, 4)),
        ("valid", (0,) * 4),
    ):
        assert workload("conv2d", n=1, h=9, w=9, ci=1, co=1, kh=3, kw=3, padding=given)["padding"] == sides


@pytest.mark.parametrize(
    "text, sides",
    [
        ("h=9 w=9 kh=3 kw=3", (1, 1, 1, 1)),
        ("h=9 w=9 kh=2 kw=4", (0, 1, 1, 2)),  # an odd zero goes to the bottom and right
        ("h=8 w=9 kh=3 kw=3 stride=2", (0, 1, 1, 1)),  # it depends on the size
        ("h=9 w=9 kh=3 kw=3 dilation=2", (2, 2, 2, 2)),
        ("h=9 w=9 kh=1 kw=1 stride=3", (0, 0, 0, 0)),  # never negative
        ("h=* w=* kh=3 kw=3", (1, 1, 1, 1)),
    ],
)
def test_same_padding_is_that_of_tensorflow(text: str, sides: tuple[int, ...]) -> None:
    work = conv(f"n=1 ci=1 co=1 {text} padding=same")
    assert work["padding"] == sides
    if not work.is_generic:
        h, w = work.dims("h", "w")
        down, across = work["stride"]  # type: ignore[misc]
        assert output_size(work) == (-(-h // down), -(-w // across))


@pytest.mark.parametrize(
    "text, field",
    [
        ("n=1 h=2 w=9 ci=1 co=1 kh=3 kw=3", "h"),
        ("n=1 h=9 w=4 ci=1 co=1 kh=3 kw=3 dilation=2", "w"),
        ("n=1 h=9 w=9 ci=3 co=4 kh=1 kw=1 groups=2", "ci"),
        ("n=1 h=9 w=9 ci=4 co=3 kh=1 kw=1 groups=2", "co"),
        ("n=1 h=* w=9 ci=4 co=4 kh=3 kw=3 stride=2 padding=same", "h"),
        ("n=1 h=9 w=9 ci=4 co=4 kh=3 kw=3 stride=0", "stride"),
        ("n=1 h=9 w=9 ci=4 co=4 kh=3 kw=3 padding=1x2x3", "padding"),
    ],
)
def test_fields_that_do_not_fit_are_named(text: str, field: str) -> None:
    with pytest.raises(WorkloadError, match=f"conv2d: field '{field}'"):
        conv(text)


X, W = np.zeros((1, 4, 8, 8), "float32"), np.zeros((6, 4, 3, 3), "float32")


@pytest.mark.parametrize(
    "changes, argument",
    [
        ({"x": X[0]}, "x"),
        ({"x": X[:, :3]}, "w"),
        ({"x": X[:, :, :2]}, "x"),
        ({"x": X[:, :0]}, "x"),
        ({"w": W[0]}, "w"),
        ({"w": W[:0]}, "w"),
        ({"bias": np.zeros(5, "float32")}, "bias"),
        ({"residual": np.zeros((1, 6, 8, 8), "float32")}, "residual"),
        ({"stride": 0}, "stride"),
        ({"stride": (1, 2, 3)}, "stride"),
        ({"padding": -1}, "padding"),
        ({"padding": "full"}, "padding"),
        ({"dilation": 0}, "dilation"),
        ({"groups": 0}, "groups"),
        ({"groups": 5}, "groups"),
        ({"activation": "swish"}, "activation"),
        ({"layout": "HWCN"}, "layout"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, object], argument: str) -> None:
    with pytest.raises(CallError, match=f"conv2d: argument '{argument}'"):
        CALLS["conv2d"](**{"x": X, "w": W, **changes})


def test_another_dtype_is_refused() -> None:
    with pytest.raises(CallTypeError, match=r"argument 'w'.*float64"):
        CALLS["conv2d"](X, W.astype("float64"))


def test_arguments_make_the_workload_again() -> None:
    for layout in ("NCHW", "NHWC"):
        work = conv(f"{SIZES} {EVERYTHING} layout={layout}")
        inputs = op_of(work).random_inputs(work, seed=0)
        assert CALLS["conv2d"](**CALL_ARGUMENTS["conv2d"](work, inputs)).workload == work


def test_an_empty_batch_is_no_error() -> None:
    call = CALLS["conv2d"](X[:0], W)
    assert call.is_empty
    assert call.outputs[0].shape == (0, 6, 6, 6)
