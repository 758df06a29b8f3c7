"""Sweeps over a row in vectors, and what its lanes come to together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, broadcast, computed, lanes, registers

Value: TypeAlias = "tirx.Expr"
Combine: TypeAlias = "Callable[[Value, Value], Value]"


@dataclass(frozen=True)
class Vector:
    """One vector of a row, and where its row ends if it may reach beyond."""

    slot: int  # of `Sweep.slots`
    start: Extent
    limit: Extent | None


class Sweep:
    """Steps of `slots` vectors of `width` lanes over a row of `cols` elements.

    Vectors of different slots are independent, so that the latency of one hides behind the
    others.
    """

    def __init__(self, cols: Extent, width: int, slots: int) -> None:
        self.cols, self.width, self.slots = cols, width, slots

    def each_from(self, head: Extent, body: Callable[[Vector], None]) -> None:
        """Emit `body` for the first `head` elements of a row, fewer than a vector, then for each vector."""
        with T.If(head != 0), T.Then():
            body(Vector(0, 0, tirx.min(head, self.cols)))
        rest = Sweep(computed(tirx.max(self.cols - head, 0)), self.width, self.slots)
        rest.each(
            lambda vector: body(
                Vector(vector.slot, head + vector.start, None if vector.limit is None else self.cols)
            )
        )

    def each(self, body: Callable[[Vector], None]) -> None:
        """Emit `body` for each vector of a row."""
        cols, width, step = self.cols, self.width, self.slots * self.width
        whole = cols // step * step
        with T.serial(cols // step) as i:
            for slot in range(self.slots):
                body(Vector(slot, i * step + slot * width, None))
        if isinstance(cols, int):
            for slot, start in enumerate(range(whole, cols, width)):
                body(Vector(slot, start, None if start + width <= cols else cols))
            return
        with T.serial((cols - whole) // width) as i:
            body(Vector(0, whole + i * width, None))
        with T.If(cols % width != 0), T.Then():
            body(Vector(0, cols // width * width, cols))

    def reduced(self, initial: float, value: Callable[[Vector], Value], combine: Combine) -> Value:
        """Return what `combine` makes of `initial` and all of a row, as a scalar.

        Lanes of `value` beyond the row must be `initial`.
        """
        totals = registers((self.slots, self.width), "float32")
        whole = lanes(0, self.width)
        for slot in range(self.slots):
            T.buffer_store(totals, broadcast(tirx.const(initial, "float32"), self.width), [slot, whole])

        def body(vector: Vector) -> None:
            total = combine(totals[vector.slot, whole], value(vector))
            T.buffer_store(totals, total, [vector.slot, whole])

        self.each(body)
        for slot in range(1, self.slots):
            T.buffer_store(totals, combine(totals[0, whole], totals[slot, whole]), [0, whole])
        return named(_fold(totals, self.width, combine))


def named(value: Value) -> Value:
    """Return a scalar that stands for `value`, which is computed here and once."""
    held = registers((1,), "float32")
    T.buffer_store(held, value, [0])
    return held[0]


def _fold(totals: Any, width: int, combine: Combine) -> Value:
    """Return what `combine` makes of all lanes, halving their number in each step."""
    while width > 1:
        width //= 2
        vector = totals[0, lanes(0, 2 * width)]
        low, high = (tirx.Shuffle([vector], _indices(start, width)) for start in (0, width))
        T.buffer_store(totals, combine(low, high), [0, lanes(0, width)])
    return totals[0, 0]


def _indices(start: int, count: int) -> list[Any]:
    return [tirx.const(index, "int32") for index in range(start, start + count)]
