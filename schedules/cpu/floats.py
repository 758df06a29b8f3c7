"""Vectors of float32 from arrays of float32 or bfloat16, and back.

Arrays of bfloat16 hold bits, as `signatures.dtypes` says: they are widened where they are
loaded and rounded to nearest, ties to even, where they are stored. Between is float32.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from tvm import DataType, tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, broadcast, load, store
from tvmops.signatures.dtypes import BFLOAT16, bits_of, stored

Value: TypeAlias = "tirx.Expr"

DTYPES = ("float32", BFLOAT16)  # that templates for rows and attention take
_BITS = stored(BFLOAT16)


def argument(handle: Any, shape: tuple[Extent, ...], dtype: str) -> Any:
    """Declare the array behind `handle`; it may start at any element."""
    return T.match_buffer(handle, shape, stored(dtype), align=bits_of(dtype) // 8)


def load_floats(buffer: Any, indices: list[Extent], start: Extent, width: int, limit: Extent | None) -> Value:
    """Load `width` elements from `start` of the last axis; those from `limit` on are not read."""
    value = load(buffer, indices, start, width, limit)
    return widened(value, width) if buffer.dtype == _BITS else value


def store_floats(
    buffer: Any, value: Value, indices: list[Extent], start: Extent, width: int, limit: Extent | None
) -> None:
    """Store `width` elements at `start` of the last axis; those from `limit` on are left alone."""
    store(buffer, as_stored(buffer, value, width), indices, start, width, limit)


def as_stored(buffer: Any, value: Value, width: int) -> Value:
    """Return float32 values as `buffer` holds them."""
    return rounded(T.bind(value), width) if buffer.dtype == _BITS else value


def widened(bits: Value, width: int) -> Value:
    """Return bfloat16, given as bits, as float32."""
    words = T.Cast(_type("int32", width), bits)
    return T.reinterpret(_type("float32", width), words << _all(16, width))


def rounded(value: Value, width: int) -> Value:
    """Return the bits of float32 values rounded to bfloat16: nearest, ties to even, NaN kept."""
    bits = T.bind(T.reinterpret(_type("int32", width), value))
    odd = (bits >> _all(16, width)) & _all(1, width)
    nearest = bits + _all(0x7FFF, width) + odd
    quiet = bits | _all(0x400000, width)  # rounding the bits of a NaN could make it infinite
    size = bits & _all(0x7FFFFFFF, width)
    chosen = tirx.Select(size > _all(0x7F800000, width), quiet, nearest)
    return T.Cast(_type("uint16", width), chosen >> _all(16, width))


def _all(value: int, width: int) -> Value:
    return broadcast(tirx.const(value, "int32"), width)


def _type(scalar: str, width: int) -> str:
    return str(DataType(scalar).with_lanes(width))
