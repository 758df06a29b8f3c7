"""A factor of a product by mma.sync: its tiles' way to shared memory, and how they lie there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.pieces import PIECE, copy_piece, fetch_piece, place_piece
from tvmops.schedules.cuda.words import do, when

BK = 64  # k of a stage


class Operand:
    """One of the two factors: a tile of `block` rows of its own, or columns, times `BK`."""

    words = PIECE  # registers of a piece that comes through them

    def __init__(self, array: Any, extent: Extent, k: Extent, k_inner: bool, block: int, vector: int) -> None:
        self.array, self.extent, self.k = array, extent, k
        self.k_inner, self.block, self.vector = k_inner, block, vector
        self.pieces = (BK if k_inner else block) // PIECE  # of a row
        self.ring: Any = None
        self.slice: Any = None
        self.base: Any = None
        self.raw: Any = None

    @property
    def rows(self) -> int:
        return self.block if self.k_inner else BK

    @property
    def stage_bytes(self) -> int:
        return self.block * BK * 2

    @property
    def row_length(self) -> Extent:
        return self.k if self.k_inner else self.extent

    def address(self, stage: Any, row: Any, piece: Any) -> Any:
        """Return where a piece lies; neighbours in a column lie in different banks."""
        turned = piece ^ (row % min(8, self.pieces))
        inside = row * (self.pieces * 16) + turned * 16
        return self.base + T.Cast("uint32", stage * self.stage_bytes + inside)

    def begin(self, thread: Any, threads: int) -> None:
        """Say which of `threads` this is."""
        self.thread, self.threads = thread, threads
        self.steps = -(-self.rows * self.pieces // threads)  # pieces of a thread
        if self.in_two_steps:
            self.raw = T.alloc_local((self.steps * self.words,), "uint32")

    @property
    def in_two_steps(self) -> bool:
        return self.vector == 1

    def copy(self, stage: Any, origin: Any, k_origin: Any) -> None:
        """Begin to copy a tile; what lies beyond the array becomes 0."""
        if self.in_two_steps:
            self.fetch(origin, k_origin)
            self.place(stage)
            return

        def piece(step: int, row: Any, piece: Any) -> Any:
            address = self.address(stage, row, piece)
            found = self._found(row, piece, origin, k_origin)
            return self.copy_piece(address, *found)

        self._each(piece)

    def fetch(self, origin: Any, k_origin: Any) -> None:
        """Begin to read a tile to registers."""

        def piece(step: int, row: Any, piece: Any) -> Any:
            raw = T.address_of(self.raw[step * self.words])
            return self.fetch_piece(raw, *self._found(row, piece, origin, k_origin))

        self._each(piece)

    def place(self, stage: Any) -> None:
        """Write what was read to shared memory."""

        def piece(step: int, row: Any, piece: Any) -> Any:
            raw = T.address_of(self.raw[step * self.words])
            return self.place_piece(self.address(stage, row, piece), raw)

        self._each(piece)

    def copy_piece(self, *place: Any) -> Any:
        return copy_piece(self.vector, *place)

    def fetch_piece(self, raw: Any, *place: Any) -> Any:
        return fetch_piece(raw, *place)

    def place_piece(self, to: Any, raw: Any) -> Any:
        return place_piece(to, raw)

    def _each(self, do_piece: Callable[[int, Any, Any], Any]) -> None:
        """Do something for each piece of this thread: its number, its row, its place there."""
        count = self.rows * self.pieces
        for step in range(self.steps):
            at = step * self.threads + self.thread
            call = do_piece(step, T.truncdiv(at, self.pieces), T.truncmod(at, self.pieces))
            if (step + 1) * self.threads <= count:
                do(call)
                continue
            with when(at < count):
                do(call)

    def _found(self, row: Any, piece: Any, origin: Any, k_origin: Any) -> tuple[Any, ...]:
        """Return where a piece lies in the array: its row, their length, its column, what is there of it."""
        if self.k_inner:
            y, x = origin + row, k_origin + piece * PIECE
            valid = tirx.Select(y < self.extent, self.k - x, 0)
        else:
            y, x = k_origin + row, origin + piece * PIECE
            valid = tirx.Select(y < self.k, self.extent - x, 0)
        return self.slice, y, self.row_length, x, valid
