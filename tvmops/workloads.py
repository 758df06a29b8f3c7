"""`Workload`: what to compute, as a frozen value with a text form both ways.

    matmul m=1024 n=1024 k=1024 dtype=float32

Fields that have their default are left out of it, but for the dtype. A dimension may be
`*`, which stands for any size: such a workload describes a shape-generic kernel. Some may be
a range, `m=1..4096`: such a workload stands for all shapes of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tvmops.errors import UnknownOpError, WorkloadError, WorkloadSyntaxError
from tvmops.signatures import ANY, SIGNATURES, Dim, Field, Range, Value
from tvmops.signatures.fields import text_of


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

    def replace(self, **changes: Value) -> Workload:
        """Return this workload with other values, which must be valid, of the named fields."""
        return Workload(self.op, tuple((name, changes.get(name, value)) for name, value in self.items))

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

    @property
    def ranges(self) -> dict[str, Range]:
        """The dimensions that are ranges, and those."""
        return {name: value for name, value in self.items if isinstance(value, Range)}

    def symbolic(self) -> Workload:
        """Return this workload with `*` for each range: what one kernel for all of it is built for."""
        return self.replace(**dict.fromkeys(self.ranges, ANY))

    def holds(self, shape: Workload) -> bool:
        """Say whether `shape`, whose sizes are all known, is this workload or one of its ranges."""
        return self.op == shape.op and all(
            value in own if isinstance(own, Range) else value == own
            for (_, own), (_, value) in zip(self.items, shape.items)
        )

    def generic(self) -> Workload:
        """Return this workload with every dimension `*` that one kernel can take at any size.

        A dimension that has its default stays: without a batch, say, arrays have one less.
        """
        free = {
            field.name
            for field in SIGNATURES[self.op].fields
            if isinstance(field.kind, Dim) and not field.kind.fixed and self[field.name] != field.default
        }
        return self.replace(**dict.fromkeys(free, ANY))

    def __str__(self) -> str:
        fields = SIGNATURES[self.op].fields if self.op in SIGNATURES else ()
        hidden = {(field.name, field.default) for field in fields if not field.shown}
        texts = [f"{name}={text_of(value)}" for name, value in self.items if (name, value) not in hidden]
        return " ".join([self.op, *texts])

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
    names = [field.name for field in signature.fields]
    for name in fields:
        if name not in names:
            raise WorkloadError(
                op=op, field=name, value=fields[name], expected="a field among " + ", ".join(names)
            )
    made = signature.canonical(Workload(op, tuple(_items(op, signature.fields, fields))))
    for end in _ends(made):
        signature.check(end)
    return made


def _ends(made: Workload) -> tuple[Workload, ...]:
    """Return the smallest and the largest shape of a workload with ranges; without, itself."""
    ranges = made.ranges
    if not ranges:
        return (made,)
    return tuple(
        made.replace(**{name: getattr(each, end) for name, each in ranges.items()}) for end in ("low", "high")
    )


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
