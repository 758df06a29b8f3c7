"""Dot products of short integers and of bfloat16, on vectors of 32-bit words.

A word holds neighbouring values of k: four of 8 bits, or two of bfloat16. A `Dot` adds the
products of the values of two words to a 32-bit accumulator, lane by lane. Where the target has
no instruction for it, a word is split into parts, vectors of wider values, that it can multiply.

The products of integers are exact: the left values are unsigned and the right ones signed, as
`vpdpbusd` has them. (`vpmaddubsw`, which saturates, is not used.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

from tvm import DataType, tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import broadcast
from tvmops.targets import Target

Value: TypeAlias = "tirx.Expr"


class Dot(Protocol):
    """How a target multiplies words and adds up."""

    parts: ClassVar[int]  # that a word is split into
    dtype: ClassVar[str]  # of the accumulators
    llvm: ClassVar[str]  # functions in LLVM's language that `add` calls

    def left(self, word: Value, part: int) -> Value:
        """Return one part of the left operand, int32 in as many lanes as `word`."""

    def right(self, word: Value, part: int) -> Value:
        """Return one part of the right operand."""

    def add(self, total: Value, left: Value, right: Value) -> Value:
        """Return `total` + the products of one part; all have the same number of lanes."""


def integer_dot(target: Target) -> Dot:
    """Return how `target` multiplies words of four integers."""
    if {"avx512_vnni", "avx512vl"} <= set(target.needs):
        return _Vnni()
    return _Pairs() if target.arch == "x86_64" else _Singles()


def bfloat16_dot(target: Target) -> Dot:
    """Return how `target` multiplies words of two bfloat16."""
    return _Bfloat16() if "avx512_bf16" in target.needs and target.vector_bits == 512 else _Floats()


@contextmanager
def functions_of(dot: Dot) -> Iterator[None]:
    """Make the functions that `dot` calls known to the statements inside."""
    if not dot.llvm:
        yield
        return
    with T.attr(0, "pragma_import_llvm", dot.llvm):
        yield


@dataclass(frozen=True)
class _Vnni:
    """Four products a lane by one instruction (AVX-512 VNNI)."""

    parts: ClassVar[int] = 1
    dtype: ClassVar[str] = "int32"
    llvm: ClassVar[str] = ""

    def left(self, word: Value, part: int) -> Value:
        return word

    def right(self, word: Value, part: int) -> Value:
        return word

    def add(self, total: Value, left: Value, right: Value) -> Value:
        width = lanes_of(total)
        name = f"llvm.x86.avx512.vpdpbusd.{32 * width}"
        a, b = (T.reinterpret(f"int8x{4 * width}", word) for word in (left, right))
        return T.call_llvm_pure_intrin(dtype_of(total), name, total, a, b)


@dataclass(frozen=True)
class _Pairs:
    """Two products a lane, of the even and then of the odd values, by `vpmaddwd` (AVX2, AVX-512)."""

    parts: ClassVar[int] = 2
    dtype: ClassVar[str] = "int32"
    llvm: ClassVar[str] = ""

    def left(self, word: Value, part: int) -> Value:
        return (word >> constant(8 * part, word)) & constant(0x00FF00FF, word)

    def right(self, word: Value, part: int) -> Value:
        width = lanes_of(word)
        halves = T.reinterpret(f"int16x{2 * width}", word)
        eight = broadcast(tirx.const(8, "int16"), 2 * width)
        low = halves if part else halves << eight
        return T.reinterpret(dtype_of(word), low >> eight)

    def add(self, total: Value, left: Value, right: Value) -> Value:
        width = lanes_of(total)
        name = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[width]
        a, b = (T.reinterpret(f"int16x{2 * width}", word) for word in (left, right))
        return total + T.call_llvm_pure_intrin(dtype_of(total), name, a, b)


@dataclass(frozen=True)
class _Singles:
    """One product a lane, by plain arithmetic."""

    parts: ClassVar[int] = 4
    dtype: ClassVar[str] = "int32"
    llvm: ClassVar[str] = ""

    def left(self, word: Value, part: int) -> Value:
        return (word >> constant(8 * part, word)) & constant(0xFF, word)

    def right(self, word: Value, part: int) -> Value:
        return (word << constant(24 - 8 * part, word)) >> constant(24, word)

    def add(self, total: Value, left: Value, right: Value) -> Value:
        return total + left * right


@dataclass(frozen=True)
class _Bfloat16:
    """Two products a lane by `vdpbf16ps`.

    It takes denormals for zeros, and rounds the odd products' sum before the even ones'. TVM's
    own types have no bfloat16 for LLVM, hence a function in LLVM's language, which is inlined.
    """

    parts: ClassVar[int] = 1
    dtype: ClassVar[str] = "float32"
    llvm: ClassVar[str] = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define linkonce_odr hidden <16 x float> @tvmops_dpbf16ps(<16 x float> %c, <16 x i32> %a, <16 x i32> %b)
    alwaysinline nounwind {
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %d = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(
    <16 x float> %c, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %d
}
"""

    def left(self, word: Value, part: int) -> Value:
        return word

    def right(self, word: Value, part: int) -> Value:
        return word

    def add(self, total: Value, left: Value, right: Value) -> Value:
        return tirx.call_pure_extern(dtype_of(total), "tvmops_dpbf16ps", total, left, right)


@dataclass(frozen=True)
class _Floats:
    """One product of float32 a lane: bfloat16 are the upper halves of those."""

    parts: ClassVar[int] = 2
    dtype: ClassVar[str] = "float32"
    llvm: ClassVar[str] = ""

    def left(self, word: Value, part: int) -> Value:
        return word & constant(-0x10000, word) if part else word << constant(16, word)

    def right(self, word: Value, part: int) -> Value:
        return self.left(word, part)

    def add(self, total: Value, left: Value, right: Value) -> Value:
        a, b = (T.reinterpret(dtype_of(total), word) for word in (left, right))
        return total + a * b


def constant(value: int, like: Value) -> Value:
    """Return `value` in each lane of a vector like `like`."""
    return broadcast(tirx.const(value, DataType(dtype_of(like)).with_lanes(1)), lanes_of(like))


def dtype_of(value: Any) -> str:
    return str(value.ty.dtype)


def lanes_of(value: Any) -> int:
    return int(DataType(dtype_of(value)).lanes)
