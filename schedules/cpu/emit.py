"""Small words for writing loops over vectors of floats: extents, lanes, masks, branches.

An `Extent` is a Python int where the shape is known and a TIR expression where it is not;
the helpers fold ints at once, so that a known shape leaves no trace of the general case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from tvm import DataType, tirx
from tvm.tirx.script.builder import ir as T

Extent: TypeAlias = "int | tirx.Expr"


@dataclass(frozen=True)
class Span:
    """`count` things from `start` on."""

    start: Extent
    count: Extent


def ceildiv(a: Extent, b: int) -> Extent:
    return -(-a // b) if isinstance(a, int) else tirx.ceildiv(a, b)


def minimum(a: Extent, b: Extent) -> Extent:
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.min(a, b)


def divides(step: int, extent: Extent) -> bool:
    """True if `step` is known to divide `extent`."""
    return isinstance(extent, int) and extent % step == 0


ALL = 0  # a chunk size that stands for the whole


def chunks(whole: Span, size: int) -> Extent:
    """Count the chunks of `size` in `whole`."""
    return 1 if size == ALL else ceildiv(whole.count, size)


def chunk(whole: Span, index: Extent, size: int) -> Span:
    """Return the `index`-th chunk of `size` of `whole`, cut short at its end."""
    if size == ALL or (isinstance(whole.count, int) and size >= whole.count):
        return whole
    start = whole.start + index * size
    if divides(size, whole.count):
        return Span(start, size)
    return Span(start, minimum(size, whole.count - index * size))


def share(whole: Span, index: Extent, parts: int) -> Span:
    """Return the `index`-th of `parts` nearly equal parts of `whole`; the last may be short or empty."""
    if parts == 1:
        return whole
    each = ceildiv(whole.count, parts)
    if divides(parts, whole.count):
        return Span(index * each, each)
    rest = tirx.max(whole.count - index * each, 0)
    return Span(index * each, minimum(each, rest))


def lanes(start: Extent, width: int) -> tirx.Expr:
    """Return the index of `width` neighbouring elements."""
    return tirx.Ramp(start, 1, width) if width > 1 else start


def broadcast(value: tirx.Expr, width: int) -> tirx.Expr:
    return tirx.Broadcast(value, width) if width > 1 else value


def zeros(dtype: str, width: int) -> tirx.Expr:
    return broadcast(tirx.const(0, dtype), width)


def registers(shape: tuple[int, ...], dtype: str) -> Any:
    """Allocate a small array that the compiler keeps in registers.

    TVM would take any array of scope "local" from the heap on a CPU; the annotation makes it
    a stack variable, which LLVM splits into registers where all its indices are constants.
    """
    return T.alloc_buffer(shape, dtype, scope="local", annotations={"disable_lower_builtin": True})


def computed(value: Extent) -> Extent:
    """Return an int32 so that it is computed here, once, however often it is used.

    It goes through a register: the simplifier would put the value of a `T.bind` back in each
    place of its use, and divisions by unknown extents grow with each step of an address.
    """
    if isinstance(value, int):
        return value
    register = registers((1,), "int32")
    T.buffer_store(register, value, [0])
    return register[0]


def load(buffer: Any, indices: list[Extent], start: Extent, width: int, limit: Extent | None) -> tirx.Expr:
    """Load `width` elements from `start` of the last axis; those from `limit` on are not read.

    Their lanes hold what they will, differently in each use: LLVM has no value for them.
    """
    at = (*indices, lanes(start, width))
    if limit is None:
        return buffer[at]
    mask = T.get_active_lane_mask(f"boolx{width}", start, limit)
    return T.masked_load(f"{buffer.dtype}x{width}", buffer, *at, mask)


def load_or_zeros(buffer: Any, indices: list[Extent], start: Extent, width: int, limit: Extent) -> tirx.Expr:
    """Load `width` elements from `start` of the last axis, and zeros from `limit` on."""
    mask = T.get_active_lane_mask(f"boolx{width}", start, limit)
    value = T.masked_load(f"{buffer.dtype}x{width}", buffer, *indices, lanes(start, width), mask)
    return tirx.Select(mask, value, zeros(buffer.dtype, width))


def store(
    buffer: Any, value: tirx.Expr, indices: list[Extent], start: Extent, width: int, limit: Extent | None
) -> None:
    """Store `width` elements at `start` of the last axis; those from `limit` on are left alone."""
    if limit is None:
        T.buffer_store(buffer, value, [*indices, lanes(start, width)])
        return
    if DataType(buffer.dtype).bits < 32:
        _store_singly(buffer, value, indices, start, width, limit)
        return
    mask = T.get_active_lane_mask(f"boolx{width}", start, limit)
    T.evaluate(T.masked_store(buffer, value, *indices, lanes(start, width), mask))


def _store_singly(
    buffer: Any, value: tirx.Expr, indices: list[Extent], start: Extent, width: int, limit: Extent
) -> None:
    """Store elements of fewer than 32 bits one by one.

    LLVM 22 makes of a masked store of one element that was cast from 32 bits a store of those.
    """
    elements = registers((width,), buffer.dtype)
    T.buffer_store(elements, value, [lanes(0, width)])
    with T.serial(minimum(tirx.max(limit - start, 0), width)) as i:
        T.buffer_store(buffer, elements[i], [*indices, start + i])


def transpose(rows: list[tirx.Expr], dtype: str) -> list[tirx.Expr]:
    """Return the columns of a square of vectors, in registers.

    In each step pairs of vectors exchange blocks, of one element at first, then of 2, 4 and so
    on (K. Eklundh, A Fast Computer Method for Matrix Transposing, IEEE ToC C-21(7), 1972).
    """
    width = len(rows)
    steps = width.bit_length() - 1
    squares = registers((steps + 1, width, width), dtype)
    for i, row in enumerate(rows):
        T.buffer_store(squares, row, [0, i, lanes(0, width)])
    for step in range(steps):
        block = 1 << step
        for i in range(width):
            first, second = i & ~block, i | block
            pair = [squares[step, each, lanes(0, width)] for each in (first, second)]
            # of each block pair one vector takes the first blocks, the other the second ones
            offset = i & block
            picked = [
                lane + offset if not lane & block else width + (lane & ~block) + offset
                for lane in range(width)
            ]
            value = tirx.Shuffle(pair, [tirx.const(lane, "int32") for lane in picked])
            T.buffer_store(squares, value, [step + 1, i, lanes(0, width)])
    return [squares[steps, i, lanes(0, width)] for i in range(width)]


def branch(condition: tirx.Expr, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
    with T.If(condition):
        with T.Then():
            then()
        with T.Else():
            otherwise()


def refuse_overlap(output: Any, inputs: dict[str, Any]) -> None:
    """Make the kernel fail where `output` shares memory with an input, before it writes any."""
    begin, end = _bounds(output)
    for name, buffer in inputs.items():
        other_begin, other_end = _bounds(buffer)
        apart = tirx.any(end <= other_begin, other_end <= begin)
        with T.Assert(
            apart, f"argument 'out' shares memory with '{name}'; expected memory of its own", "ValueError"
        ):
            pass


def _bounds(buffer: Any) -> tuple[tirx.Expr, tirx.Expr]:
    size: Extent = tirx.const(DataType(buffer.dtype).itemsize, "int64")
    for extent in buffer.shape:
        size = size * tirx.Cast("int64", extent)
    begin = tirx.reinterpret("int64", tirx.address_of(buffer[tuple(0 for _ in buffer.shape)]))
    return begin, begin + size
