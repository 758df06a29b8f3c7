"""Products of a small constant matrix and a few vectors, in as few operations as its symmetry allows.

The matrices of Winograd's transforms come from points in pairs +-a. Two rows of such a pair
agree in their even columns and differ in sign in the odd ones, or the other way round for
columns: sums and differences then serve both.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, TypeAlias

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import broadcast, lanes, registers
from tvmops.signatures.winograd import Matrix

Vector: TypeAlias = "tirx.Expr"
_Term: TypeAlias = "tuple[Fraction, Vector]"


class Registers:
    """Vectors that are computed once, kept in registers and read as often as need be."""

    def __init__(self, count: int, width: int) -> None:
        self._buffer: Any = registers((count, width), "float32")
        self._width = width
        self._used = 0

    def hold(self, value: Vector) -> Vector:
        at = [self._used, lanes(0, self._width)]
        T.buffer_store(self._buffer, value, at)
        self._used += 1
        return self._buffer[tuple(at)]


def apply(matrix: Matrix, vectors: Sequence[Vector], width: int) -> list[Vector]:
    """Return `matrix` times `vectors`, each of `width` lanes, which are used once each."""
    held = Registers(3 * len(matrix) + 2 * len(vectors), width)
    columns = [held.hold(vector) for vector in vectors]
    matrix, columns = _fold_columns(matrix, columns, held)
    made: list[Vector | None] = [None] * len(matrix)
    for row, entries in enumerate(matrix):
        if made[row] is not None:
            continue
        twin = _twin(matrix, row)
        if twin is None:
            made[row] = held.hold(_sum([*zip(entries, columns)], width))
        else:
            made[row], made[twin] = (held.hold(value) for value in _both(entries, columns, held, width))
    return [value for value in made if value is not None]


def _fold_columns(matrix: Matrix, columns: list[Vector], held: Registers) -> tuple[Matrix, list[Vector]]:
    """Replace each pair of columns that agree but for signs by their sum and their difference."""
    across: Matrix = tuple(zip(*matrix))
    folded = [list(column) for column in across]
    for first in range(len(across) - 1):
        second = first + 1
        signs = {a / b for a, b in zip(across[first], across[second]) if b}
        same = [abs(a) for a in across[first]] == [abs(b) for b in across[second]]
        if not same or signs != {1, -1}:
            continue
        x, y = columns[first], columns[second]
        columns[first], columns[second] = held.hold(x + y), held.hold(x - y)
        agree = [a == b for a, b in zip(across[first], across[second])]
        folded[first] = [a if is_sum else Fraction(0) for a, is_sum in zip(across[first], agree)]
        folded[second] = [Fraction(0) if is_sum else a for a, is_sum in zip(across[first], agree)]
    return tuple(zip(*folded)), columns


def _twin(matrix: Matrix, row: int) -> int | None:
    """Return the next row if it differs from `row` in the sign of some entries, not of all."""
    if row + 1 == len(matrix):
        return None
    pairs = [(a, b) for a, b in zip(matrix[row], matrix[row + 1]) if a or b]
    mirrored = all(abs(a) == abs(b) for a, b in pairs)
    return row + 1 if mirrored and {a == b for a, b in pairs} == {True, False} else None


def _both(
    entries: Sequence[Fraction], columns: Sequence[Vector], held: Registers, width: int
) -> tuple[Vector, Vector]:
    """Return the sum over all columns, and that with the odd columns' signs turned."""
    even = [(c, x) for c, x in list(zip(entries, columns))[::2] if c]
    odd = [(c, x) for c, x in list(zip(entries, columns))[1::2] if c]
    by_even, by_odd = even[-1][0], odd[-1][0]
    half = held.hold(_sum([(c / by_even, x) for c, x in even], width))
    other = held.hold(_sum([(c / by_odd, x) for c, x in odd], width))
    if by_even != 1:
        half = held.hold(_scaled(by_even, half, width))
    term = other if by_odd == 1 else _scaled(by_odd, other, width)
    return half + term, half - term


def _sum(terms: Sequence[_Term], width: int) -> Vector:
    """Return the sum of coefficients times vectors; it begins with one that needs no product."""
    first, *rest = sorted((term for term in terms if term[0]), key=lambda term: term[0] != 1)
    total = first[1] if first[0] == 1 else _scaled(first[0], first[1], width)
    for coefficient, vector in rest:
        if abs(coefficient) == 1:
            total = total + vector if coefficient == 1 else total - vector
        else:
            total = total + _scaled(coefficient, vector, width)
    return total


def _scaled(coefficient: Fraction, vector: Vector, width: int) -> Vector:
    return broadcast(tirx.const(float(coefficient), "float32"), width) * vector
