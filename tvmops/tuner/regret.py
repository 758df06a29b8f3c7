"""The fewest kernels that serve every shape of a range well, from a matrix of measured times.

A kernel covers a shape where it loses at most `regret` against the fastest one there. To cover
all shapes with the fewest is set cover: greedy steps first (V. Chvatal, A Greedy Heuristic for
the Set-Covering Problem, 1979), then, where there are few enough to try, all smaller sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb, inf

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

_MOST_SETS = 200_000  # to try
_LOST = 100.0  # the loss of a kernel that can't be used


def losses(times: Matrix) -> Matrix:
    """Return by how much each kernel (row) is slower than the fastest at each shape (column).

    `times` holds seconds, infinite where there is none; each column has a finite one. 0.05 is 5%.
    """
    best = times.min(axis=0)
    if not np.isfinite(best).all():
        raise ValueError("a shape has no time at all")
    lost: Matrix = times / best - 1
    return lost


def at_most(times: Matrix, regret: float, most: int) -> list[int]:
    """Return the rows of the smallest set that covers all columns within `regret`, at most so many.

    Where `most` rows can't keep to `regret`, it is those with the least mean square of what they
    lose: one that helps most after the other, then exchanged while that helps. (The least worst
    loss would be up to the one column where a measurement was disturbed.) There are more only where
    those that were found have no time at some column.
    """
    rows = fewest(times, regret)
    if len(rows) <= most:
        return rows
    squares = np.minimum(losses(times), _LOST) ** 2
    found: list[int] = []
    while len(found) < most:
        found.append(min(range(len(times)), key=lambda row: _mean_loss(squares, [*found, row])))
    found = _improved(sorted(found), squares, _LOST**2)
    return found if np.isfinite(times[found].min(axis=0)).all() else rows


def fewest(times: Matrix, regret: float) -> list[int]:
    """Return the rows of the smallest set that covers all columns of `times` within `regret`.

    Of several such sets it is one with a low mean loss, each column served by its best row.
    Beyond `_MOST_SETS` sets the greedy answer stands, which may hold more rows than needed.
    """
    lost = losses(times)
    covers = _undominated(lost, regret)
    chosen = _greedy(covers, lost.shape[1])
    for size in range(1, len(chosen) + 1):
        if comb(len(covers), size) > _MOST_SETS:
            break
        found = _best_of_size(covers, lost, size)
        if found:
            return found
    return _improved(sorted(chosen), lost, regret)


def _undominated(lost: Matrix, regret: float) -> dict[int, int]:
    """Return the columns that each row covers, as bits; rows that cover no more than a better one are out."""
    bits = {
        row: sum(1 << int(column) for column in np.flatnonzero(lost[row] <= regret))
        for row in range(len(lost))
    }
    order = sorted(bits, key=lambda row: (-bits[row].bit_count(), _total(lost[row], regret), row))
    kept: dict[int, int] = {}
    for row in order:
        if bits[row] and not any(bits[row] | other == other for other in kept.values()):
            kept[row] = bits[row]
    return kept


def _total(row: Matrix, regret: float) -> float:
    return float(row[row <= regret].sum())


def _greedy(covers: dict[int, int], columns: int) -> list[int]:
    """Take the row that covers most of what is left, again and again."""
    left, chosen = (1 << columns) - 1, []
    while left:
        row = max(covers, key=lambda each: (covers[each] & left).bit_count())
        chosen.append(row)
        left &= ~covers[row]
    return chosen


def _best_of_size(covers: dict[int, int], lost: Matrix, size: int) -> list[int]:
    """Return the covering set of `size` rows with the least mean loss; [] if there is none."""
    everything = (1 << lost.shape[1]) - 1
    best, least = [], inf
    for rows in combinations(covers, size):
        together = 0
        for row in rows:
            together |= covers[row]
        if together == everything and (mean := _mean_loss(lost, rows)) < least:
            best, least = sorted(rows), mean
    return best


def _improved(chosen: list[int], lost: Matrix, regret: float) -> list[int]:
    """Exchange one row for another while that lessens the mean loss and still covers all columns."""
    least = _mean_loss(lost, chosen)
    for at in range(len(chosen)):
        for row in range(len(lost)):
            trial = sorted({*chosen[:at], row, *chosen[at + 1 :]})
            if len(trial) < len(chosen) or not (lost[trial].min(axis=0) <= regret).all():
                continue
            if _mean_loss(lost, trial) < least:
                return _improved(trial, lost, regret)
    return chosen


def _mean_loss(lost: Matrix, rows: Sequence[int]) -> float:
    return float(lost[list(rows)].min(axis=0).mean())
