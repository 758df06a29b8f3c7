"""Weights that were transformed for Winograd's algorithm, as a tensor expression."""

from __future__ import annotations

from functools import reduce
from typing import Any

from tvmops.signatures.winograd import CHANNELS, TAPS, transforms


def weights_of(packed: Any, layout: str, co: int) -> Any:
    """Return the weights (co, ci, 3, 3) that `packed` was made of, in the layout winograd2 or winograd4."""
    from tvm import te, tirx  # here, so that references need no compiler

    m = int(layout.removeprefix("winograd"))
    inverse, dtype = transforms(m).inverse, packed.dtype

    def weight(o: Any, c: Any, r: Any, s: Any) -> Any:
        def tap(row: int, column: int) -> Any:
            terms = [
                tirx.const(float(a * b), dtype) * packed[o // CHANNELS, i * (m + 2) + j, c, o % CHANNELS]
                for i, a in enumerate(inverse[row])
                for j, b in enumerate(inverse[column])
                if a and b
            ]
            return reduce(lambda total, term: total + term, terms)

        made = tap(0, 0)
        for row in range(TAPS):
            for column in range(TAPS):
                made = tirx.Select(tirx.all(r == row, s == column), tap(row, column), made)
        return made

    return te.compute((co, packed.shape[2], TAPS, TAPS), weight, "weights")
