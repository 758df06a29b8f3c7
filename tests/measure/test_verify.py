"""Verification: what no right kernel does is seen, whatever the dtype."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmops.measure.arguments import Arguments
from tvmops.measure.candidate import Problem
from tvmops.measure.verify import complain, largest_error, poisoned

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("output", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([NAN, 2.0], [1.0, 2.0], INF),
        ([INF, 2.0], [1.0, 2.0], INF),
        ([1.0, 2.0], [INF, 2.0], INF),
        ([1.0, 2.0], [NAN, 2.0], INF),
        ([INF, 2.0], [-INF, 2.0], INF),
        ([INF, -INF, NAN], [INF, -INF, NAN], 0.0),  # where it is right, it is right
        ([INF, 2.0], [INF, 2.25], 0.25),
        ([0.0], [1e-40], 1e-40),  # a denormal that was flushed is off by itself, no more
        ([], [], 0.0),
    ],
)
def test_largest_error(output: list[float], expected: list[float], error: float) -> None:
    assert largest_error(np.array(output, "float32"), np.array(expected, "float64")) == error


@given(
    st.integers(0, 200_000),
    st.sampled_from([NAN, INF, 3.0]),
    st.sampled_from([(200_001,), (3, 66_667), (66_667, 3)]),
)
def test_one_wrong_element_is_found_wherever_it_is(at: int, value: float, shape: tuple[int, ...]) -> None:
    expected = np.zeros(shape)
    output = expected.astype("float32")
    output.flat[at] = value
    assert largest_error(output, expected) == (3.0 if value == 3.0 else INF)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8", "uint8", "int32", "bool"])
def test_a_poisoned_output_is_right_nowhere(dtype: str) -> None:
    kind = np.dtype(dtype).kind
    right = {"f": [0.0, NAN, -1.5, INF], "i": [0, -128, 127, 5], "u": [0, 255, 128, 5], "b": [0, 1, 1, 0]}
    expected = np.array(right[kind], "float64")
    wrong = poisoned(expected, dtype)
    assert wrong.dtype == dtype
    for index in range(expected.size):
        error = largest_error(wrong[index : index + 1], expected[index : index + 1])
        assert error > (1 if kind in "iu" else 0)  # integers may be allowed to differ by one


def test_complaints_say_what_is_wrong() -> None:
    expected = np.array([1.0, 2.0, NAN])
    assert complain(np.array([1.0, 2.0, NAN]), expected, 0.1, error=0.05) == ""
    assert complain(np.array([1.0, 2.5, NAN]), expected, 0.1, 0.5) == "differs by 0.5; at most 0.1 is allowed"
    assert complain(np.array([NAN, 2.0, 0.0]), expected, 0.1, INF) == (
        "left 2 of 3 elements unwritten or not finite"
    )


@pytest.fixture
def arguments(tmp_path: Path) -> Arguments:
    """Of the problem to add 1 to the first input; the second plays no part."""
    first, second = np.arange(6.0, dtype="float32").reshape(2, 3), np.zeros((0, 5), "int8")
    for name, array in (("first", first), ("second", second), ("expected", first + 1.0)):
        np.save(tmp_path / f"{name}.npy", array)
    paths = tmp_path / "first.npy", tmp_path / "second.npy"
    return Arguments(Problem(paths, (), (tmp_path / "expected.npy",), ("float32",), tolerance=1e-6))


def around(array: np.ndarray, offset: int) -> np.ndarray:
    """Return the element that lies `offset` after the start of `array`, out of bounds or not."""
    base = array.base
    assert base is not None
    while base.base is not None:
        base = base.base
    start = array.ctypes.data - base.ctypes.data + offset * array.itemsize
    return base[start : start + array.itemsize].view(array.dtype)


def test_a_right_kernel_is_right(arguments: Arguments) -> None:
    first, second, output = arguments.all
    assert (first.shape, second.shape, output.shape) == ((2, 3), (0, 5), (2, 3))
    for _ in range(2):
        arguments.poison()
        assert np.isnan(output).all()
        np.add(first, 1, out=output)
        assert arguments.judge() == (0.0, "")


@pytest.mark.parametrize("offset", [-1, 6, -1024, 1029])
def test_a_write_outside_an_array_is_seen(arguments: Arguments, offset: int) -> None:
    first, _, output = arguments.all
    np.add(first, 1, out=output)
    around(output, offset)[...] = 1.0
    assert arguments.judge()[1] == "wrote outside its output"
    arguments.restore()
    np.add(first, 1, out=output)
    around(first, offset)[...] = 1.0
    assert arguments.judge()[1] == "wrote to input 0, or next to it"
    arguments.restore()
    np.add(first, 1, out=output)
    assert arguments.judge() == (0.0, "")


def test_a_write_to_an_input_is_seen_and_undone(arguments: Arguments) -> None:
    first, _, output = arguments.all
    np.add(first, 1, out=output)
    first[1, 2] = -0.0  # equal in value to nothing that was there; so is -0.0 to 0.0
    first[0, 0] = -0.0
    assert arguments.judge() == (0.0, "wrote to input 0, or next to it")
    arguments.restore()
    assert first.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_what_is_read_beyond_an_array_is_not_a_number(arguments: Arguments) -> None:
    first, _, output = arguments.all
    assert np.isnan(around(first, -1)).all()
    assert np.isnan(around(output, 6)).all()


def test_a_rotation_is_larger_than_the_cache_and_holds_the_same_inputs(arguments: Arguments) -> None:
    once = sum(array.nbytes for array in arguments.all)
    rotation = arguments.rotation(cache_bytes=10 * once)
    turns = [next(rotation) for _ in range(21)]
    assert len({turn[0].ctypes.data for turn in turns[:20]}) == 20
    assert turns[20][0] is turns[0][0]
    for first, _, _ in turns:
        np.testing.assert_array_equal(first, arguments.all[0])
