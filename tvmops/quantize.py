"""Quantisation: from floats to the integers, scales and zero points that the integer ops take.

    weight = quantize(w, dtype="int4", axis=1, group=128)     # w is (n, k)
    limits = calibrate(batches, method="entropy")
    x = quantize(batch, dtype="uint8", symmetric=False, limits=limits)

An integer q stands for scale * (q - zero_point). NumPy alone is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvmops.errors import ArgumentError

Array = NDArray[Any]

# The least and the greatest value of each dtype.
LIMITS: dict[str, tuple[int, int]] = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int4": (-8, 7),
    "uint4": (0, 15),
}
METHODS = ("minmax", "percentile", "entropy")
_SMALLEST_SCALE = 2.0**-126  # so that dividing by it is safe
_BINS = 2048  # of a histogram, and
_LEVELS = 128  # of the integers that stand for it, as in TensorRT
_NEVER = 1e-9  # a probability, for a bin that clipped values alone fall on


@dataclass(frozen=True, eq=False)
class Quantized:
    """Integers and what they stand for.

    Attributes
    ----------
    values
        int8 or uint8, of `shape`; of int4 and uint4 two to a byte (see `pack_int4`).
    scales
        float32: one for all, of shape (); one a channel, of shape (channels,); or one a group, of
        `shape` with the size along `axis` replaced by the number of groups.
    zero_points
        int32, of the shape of `scales`; all 0 where symmetric.
    dtype
        int8, uint8, int4 or uint4.
    shape
        Of the floats.
    axis
        Of the channels, or the one that is divided in groups; None for one scale for all.
    group
        How many neighbours along `axis` share a scale; None where a whole channel does.
    """

    values: Array
    scales: NDArray[np.float32]
    zero_points: NDArray[np.int32]
    dtype: str
    shape: tuple[int, ...]
    axis: int | None = None
    group: int | None = None

    @property
    def is_symmetric(self) -> bool:
        return not self.zero_points.any()

    @property
    def integers(self) -> Array:
        """The integers one by one, int8 or uint8."""
        if self.dtype not in ("int4", "uint4"):
            return self.values
        return unpack_int4(self.values, self.dtype, self.shape[-1])

    def dequantized(self) -> NDArray[np.float32]:
        """Return the floats that these integers stand for."""
        scales, zeros = (
            _spread(each, self.shape, self.axis, self.group) for each in (self.scales, self.zero_points)
        )
        floats: NDArray[np.float32] = scales * (self.integers.astype(np.int32) - zeros).astype(np.float32)
        return floats


def quantize(
    x: Any,
    dtype: str = "int8",
    axis: int | None = None,
    group: int | None = None,
    symmetric: bool | None = None,
    limits: tuple[float, float] | None = None,
) -> Quantized:
    """Return `x` as integers, each the nearest, ties to even.

    Each is off by half a step (its scale) at most, where `limits` do not clip it.

    Parameters
    ----------
    x
        Floats, all finite.
    dtype
        int8, uint8, int4 or uint4; the last two need a last axis of even size.
    axis
        One scale for each index along it; None for one in all.
    group
        With `axis`: one scale for so many neighbours along it and each index of the other axes.
    symmetric
        Zero points are 0, and the range is as wide on both sides of it. By default so for
        the signed dtypes, the only ones that can be.
    limits
        The least and the greatest float to tell apart, as `calibrate` returns them; those of
        `x` by default. What lies beyond is clipped.

    Raises
    ------
    ArgumentError
        An argument can't be; the message names it.
    """
    x = np.asarray(x, np.float32)
    symmetric = dtype in ("int8", "int4") if symmetric is None else symmetric
    axis = _checked(x, dtype, axis, group, symmetric)
    low, high = _ends(x, axis, group) if limits is None else _as_ends(x, limits, axis, group)
    scales, zeros = _parameters(low, high, dtype, symmetric)
    steps = x / _spread(scales, x.shape, axis, group)
    integers = np.rint(steps) + _spread(zeros, x.shape, axis, group)
    least, greatest = LIMITS[dtype]
    if symmetric:
        least = -greatest
    values = np.clip(integers, least, greatest).astype(np.int8 if least < 0 else np.uint8)
    if dtype in ("int4", "uint4"):
        values = pack_int4(values)
    return Quantized(values, scales, zeros, dtype, x.shape, axis, group)


def calibrate(
    batches: Any, method: str = "minmax", percentile: float = 99.99, bins: int = _BINS
) -> tuple[float, float]:
    """Return the range of floats that integers should tell apart, from samples of them.

    Parameters
    ----------
    batches
        An array, or several, such as a layer's inputs for some of a model's.
    method
        "minmax": all of it. "percentile": all but the outermost (100 - `percentile`) percent
        by size. "entropy": the range whose 128 levels lose the least information, by the
        Kullback-Leibler divergence of histograms (S. Migacz, 8-bit Inference with TensorRT,
        GTC 2017). The last two cut sizes: the range is as wide on both sides of 0, and begins
        at 0 where no sample is negative.
    bins
        Of the histogram of sizes, for "entropy".

    Raises
    ------
    ArgumentError
        There are no samples, one is not finite, or an argument can't be.
    """
    arrays = [batches] if isinstance(batches, np.ndarray) else list(batches)
    samples = [np.asarray(array, np.float32).ravel() for array in arrays]
    samples = [array for array in samples if array.size]
    if not samples or not all(np.isfinite(array).all() for array in samples):
        raise ArgumentError(argument="batches", value="empty or not finite", expected="finite samples")
    low, high = (float(end(end(array) for array in samples)) for end in (min, max))
    if method == "minmax":
        return min(low, 0.0), max(high, 0.0)
    most = max(-low, high)
    if method == "percentile":
        if not 0 < percentile <= 100:
            raise ArgumentError(argument="percentile", value=percentile, expected="above 0, at most 100")
        most = float(np.percentile(np.abs(np.concatenate(samples)), percentile))
    elif method == "entropy":
        if bins < _LEVELS:
            raise ArgumentError(argument="bins", value=bins, expected=f"at least {_LEVELS}")
        most = _entropy_limit(samples, most, bins)
    else:
        raise ArgumentError(argument="method", value=method, expected="one of " + ", ".join(METHODS))
    return (0.0 if low >= 0 else -most), most


def pack_int4(values: Array) -> NDArray[np.uint8]:
    """Return two values a byte along the last axis: the even ones in the low bits.

    Raises
    ------
    ArgumentError
        The last axis has an odd size, or a value is neither an int4 nor a uint4.
    """
    if values.ndim == 0 or values.shape[-1] % 2:
        raise ArgumentError(
            argument="values", value=f"of shape {values.shape}", expected="a last axis of even size"
        )
    if values.size and not (values.min() >= -8 and values.max() <= (7 if values.min() < 0 else 15)):
        value = f"from {values.min()} to {values.max()}"
        raise ArgumentError(argument="values", value=value, expected="-8 to 7, or 0 to 15")
    bits: Array = values.astype(np.uint8) & 15
    packed: NDArray[np.uint8] = bits[..., 0::2] | bits[..., 1::2] << 4
    return packed


def unpack_int4(packed: Array, dtype: str = "int4", size: int | None = None) -> Array:
    """Return the values of `pack_int4`, as int8 or, for dtype uint4, as uint8."""
    pairs = np.stack([packed & 15, packed >> 4], axis=-1)
    bits: Array = pairs.reshape(*packed.shape[:-1], -1)[..., :size]
    return ((bits ^ 8).astype(np.int8) - 8) if dtype == "int4" else bits


def _checked(x: Array, dtype: str, axis: int | None, group: int | None, symmetric: bool) -> int | None:
    """Raise where an argument can't be; return `axis` counted from the front."""
    if dtype not in LIMITS:
        raise ArgumentError(argument="dtype", value=dtype, expected="one of " + ", ".join(LIMITS))
    if symmetric and LIMITS[dtype][0] == 0:
        raise ArgumentError(argument="symmetric", value=True, expected=f"False for {dtype}")
    if axis is not None and not -x.ndim <= axis < x.ndim:
        raise ArgumentError(argument="axis", value=axis, expected=f"an axis of an array of shape {x.shape}")
    if group is not None and (axis is None or group < 1):
        raise ArgumentError(argument="group", value=group, expected="at least 1, and an axis")
    if x.size == 0 or not np.isfinite(x).all():
        raise ArgumentError(argument="x", value="empty or not finite", expected="finite floats")
    return None if axis is None else axis % x.ndim


