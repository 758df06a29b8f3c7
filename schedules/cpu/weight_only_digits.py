"""Rows of x as integers of some digits to the base of 256, times one step for each group of k."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.ops.matmul_weight_only import MOST
from tvmops.schedules.cpu.dot import Value, constant
from tvmops.schedules.cpu.emit import Extent, broadcast, ceildiv, divides, lanes, minimum, registers, zeros
from tvmops.schedules.cpu.floats import load_floats
from tvmops.signatures.weight_groups import WeightGroups

_SMALLEST, _LARGEST = 2.0**-100, 2.0**100  # of the largest |x| of a group, for the digits to serve
_WIDTH = 8  # values of x at a time


class Digits:
    """words[digit, row, k], the lowest digit first, each from -128 to 127, and what they stand for.

    steps[row, group] has the step of each digit, and what a zero point of 1 takes off a sum.
    """

    def __init__(self, x: Any, k: Extent, layout: WeightGroups, rows: int, x_bits: str, shift: int) -> None:
        self._x, self._k, self._group = x, k, layout.group
        self._digits, self._most = int(x_bits) // 8, MOST[x_bits]
        self._zero = 1 if layout.has_zero_points else layout.zero - shift
        groups = ceildiv(k, layout.group)
        self.words = T.alloc_buffer((self._digits, rows, groups * layout.group), "int8")
        self.steps = T.alloc_buffer((rows, groups, self._digits + 1), "float32")
        self._odd = registers((1,), "int32")  # 1 where the digits do not serve

    def clear(self) -> None:
        """Begin with other rows, for which the digits serve as far as is known."""
        T.buffer_store(self._odd, tirx.const(0, "int32"), [0])

    @property
    def serve(self) -> tirx.Expr:
        """True if they stand for all values that were stored."""
        return self._odd[0] == 0

    def store(self, i: Extent, row: Extent, group: Extent) -> None:
        """Store the digits of one group of a row of x, the i-th of a tile."""
        largest, total = registers((_WIDTH,), "int32"), registers((_WIDTH,), "float32")
        T.buffer_store(largest, zeros("int32", _WIDTH), [lanes(0, _WIDTH)])
        T.buffer_store(total, zeros("float32", _WIDTH), [lanes(0, _WIDTH)])
        safe = self._largest(largest, row, group)
        self._store_words(total, safe, i, row, group)
        step = T.bind(safe / tirx.const(float(self._most), "float32"))
        for digit in range(self._digits):
            T.buffer_store(self.steps, step * tirx.const(256.0**digit, "float32"), [i, group, digit])
        summed = total[0]
        for j in range(1, _WIDTH):
            summed = summed + total[j]
        T.buffer_store(
            self.steps, summed * step * tirx.const(-float(self._zero), "float32"), [i, group, self._digits]
        )

    def _largest(self, largest: Any, row: Extent, group: Extent) -> tirx.Expr:
        """Return the largest |x| of a group, or 1 where that is 0 or digits do not serve, which is noted."""
        every = lanes(0, _WIDTH)
        with T.serial(self._group // _WIDTH) as at:  # by their bits: floats of one sign are in the same order
            bits = T.reinterpret(f"int32x{_WIDTH}", self._values(row, group, at))
            T.buffer_store(largest, tirx.max(largest[every], bits & constant(0x7FFFFFFF, bits)), [every])
        bits = largest[0]
        for j in range(1, _WIDTH):
            bits = tirx.max(bits, largest[j])
        most = T.bind(T.reinterpret("float32", bits))
        serves = tirx.any(most == 0, tirx.all(most >= _SMALLEST, most <= _LARGEST))
        with T.If(tirx.Not(serves)), T.Then():
            T.buffer_store(self._odd, tirx.const(1, "int32"), [0])
        return T.bind(tirx.Select(tirx.all(serves, most != 0), most, tirx.const(1.0, "float32")))

    def _store_words(self, total: Any, safe: tirx.Expr, i: Extent, row: Extent, group: Extent) -> None:
        """Store the digits, and add up in `total` the integers that they make."""
        every, start = lanes(0, _WIDTH), group * self._group
        inverse = T.bind(tirx.const(float(self._most), "float32") / safe)
        with T.serial(self._group // _WIDTH) as at:
            scaled = T.bind(T.nearbyint(self._values(row, group, at) * broadcast(inverse, _WIDTH)))
            T.buffer_store(total, total[every] + scaled, [every])
            rest = T.bind(T.Cast(f"int32x{_WIDTH}", scaled))
            for digit in range(self._digits):
                low = T.bind(((rest + constant(128, rest)) & constant(255, rest)) - constant(128, rest))
                place = [digit, i, lanes(start + at * _WIDTH, _WIDTH)]
                T.buffer_store(self.words, T.Cast(f"int8x{_WIDTH}", low), place)
                rest = T.bind((rest - low) >> constant(8, rest))

    def _values(self, row: Extent, group: Extent, at: Extent) -> Value:
        """Return the `at`-th vector of a group of a row of x, and zeros from k on."""
        start = group * self._group + at * _WIDTH
        if divides(self._group, self._k):
            return load_floats(self._x, [row], start, _WIDTH, None)
        return tirx.Shuffle(
            [
                tirx.if_then_else(
                    start + j < self._k,
                    load_floats(self._x, [row], minimum(start + j, self._k - 1), 1, None),
                    tirx.const(0, "float32"),
                )
                for j in range(_WIDTH)
            ],
            list(range(_WIDTH)),
        )
