"""The fewest kernels within a regret, against all sets tried one by one."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tvmops.tuner import regret
from tvmops.tuner.regret import at_most, fewest, losses

SECONDS = st.one_of(st.floats(1e-6, 1e-2), st.just(float("inf")))


@st.composite
def matrices(draw: st.DrawFn) -> NDArray[np.float64]:
    rows, columns = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    times = np.array(draw(st.lists(SECONDS, min_size=rows * columns, max_size=rows * columns)))
    times = times.reshape(rows, columns)
    times[draw(st.integers(0, rows - 1))] = draw(st.floats(1e-6, 1e-2))  # some kernel runs everywhere
    return times


def covers(times: NDArray[np.float64], rows: list[int], allowed: float) -> bool:
    """As `fewest` counts: times that differ in their last bit are not equal, where nothing is allowed."""
    return bool((losses(times)[rows].min(axis=0) <= allowed).all())


def mean_loss(times: NDArray[np.float64], rows: list[int]) -> float:
    return float((times[rows].min(axis=0) / times.min(axis=0) - 1).mean())


@settings(max_examples=150, deadline=None)
@given(times=matrices(), allowed=st.sampled_from([0.0, 0.05, 0.5]))
def test_no_smaller_set_covers_and_none_as_small_loses_less(
    times: NDArray[np.float64], allowed: float
) -> None:
    chosen = fewest(times, allowed)
    assert covers(times, chosen, allowed)
    assert chosen == sorted(set(chosen))
    for size in range(1, len(chosen)):
        assert not any(covers(times, list(rows), allowed) for rows in combinations(range(len(times)), size))
    same_size = [list(rows) for rows in combinations(range(len(times)), len(chosen))]
    least = min(mean_loss(times, rows) for rows in same_size if covers(times, rows, allowed))
    assert mean_loss(times, chosen) <= max(least, allowed) + 1e-9


@settings(max_examples=50, deadline=None)
@given(times=matrices())
def test_the_greedy_answer_covers_too(times: NDArray[np.float64]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regret, "_MOST_SETS", 0)
        assert covers(times, fewest(times, 0.05), 0.05)


def test_one_kernel_serves_where_it_loses_little() -> None:
    times = np.array([[1.0, 9.0, 9.0], [9.0, 1.0, 9.0], [9.0, 9.0, 1.0], [1.04, 1.04, 1.04]])
    assert fewest(times, 0.05) == [3]
    assert fewest(times, 0.03) == [0, 1, 2]


def test_greed_is_put_right() -> None:
    """The widest row first would take three rows; two do."""
    wide = [1, 1, 1, 1, 9, 9]
    left, right = [1, 9, 1, 9, 1, 9], [9, 1, 9, 1, 9, 1]
    assert fewest(np.array([wide, left, right], float), 0.05) == [1, 2]


def test_of_equal_sets_the_faster_one() -> None:
    times = np.array([[1.0, 1.04], [1.0, 1.01], [1.05, 1.0]])
    assert fewest(times, 0.05) == [1]


def test_more_shapes_than_a_machine_word_has_bits() -> None:
    times = np.full((80, 80), 2.0)
    np.fill_diagonal(times, 1.0)
    assert fewest(times, 0.05) == list(range(80))


def test_a_shape_without_any_time_is_refused() -> None:
    with pytest.raises(ValueError, match="no time at all"):
        losses(np.array([[1.0, np.inf]]))


def mean_square(times: NDArray[np.float64], rows: list[int]) -> float:
    return float(((times[rows].min(axis=0) / times.min(axis=0) - 1) ** 2).mean())


@settings(max_examples=100, deadline=None)
@given(times=matrices(), most=st.integers(1, 7))
def test_so_many_kernels_lose_less_than_with_one_of_them_exchanged(
    times: NDArray[np.float64], most: int
) -> None:
    times = np.minimum(times, 50 * times.min(axis=0))  # all run everywhere
    found = at_most(times, 0.05, most)
    assert len(found) <= most
    if covers(times, found, 0.05):
        return
    for at in range(len(found)):
        for row in range(len(times)):
            rows = [*found[:at], row, *found[at + 1 :]]
            assert mean_square(times, found) <= mean_square(times, rows) * (1 + 1e-9)


def test_one_disturbed_column_does_not_spoil_the_others() -> None:
    times = np.array([[1.0, 1.0, 2.0, 9.0], [2.0, 2.0, 1.0, 9.0], [1.5, 1.5, 1.5, 1.0]])
    assert at_most(times, 0.05, 2) == [0, 2]
    times[:, 3] = [9.0, 1.0, 1.0]
    assert at_most(times, 0.05, 2) == [0, 1]


def test_where_no_few_kernels_run_everywhere_there_are_more() -> None:
    times = np.full((3, 3), np.inf)
    np.fill_diagonal(times, 1.0)
    assert at_most(times, 0.05, 2) == [0, 1, 2]
