"""Stores past the caches: for results larger than those, whose lines need not be read first.

The processor gathers neighbouring stores to whole cache lines. They take aligned vectors, so a
row begins with a short one, and are made visible to other threads by a fence at a task's end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, computed
from tvmops.signatures.dtypes import bits_of

_LLVM_TYPES = {"float32": "float", "uint16": "i16"}


@contextmanager
def streaming(dtype: str, width: int) -> Iterator[None]:
    """Let the statements inside call `stream` for vectors of `width` elements of `dtype`, as stored."""
    vector = f"<{width} x {_LLVM_TYPES[dtype]}>"
    function = f"""
define linkonce_odr hidden i32 @{_name(dtype, width)}(ptr %to, {vector} %value) alwaysinline nounwind {{
  store {vector} %value, ptr %to, align {_bytes(dtype, width)}, !nontemporal !0
  ret i32 0
}}
!0 = !{{i32 1}}
"""
    with T.attr(0, "pragma_import_llvm", function):
        yield


def stream(buffer: Any, value: tirx.Expr, indices: list[Extent], start: Extent, width: int) -> None:
    """Store `width` elements at `start` of the last axis, which lie at a multiple of their size."""
    address = tirx.address_of(buffer[(*indices, start)])
    T.evaluate(tirx.call_extern("int32", _name(buffer.dtype, width), address, value))


def fence() -> None:
    T.evaluate(tirx.call_llvm_intrin("void", "llvm.x86.sse.sfence"))


def before_aligned(buffer: Any, indices: list[Extent], width: int) -> Extent:
    """Count the elements of a row before the first one at which a vector may be streamed."""
    address = tirx.reinterpret("int64", tirx.address_of(buffer[(*indices, 0)]))
    vector, element = _bytes(str(buffer.dtype), width), _bytes(str(buffer.dtype), 1)
    return computed(tirx.Cast("int32", (-address & (vector - 1)) // element))


def _name(dtype: str, width: int) -> str:
    return f"tvmops_stream_{dtype}x{width}"


def _bytes(dtype: str, width: int) -> int:
    return bits_of(dtype) // 8 * width
