"""What the fields of a workload may hold, in code and as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

ANY = "*"


@dataclass(frozen=True)
class Range:
    """All sizes from `low` to `high`, both included."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and self.low <= size <= self.high


Value = int | str | bool | tuple[int, ...] | Range


class Kind(Protocol):
    """What a field may hold."""

    @property
    def expected(self) -> str:
        """Say in words what is accepted."""

    def parse(self, value: object) -> Value | None:
        """Return the canonical value, or None where `value` is none of this kind."""


@dataclass(frozen=True)
class Dim:
    """A size: an integer of at least `low`, or `*`; where it `varies`, also a range such as 1..64.

    Where it is `fixed`, even a shape-generic kernel is built for one value of it.
    """

    low: int = 1
    fixed: bool = False
    varies: bool = False

    @property
    def expected(self) -> str:
        ranges = f", a range such as {Range(self.low, 64)}" if self.varies else ""
        return f"an integer of at least {self.low}{ranges}, or '{ANY}'"

    def parse(self, value: object) -> Value | None:
        if value == ANY:
            return ANY
        first, dots, last = str(value).partition("..")
        low, high = (_number(first), _number(last)) if dots else (_number(value),) * 2
        if low is None or high is None or not self.low <= low <= high:
            return None
        if low == high:
            return low
        return Range(low, high) if self.varies else None


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    values: tuple[str, ...]

    @property
    def expected(self) -> str:
        return "one of " + ", ".join(self.values)

    def parse(self, value: object) -> Value | None:
        return str(value) if str(value) in self.values else None


@dataclass(frozen=True)
class Flag:
    """True or false."""

    @property
    def expected(self) -> str:
        return "true or false"

    def parse(self, value: object) -> Value | None:
        return {"true": True, "false": False}.get(str(value).lower())


@dataclass(frozen=True)
class Sizes:
    """`count` integers of at least `low`: one for all, one an axis, or one each.

    Both ends of the axes are (top, left, bottom, right), so that (h, w) is repeated: each
    axis has the same at its ends. As text they are joined by "x"; a tuple or a list serves, too.
    """

    count: int
    low: int = 0

    @property
    def expected(self) -> str:
        return f"1 to {self.count} integers of at least {self.low}, such as 1 or 1x2"

    def parse(self, value: object) -> Value | None:
        parts = value.split("x") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            parts = [parts]
        numbers = [_number(part) for part in parts]
        if self.count % max(len(numbers), 1) or len(numbers) == 0:
            return None
        found = tuple(number for number in numbers if number is not None and number >= self.low)
        if len(found) != len(numbers):
            return None
        return found * (self.count // len(found))


@dataclass(frozen=True)
class Field:
    """One named field of an op; a field without a default must be given."""

    name: str
    kind: Kind
    default: Value | None = None
    shown: bool = False  # in the text form even where it is the default


def text_of(value: Value) -> str:
    """Return `value` as a workload's text has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(value[0]) if len(set(value)) == 1 else "x".join(map(str, value))
    return str(value)


def _number(value: object) -> int | None:
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
