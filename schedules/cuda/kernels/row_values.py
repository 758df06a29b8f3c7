"""A row in the registers of its threads, and what they know of it together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.words import Scalar, do, shuffle_xor, when

WARP = 32
Combine = Callable[[Any, Any], Any]


class Meeting:
    """Exchange of floats among the `threads` of each row of a block, by shuffles and shared memory.

    `partial` has room for two exchanges of a row; rows that follow each other use its halves, by `parity`.
    """

    def __init__(self, threads: int, warp: Any, lane: Any, partial: Any, parity: Any) -> None:
        self.threads, self.warp, self.lane = threads, warp, lane
        self.partial, self.parity = partial, parity
        self.rounds = 0

    def combined(self, value: Any, combine: Combine) -> Any:
        """Return what `combine` makes of the values of all threads of a row; each gets it."""
        result = Scalar(value, "float32")
        for distance in _halves(min(self.threads, WARP)):
            result.set(combine(result(), shuffle_xor(result(), distance)))
        if self.threads <= WARP:
            return result()
        warps = self.threads // WARP
        turn, self.rounds = self.rounds, self.rounds + 1
        with when(self.lane == 0):
            T.buffer_store(self.partial, result(), [self.parity, turn, self.warp])
        do(T.cuda.cta_sync())
        first = T.truncdiv(self.warp, warps) * warps
        result.set(self.partial[self.parity, turn, first + self.lane % warps])
        for distance in _halves(min(warps, WARP)):
            result.set(combine(result(), shuffle_xor(result(), distance)))
        return result()


class RowValues:
    """This thread's elements, as floats: `steps` vectors of `width`, those of all threads in turn."""

    def __init__(self, cols: int, width: int, threads: int, column: Any) -> None:
        self.cols, self.width, self.threads, self.column = cols, width, threads, column
        self.steps = -(-cols // (width * threads))
        self.floats = T.alloc_local((self.count,), "float32")

    @property
    def count(self) -> int:
        return self.steps * self.width

    def of_step(self, step: int) -> range:
        """Return which of the elements are of the vector `step`."""
        return range(step * self.width, (step + 1) * self.width)

    def __getitem__(self, i: int) -> Any:
        return self.floats[i]

    def __setitem__(self, i: int, value: Any) -> None:
        T.buffer_store(self.floats, value, [i])

    def each(
        self, do_step: Callable[[int, Any], None], otherwise: Callable[[int], None] | None = None
    ) -> None:
        """Do something for each vector of the row: its number, its column; else for those beyond it."""
        for step in range(self.steps):
            column = (step * self.threads + self.column) * self.width
            if (step + 1) * self.threads * self.width <= self.cols:
                do_step(step, column)
                continue
            with T.If(column < self.cols):
                with T.Then():
                    do_step(step, column)
                if otherwise is not None:
                    with T.Else():
                        otherwise(step)

    def sum(self, of: Callable[[Any], Any], meeting: Meeting) -> Any:
        """Return the sum of `of` each element of the row."""
        chains = [Scalar(T.float32(0), "float32") for _ in range(min(4, self.width))]
        for i in range(self.count):
            chain = chains[i % len(chains)]
            chain.set(chain() + of(self[i]))
        total = chains[0]()
        for chain in chains[1:]:
            total = total + chain()
        return meeting.combined(total, lambda a, b: a + b)


def _halves(threads: int) -> list[int]:
    """Return the distances of a butterfly over a power of two of lanes, widest first."""
    return [1 << bit for bit in reversed(range(threads.bit_length() - 1))]
