"""`Workload`: what to compute, as a frozen value with a text form both ways.

    matmul m=1024 n=1024 k=1024 dtype=float32

A dimension may be `*`, which stands for any size: such a workload describes a
shape-generic kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tvmops.errors import UnknownOpError, WorkloadError, WorkloadSyntaxError

Value = int | str
ANY = "*"


@dataclass(frozen=True)
class Dim:
    """A field that holds a size: an integer of at least `low`, or `*`."""

    low: int = 1

    @property
    def expected(self) -> str:
        return f"an integer of at least {self.low}, or '{ANY}'"

    def parse(self, value: object) -> Value | None:
        """Return the canonical value, or None where `value` is no such size."""
        if value == ANY:
            return ANY
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and value >= self.low:
            return value
        return None


@dataclass(frozen=True)
class Choice:
    """A field that holds one of a few words."""

    values: tuple[str, ...]

    @property
    def expected(self) -> str:
        return "one of " + ", ".join(self.values)

    def parse(self, value: object) -> Value | None:
        return str(value) if str(value) in self.values else None


@dataclass(frozen=True)
class Field:
    """One named field of an op; a field without a default must be given."""

    name: str
    kind: Dim | Choice
    default: Value | None = None


# The fields of each op, in the order of the canonical text. The runtime half reads this
# table too, so it must not import anything of the make half.
SIGNATURES: Mapping[str, tuple[Field, ...]] = {
    "matmul": (
        Field("m", Dim()),
        Field("n", Dim()),
        Field("k", Dim()),
        Field("dtype", Choice(("float32",)), "float32"),
    ),
}


@dataclass(frozen=True)
class Workload:
    """An op and the value of each of its fields, in canonical order.

    Make one with `workload(op, **fields)` or `Workload.parse(text)`; both validate.
    """

    op: str
    items: tuple[tuple[str, Value], ...]

    def __getitem__(self, field: str) -> Value:
        for name, value in self.items:
            if name == field:
                return value
        raise KeyError(field)

    def dims(self, *names: str) -> tuple[int, ...]:
        """Return the named sizes; each must be known."""
        sizes = []
        for name in names:
            value = self[name]
            if not isinstance(value, int):
                raise WorkloadError(op=self.op, field=name, value=value, expected="a known size")
            sizes.append(value)
        return tuple(sizes)

    @property
    def is_generic(self) -> bool:
        """True if any dimension is `*`."""
        return any(value == ANY for _, value in self.items)

    def generic(self) -> Workload:
        """Return this workload with every dimension `*`."""
        kinds = {field.name: field.kind for field in SIGNATURES[self.op]}
        items = ((name, ANY if isinstance(kinds[name], Dim) else value) for name, value in self.items)
        return Workload(self.op, tuple(items))

    def __str__(self) -> str:
        return " ".join([self.op, *(f"{name}={value}" for name, value in self.items)])

    @classmethod
    def parse(cls, text: str) -> Workload:
        """Read the text form; fields may come in any order, defaults may be left out."""
        words = text.split()
        if not words:
            raise WorkloadSyntaxError(text=text, detail="is empty")
        fields: dict[str, object] = {}
        for word in words[1:]:
            name, equals, value = word.partition("=")
            if not equals or not name or not value:
                raise WorkloadSyntaxError(text=text, detail=f"{word!r} is no name=value pair")
            if name in fields:
                raise WorkloadSyntaxError(text=text, detail=f"field '{name}' is given twice")
            fields[name] = value
        return workload(words[0], **fields)


def workload(op: str, /, **fields: object) -> Workload:
    """Return the validated `Workload` of `op`.

    Raises
    ------
    UnknownOpError
        `op` is not one that tvmops has.
    WorkloadError
        A field is unknown, missing, or has a value it can't have.

    Examples
    --------
    >>> str(workload("matmul", k=3, m=1, n=2))
    'matmul m=1 n=2 k=3 dtype=float32'
    """
    if op not in SIGNATURES:
        raise UnknownOpError(op=op, known=", ".join(SIGNATURES))
    signature = SIGNATURES[op]
    names = [field.name for field in signature]
    for name in fields:
        if name not in names:
            raise WorkloadError(
                op=op, field=name, value=fields[name], expected="a field among " + ", ".join(names)
            )
    return Workload(op, tuple(_items(op, signature, fields)))


def _items(
    op: str, signature: tuple[Field, ...], fields: Mapping[str, object]
) -> Iterable[tuple[str, Value]]:
    for field in signature:
        given = fields.get(field.name, field.default)
        value = None if given is None else field.kind.parse(given)
        if value is None:
            shown = "missing" if given is None else given
            raise WorkloadError(op=op, field=field.name, value=shown, expected=field.kind.expected)
        yield field.name, value
