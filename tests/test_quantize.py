"""Quantisation: what a round trip may lose, and what the calibrations cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tvmops
from tvmops.errors import ArgumentError
from tvmops.quantize import LIMITS, calibrate, pack_int4, quantize, unpack_int4

DTYPES = list(LIMITS)


def draw(seed: int, shape: tuple[int, ...], scale: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * scale + rng.uniform(-scale, scale)).astype("float32")


def steps_of(quantized: tvmops.quantize.Quantized, axis: int | None, group: int | None) -> np.ndarray:
    """Return the scale of each element, by the plainest means."""
    found = np.empty(quantized.shape)
    for at in np.ndindex(*quantized.shape):
        if axis is None:
            found[at] = quantized.scales
        elif group is None:
            found[at] = quantized.scales[at[axis]]
        else:
            found[at] = quantized.scales[(*at[:axis], at[axis] // group, *at[axis + 1 :])]
    return found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 6), st.integers(1, 12).map(lambda half: 2 * half)),
    st.sampled_from(DTYPES),
    st.sampled_from([None, 0, 1, -1]),
    st.sampled_from([None, 1, 3, 8]),
    st.sampled_from([1e-30, 1e-3, 1.0, 1e6, 1e30]),
    st.integers(0, 2**16),
)
def test_a_round_trip_is_off_by_half_a_step_at_most(
    shape: tuple[int, int], dtype: str, axis: int | None, group: int | None, scale: float, seed: int
) -> None:
    group = None if axis is None else group
    x = draw(seed, shape, scale)
    quantized = quantize(x, dtype, axis, group)
    steps = steps_of(quantized, None if axis is None else axis % 2, group)
    error = np.abs(quantized.dequantized().astype("float64") - x)
    assert (error <= steps * (0.5 + 1e-4)).all()
    least, greatest = LIMITS[dtype]
    assert quantized.integers.min() >= least
    assert quantized.integers.max() <= greatest
    assert quantized.is_symmetric == (not quantized.zero_points.any())
    assert quantized.scales.shape == quantized.zero_points.shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_is_exact(dtype: str) -> None:
    for x in (np.array([0.0, 5.0]), np.array([-3.0, 0.0]), np.array([2.0, 0.0]), np.zeros(2)):
        assert quantize(x, dtype).dequantized()[x == 0].tolist() == [0.0] * int((x == 0).sum())


def test_a_symmetric_range_is_as_wide_on_both_sides() -> None:
    quantized = quantize(np.array([-1.0, 0.5]), "int8")
    assert quantized.integers.tolist() == [-127, 64]
    assert quantized.zero_points == 0
    assert quantize(np.array([-1.0, 1.0]), "int4").integers.tolist() == [-7, 7]


def test_asymmetric_ranges_use_all_integers() -> None:
    quantized = quantize(np.array([-1.0, 3.0]), "int8", symmetric=False)
    assert quantized.integers.tolist() == [-128, 127]
    assert quantized.zero_points == -64


def test_channels_and_groups_do_not_disturb_each_other() -> None:
    x = np.array([[1.0, 2.0, 300.0, 400.0], [0.1, 0.2, 0.3, 0.4]], "float32")
    assert quantize(x, axis=0).scales.tolist() == pytest.approx([400 / 127, 0.4 / 127])
    grouped = quantize(x, axis=1, group=2)
    np.testing.assert_allclose(grouped.scales * 127, [[2, 400], [0.2, 0.4]], rtol=1e-6)
    uneven = quantize(x, axis=1, group=3)
    assert uneven.scales.shape == (2, 2)
    assert uneven.dequantized().shape == x.shape


def test_limits_clip() -> None:
    quantized = quantize(np.array([-9.0, 0.5, 9.0]), "int8", limits=(-1.0, 1.0))
    assert quantized.integers.tolist() == [-127, 64, 127]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(0, 9), st.sampled_from(["int4", "uint4"]), st.integers(0, 999))
def test_two_values_share_a_byte(rows: int, pairs: int, dtype: str, seed: int) -> None:
    low, high = LIMITS[dtype]
    values = np.random.default_rng(seed).integers(low, high + 1, (rows, 2 * pairs))
    packed = pack_int4(values)
    assert packed.shape == (rows, pairs)
    assert packed.dtype == np.uint8
    assert (unpack_int4(packed, dtype) == values).all()


def test_the_first_of_two_is_in_the_low_bits() -> None:
    assert pack_int4(np.array([1, -2])).tolist() == [0xE1]


def test_minmax_holds_zero() -> None:
    assert calibrate([np.array([2.0, 3.0]), np.array([1.0])]) == (0.0, 3.0)
    assert calibrate(np.array([-2.0, -1.0])) == (-2.0, 0.0)


def test_percentile_passes_over_outliers() -> None:
    x = np.concatenate([np.linspace(-1, 1, 10001), [1000.0]]).astype("float32")
    low, high = calibrate(x, "percentile", percentile=99.9)
    assert -low == high
    assert 0.99 < high <= 1.0
    assert calibrate(x, "percentile", percentile=100)[1] == 1000.0
    assert calibrate(np.abs(x), "percentile", percentile=99)[0] == 0.0


def test_entropy_cuts_a_long_tail_and_keeps_a_flat_one() -> None:
    rng = np.random.default_rng(0)
    peaked = np.concatenate([rng.standard_normal(200_000), [40.0]]).astype("float32")
    low, high = calibrate([peaked[:1000], peaked[1000:]], "entropy")
    assert -low == high
    assert 2.0 < high < 10.0
    flat = rng.uniform(-1, 1, 200_000).astype("float32")
    assert calibrate(flat, "entropy")[1] > 0.95
    assert calibrate(np.zeros(5, "float32"), "entropy") == (0.0, 0.0)


def test_entropy_beats_minmax_on_a_long_tail() -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.standard_normal(100_000), [100.0, -90.0]]).astype("float32")
    body = np.abs(x) < 5
    errors = {}
    for method in ("minmax", "entropy"):
        back = quantize(x, "int8", limits=calibrate(x, method)).dequantized()
        errors[method] = np.abs(back - x)[body].mean()
    assert errors["entropy"] < errors["minmax"] / 5


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"dtype": "int2"}, "dtype"),
        ({"dtype": "uint8", "symmetric": True}, "symmetric"),
        ({"axis": 2}, "axis"),
        ({"group": 4}, "group"),
        ({"axis": 0, "group": 0}, "group"),
        ({"limits": (1.0, -1.0)}, "limits"),
        ({"limits": (0.0, np.inf)}, "limits"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], name: str) -> None:
    with pytest.raises(ArgumentError, match=f"argument '{name}'"):
        quantize(np.ones((2, 4), "float32"), **arguments)  # type: ignore[arg-type]


def test_bad_data_is_refused() -> None:
    for x in (np.array([1.0, np.nan]), np.array([np.inf]), np.zeros(0)):
        with pytest.raises(ArgumentError, match="argument 'x'"):
            quantize(x)
        with pytest.raises(ArgumentError, match="argument 'batches'"):
            calibrate(x)
    with pytest.raises(ArgumentError, match="argument 'method'"):
        calibrate(np.ones(3), "magic")
    with pytest.raises(ArgumentError, match="argument 'percentile'"):
        calibrate(np.ones(3), "percentile", percentile=0)
    with pytest.raises(ArgumentError, match="argument 'bins'"):
        calibrate(np.ones(3), "entropy", bins=10)
    with pytest.raises(ArgumentError, match="last axis of even size"):
        pack_int4(np.zeros((2, 3), int))
    with pytest.raises(ArgumentError, match="-8 to 7, or 0 to 15"):
        pack_int4(np.array([-1, 8]))


def test_it_is_part_of_the_public_face() -> None:
    assert tvmops.quantize.quantize is quantize
