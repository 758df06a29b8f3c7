"""Transposition of a square of elements that lies in vector registers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tvm import tirx

from tvmops.schedules.cpu.linear import Registers, Vector

_LANE = 4  # floats of a 128-bit lane, within which shuffles are cheapest


def transposed(rows: Sequence[Vector], width: int) -> list[Vector]:
    """Return the columns of the `width` vectors `rows`, of `width` lanes each.

    Two steps interleave pairs of rows within 128-bit lanes, the others move whole lanes:
    width * log2(width) shuffles, each one instruction.
    """
    held = Registers(width * width.bit_length(), width)
    vectors = [held.hold(row) for row in rows]
    places = [[(row, column) for column in range(width)] for row in range(width)]
    for step, (low, high) in enumerate(_steps(width)):
        distance = 1 << step
        for first in range(width):
            if first & distance:
                continue
            second = first | distance
            pair = [vectors[first], vectors[second]]
            origin = places[first] + places[second]
            for at, indices in ((first, low), (second, high)):
                vectors[at] = held.hold(tirx.Shuffle(pair, indices))
                places[at] = [origin[index] for index in indices]
    order = {place[0][1]: at for at, place in enumerate(places)}
    return [vectors[order[column]] for column in range(width)]


def _steps(width: int) -> list[tuple[list[int], list[int]]]:
    """Return, for each step, which elements of a pair of vectors make the new first and second."""
    lanes = range(0, width, _LANE)
    singles = [
        [(lane + half, width + lane + half, lane + half + 1, width + lane + half + 1) for lane in lanes]
        for half in (0, 2)
    ]
    doubles = [
        [(lane + half, lane + half + 1, width + lane + half, width + lane + half + 1) for lane in lanes]
        for half in (0, 2)
    ]
    whole = [
        [range(lane, lane + _LANE) for lane in range(start, 2 * width, 2 * _LANE)] for start in (0, _LANE)
    ]
    steps = [singles, doubles, *[whole] * (width.bit_length() - 3)]
    return [(_joined(low), _joined(high)) for low, high in steps]


def _joined(parts: Iterable[Iterable[int]]) -> list[int]:
    return [index for part in parts for index in part]