def _ends(x: Array, axis: int | None, group: int | None) -> tuple[Array, Array]:
    """Return the least and the greatest value for each scale."""
    if axis is None:
        return x.min(), x.max()
    if group is None:
        others = tuple(other for other in range(x.ndim) if other != axis)
        return x.min(axis=others), x.max(axis=others)
    starts = np.arange(0, x.shape[axis], group)
    return np.minimum.reduceat(x, starts, axis), np.maximum.reduceat(x, starts, axis)


def _as_ends(
    x: Array, limits: tuple[float, float], axis: int | None, group: int | None
) -> tuple[Array, Array]:
    if not (np.isfinite(limits).all() and limits[0] <= limits[1]):
        raise ArgumentError(argument="limits", value=limits, expected="two finite numbers, the lesser first")
    low, high = _ends(x, axis, group)
    return np.full_like(low, limits[0]), np.full_like(high, limits[1])


def _parameters(
    low: Array, high: Array, dtype: str, symmetric: bool
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return scales and zero points; 0 is always among the floats that are exact."""
    least, greatest = LIMITS[dtype]
    low, high = (np.asarray(end, np.float64) for end in (np.minimum(low, 0), np.maximum(high, 0)))
    steps = greatest if symmetric else greatest - least
    span = np.maximum(-low, high) if symmetric else high - low
    scales = np.maximum(span / steps, _SMALLEST_SCALE).astype(np.float32)
    scales = np.where(span > 0, scales, np.float32(1))
    if symmetric:
        return scales, np.zeros(scales.shape, np.int32)
    zeros = np.clip(np.rint(least - low / scales), least, greatest)
    return scales, zeros.astype(np.int32)


def _spread(each: Array, shape: tuple[int, ...], axis: int | None, group: int | None) -> Array:
    """Return scales or zero points in a shape that broadcasts to `shape`."""
    if axis is None:
        return each
    if group is None:
        return each.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    every = np.repeat(each, group, axis)
    return np.take(every, np.arange(shape[axis]), axis)


def _entropy_limit(samples: Iterable[Array], most: float, bins: int) -> float:
    """Return the size at which to cut, of the candidates at the edges of the bins."""
    if most == 0:
        return 0.0
    counts = np.zeros(bins)
    for array in samples:
        counts += np.histogram(np.abs(array), bins=bins, range=(0, most))[0]
    losses = [_divergence(counts, kept) for kept in range(_LEVELS, bins + 1)]
    best = _LEVELS + int(np.argmin(losses))
    return most * best / bins


def _divergence(counts: Array, kept: int) -> float:
    """Return how much is lost by the levels over the first `kept` bins, with the rest clipped to the last."""
    true = counts[:kept].copy()
    filled = true > 0
    level = np.arange(kept) * _LEVELS // kept
    sums = np.bincount(level, true, _LEVELS)
    shared = np.bincount(level, filled, _LEVELS)
    kept_counts = np.where(filled, sums[level] / np.maximum(shared[level], 1), 0.0)
    true[-1] += counts[kept:].sum()
    total, kept_total = true.sum(), kept_counts.sum()
    if kept_total == 0:
        return float(np.inf)
    p, q = true / total, np.maximum(kept_counts / kept_total, _NEVER)
    both = p > 0
    return float((p[both] * np.log(p[both] / q[both])).sum())
