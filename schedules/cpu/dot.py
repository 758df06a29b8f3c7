"""Dot products of short integers and of bfloat16, on vectors of 32-bit words.

A word holds neighbouring values of k: four of 8 bits, or two of bfloat16. A `Dot` adds the
products of the values of two words to a 32-bit accumulator, lane by lane. Where the target has
no instruction for it, a word is split into parts, vectors of wider values, that it can multiply.

A matrix instruction multiplies a square of `side` rows and words of a by one of `side` words and
columns of b in each part of a vector; its accumulators hold squares, which `untangled` makes rows
of. An instruction that multiplies by one lane of a vector wants words of several rows of a side
by side there.

The products of integers are exact: the right values are signed, and the left ones signed or not.
(`vpmaddubsw`, which saturates, is not used.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeAlias

from tvm import DataType, tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import broadcast

Value: TypeAlias = "tirx.Expr"


class Dot(ABC):
    """How a target multiplies words and adds up."""

    name: ClassVar[str]  # of the instruction
    dtype: ClassVar[str]  # of the accumulators
    parts: ClassVar[int] = 1  # that a word is split into
    side: ClassVar[int] = 1  # rows, and words of each, that are multiplied at once
    rows: ClassVar[int] = 1  # of a whose words fill a vector; of one, a word is loaded into all lanes
    is_signed: ClassVar[bool] = False  # are the left integers?
    llvm: ClassVar[str] = ""  # functions in LLVM's language that `add` calls

    def left(self, word: Value, part: int) -> Value:
        """Return one part of the left operand, int32 in as many lanes as `word`."""
        return word

    def right(self, word: Value, part: int) -> Value:
        """Return one part of the right operand."""
        return word

    @abstractmethod
    def add(self, total: Value, left: Value, right: Value) -> Value:
        """Return `total` + the products of one part; all have the same number of lanes."""


@contextmanager
def functions_of(dot: Dot) -> Iterator[None]:
    """Make the functions that `dot` calls known to the statements inside."""
    if not dot.llvm:
        yield
        return
    with T.attr(0, "pragma_import_llvm", dot.llvm):
        yield


def interleaved(words: Sequence[Value]) -> list[Value]:
    """Return words of columns, a vector for each word of k, so that those of a column are neighbours."""
    return _shuffled(
        words, lambda part, lane, side, width: (lane % side, part * width // side + lane // side)
    )


def untangled(squares: Sequence[Value]) -> list[Value]:
    """Return rows of what vectors of squares hold, the square of the first columns first."""
    return _shuffled(
        squares,
        lambda row, lane, side, width: (lane * side // width, row * width // side + lane % (width // side)),
    )


def _shuffled(vectors: Sequence[Value], source: Any) -> list[Value]:
    """Return as many vectors: lane by lane, `source` names a vector and its lane."""
    side, width = len(vectors), lanes_of(vectors[0])
    if side == 1:
        return list(vectors)
    picked = [[source(part, lane, side, width) for lane in range(width)] for part in range(side)]
    return [
        tirx.Shuffle(list(vectors), [tirx.const(which * width + lane, "int32") for which, lane in each])
        for each in picked
    ]


def lane_of(vector: Value, lane: int) -> Value:
    """Return one lane of `vector` in all of them."""
    return tirx.Shuffle([vector], [tirx.const(lane, "int32")] * lanes_of(vector))


def constant(value: int, like: Value) -> Value:
    """Return `value` in each lane of a vector like `like`."""
    return broadcast(tirx.const(value, DataType(dtype_of(like)).with_lanes(1)), lanes_of(like))


def dtype_of(value: Any) -> str:
    return str(value.ty.dtype)


def lanes_of(value: Any) -> int:
    return int(DataType(dtype_of(value)).lanes)


def bits_of(values: Value, width: int) -> Value:
    """Return short values as int32, their bits in its lowest."""
    short = DataType(dtype_of(values))
    unsigned = T.reinterpret(str(DataType(f"uint{short.bits}").with_lanes(width)), values)
    return T.Cast(f"int32x{width}" if width > 1 else "int32", unsigned)
