"""What a row is to be known by: a thread's share, absorbed vector by vector, and how shares are joined.

Shares are joined without a loss: a maximum with the powers below it, a mean with the squares of
what differs from it (Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for
computing sample variances", 1979). So all of a row is known after one exchange.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.words import Scalar, c_call, exp2, shuffle_xor

_LOG2_E = math.log2(math.e)
Fill = Callable[[Any], None]
Share = Sequence[Any]  # the floats that a thread, a warp or a block knows of a row


class RowStats(ABC):
    """`floats` that change as vectors come, and that `join` makes those of all of a warp's lanes."""

    floats: ClassVar[int]

    def __init__(self, cols: Any) -> None:
        self.cols = cols
        self.of = [Scalar(T.float32(value), "float32") for value in self.nothing()]

    def nothing(self) -> tuple[float, ...]:
        return (0.0,) * self.floats

    @abstractmethod
    def absorb(self, values: list[Any], count: Any, fill: Fill | None) -> None:
        """Add a vector's `values`, of which `count` are of the row; `fill` sets the others, now 0."""

    @abstractmethod
    def join(self, shares: Sequence[Share], lanes: int) -> None:
        """Become what the `shares` of each of `lanes` lanes are together."""

    @abstractmethod
    def finish(self) -> None:
        """Compute what all elements need, once."""

    @abstractmethod
    def applied(self, value: Any) -> Any:
        """Return what becomes of an element."""


class SoftmaxStats(RowStats):
    floats = 2

    def __init__(self, cols: Any, log: bool) -> None:
        super().__init__(cols)
        self.log = log

    def nothing(self) -> tuple[float, ...]:
        return -math.inf, 0.0

    def absorb(self, values: list[Any], count: Any, fill: Fill | None) -> None:
        most, total = self.of
        if fill is not None:
            fill(tirx.const(-math.inf, "float32"))
        top = Scalar(_tree(values, tirx.max), "float32")
        top.set(tirx.max(top(), most()))
        base = Scalar(_finite(top()), "float32")
        powers = [Scalar(_power(value - base()), "float32") for value in values]
        worth = Scalar(_power(most() - base()), "float32")
        total.set(total() * worth() + _tree([power() for power in powers], _add))
        most.set(top())

    def join(self, shares: Sequence[Share], lanes: int) -> None:
        most, total = self.of
        top = across(_tree([share[0] for share in shares], tirx.max), tirx.max, lanes)
        base = Scalar(_finite(top), "float32")
        total.set(
            across(_tree([share[1] * _power(share[0] - base()) for share in shares], _add), _add, lanes)
        )
        most.set(top)

    def finish(self) -> None:
        most, total = self.of
        most.set(_finite(most()))
        total.set(T.log(total()) if self.log else T.float32(1) / total())

    def applied(self, value: Any) -> Any:
        most, total = self.of
        return value - most() - total() if self.log else _power(value - most()) * total()


class NormStats(RowStats):
    """Of layer_norm: how many elements, their mean, the squares of what differs from it."""

    floats = 3

    def __init__(self, cols: Any, eps: Any) -> None:
        super().__init__(cols)
        self.eps = eps

    def absorb(self, values: list[Any], count: Any, fill: Fill | None) -> None:
        own = Scalar(_tree(values, _add) * _over(count), "float32")
        if fill is not None:
            fill(own())
        apart = [Scalar(value - own(), "float32") for value in values]
        squares = Scalar(_tree([each() * each() for each in apart], _add), "float32")
        self._add(T.Cast("float32", count), own(), squares())

    def _add(self, more: Any, own: Any, own_squares: Any) -> None:
        number, mean, squares = self.of
        new = Scalar(number() + more, "float32")
        part = Scalar(more / tirx.max(new(), T.float32(1)), "float32")
        apart = Scalar(own - mean(), "float32")
        squares.set(squares() + own_squares + apart() * apart() * number() * part())
        mean.set(mean() + apart() * part())
        number.set(new())

    def join(self, shares: Sequence[Share], lanes: int) -> None:
        number, mean, squares = self.of
        all_numbers = across(_tree([share[0] for share in shares], _add), _add, lanes)
        total = across(_tree([share[0] * share[1] for share in shares], _add), _add, lanes)
        middle = Scalar(total / tirx.max(all_numbers, T.float32(1)), "float32")
        terms = [n * (own - middle()) * (own - middle()) + more for n, own, more in shares]
        squares.set(across(_tree(terms, _add), _add, lanes))
        number.set(all_numbers)
        mean.set(middle())

    def finish(self) -> None:
        _, _, squares = self.of
        squares.set(_inverse_root(squares() / T.Cast("float32", self.cols) + self.eps))

    def applied(self, value: Any) -> Any:
        _, mean, squares = self.of
        return (value - mean()) * squares()


class SquareStats(RowStats):
    """Of rms_norm."""

    floats = 1

    def __init__(self, cols: Any, eps: Any) -> None:
        super().__init__(cols)
        self.eps = eps

    def absorb(self, values: list[Any], count: Any, fill: Fill | None) -> None:
        (squares,) = self.of
        squares.set(squares() + _tree([value * value for value in values], _add))

    def join(self, shares: Sequence[Share], lanes: int) -> None:
        (squares,) = self.of
        squares.set(across(_tree([share[0] for share in shares], _add), _add, lanes))

    def finish(self) -> None:
        (squares,) = self.of
        squares.set(_inverse_root(squares() / T.Cast("float32", self.cols) + self.eps))

    def applied(self, value: Any) -> Any:
        return value * self.of[0]()


def across(value: Any, combine: Callable[[Any, Any], Any], lanes: int) -> Any:
    """Return what `combine` makes of the values of `lanes` lanes, a power of two."""
    result = Scalar(value, "float32")
    for bit in reversed(range(lanes.bit_length() - 1)):
        result.set(combine(result(), shuffle_xor(result(), 1 << bit)))
    return result()


def _tree(values: list[Any], combine: Callable[[Any, Any], Any]) -> Any:
    while len(values) > 1:
        pairs = zip(values[::2], values[1::2])
        values = [combine(a, b) for a, b in pairs] + (values[-1:] if len(values) % 2 else [])
    return values[0]


def _add(a: Any, b: Any) -> Any:
    return a + b


def _over(count: Any) -> Any:
    """Return the inverse of a count, of 1 where it is 0."""
    if isinstance(count, int):
        return T.float32(1 / count)
    return T.float32(1) / T.Cast("float32", tirx.max(count, 1))


def _power(x: Any) -> Any:
    """Return e**x."""
    return exp2(x * T.float32(_LOG2_E))


def _finite(value: Any) -> Any:
    return tirx.Select(value == tirx.const(-math.inf, "float32"), T.float32(0), value)


def _inverse_root(x: Any) -> Any:
    return c_call("float32", "rsqrtf", x, source="\n")
