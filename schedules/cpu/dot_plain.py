"""Dot products of words by plain arithmetic, of one value of each word at a time."""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.dot import Dot, Value, constant, dtype_of


class Singles(Dot):
    """One product a lane, by plain arithmetic."""

    name = "mul"
    parts = 4
    dtype = "int32"

    def left(self, word: Value, part: int) -> Value:
        return (word >> constant(8 * part, word)) & constant(0xFF, word)

    def right(self, word: Value, part: int) -> Value:
        return (word << constant(24 - 8 * part, word)) >> constant(24, word)

    def add(self, total: Value, left: Value, right: Value) -> Value:
        return total + left * right


class Floats(Dot):
    """One product of float32 a lane: bfloat16 are the upper halves of those."""

    name = "fma"
    parts = 2
    dtype = "float32"

    def left(self, word: Value, part: int) -> Value:
        return word & constant(-0x10000, word) if part else word << constant(16, word)

    def right(self, word: Value, part: int) -> Value:
        return self.left(word, part)

    def add(self, total: Value, left: Value, right: Value) -> Value:
        a, b = (T.reinterpret(dtype_of(total), word) for word in (left, right))
        return total + a * b
