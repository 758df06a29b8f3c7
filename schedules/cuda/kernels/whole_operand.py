"""A factor of a small product by mma.sync: a tile with all of k, in chunks on their way to shared memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.kernels.mma_operand import Operand
from tvmops.schedules.cuda.kernels.stream import ask_for
from tvmops.schedules.cuda.pieces import PIECE
from tvmops.schedules.cuda.words import c_call, do, when

STEP = 16  # of k, in a product
_LINE = 64  # elements: what the L2 is asked for at once

# Some elements to shared memory, or zeros.
_COPY_PART = """
__forceinline__ __device__ void copy_part_{vector}(unsigned to, const void* from, int there) {{
  asm volatile("cp.async.{cache}.shared.global [%0], [%1], {nbytes}, %2;" ::
               "r"(to), "l"(from), "r"(there ? {nbytes} : 0) : "memory");
}}
"""
PART_AT = """
__forceinline__ __device__ const void* part_at(const void* array, long long element) {
  return static_cast<const unsigned short*>(array) + element;
}
"""


class WholeOperand(Operand):
    """A tile of `block` rows of its own, or columns, times k, whose size is known, in chunks of `bk` of it.

    Rows in shared memory are an odd number of pieces apart, so that ldmatrix meets no bank twice.
    Beyond k a tile is 0; beyond its other end it is whatever was there, which nobody stores.
    """

    shifts = False  # in shared memory, before it is used
    first: Any  # element of the array at which the block's matrix begins
    size: Any  # of the array

    def __init__(
        self, array: Any, extent: Extent, k: Extent, k_inner: bool, block: int, vector: int, bk: int
    ) -> None:
        super().__init__(array, extent, k, k_inner, block, vector)
        self.bk = bk

    @property
    def rows(self) -> int:
        return self.block if self.k_inner else self.bk

    @property
    def line(self) -> int:
        """Elements of a row."""
        return self.bk if self.k_inner else self.block

    @property
    def pitch(self) -> int:
        """Bytes from a row to the next."""
        return (self.line // PIECE | 1) * 16

    @property
    def stage_bytes(self) -> int:
        return self.rows * self.pitch

    def nbytes(self, stages: int) -> int:
        """Return the bytes of shared memory that it needs."""
        return stages * self.stage_bytes

    def address(self, stage: Any, row: Any, piece: Any) -> Any:
        return self.base + T.Cast("uint32", stage * self.stage_bytes + row * self.pitch + piece * 16)

    def part_address(self, stage: Any, row: Any, column: Any) -> Any:
        """Return where a part of a chunk lies."""
        return self.base + T.Cast("uint32", stage * self.stage_bytes + row * self.pitch + column * 2)

    def shift(self, stage: int, origin: Any, k_origin: int, warp: Any, lane: Any) -> None:
        """Have a chunk that `shifts` lie as it is read, when all its copies have come."""

    def begin(self, thread: Any, threads: int) -> None:
        self.thread, self.threads = thread, threads

    def ask(self, origin: Any) -> None:
        """Have what will be copied brought to the L2.

        Where rows lie along k these are the block's; otherwise all of them, which other blocks need, too.
        """
        first, lines = (origin, self.block) if self.k_inner else (0, int(self.k))
        last = tirx.min(first + lines, self.extent) if self.k_inner else lines
        begin = T.Bind(c_call("handle", "part_at", self.slice, first * self.row_length, source=PART_AT))
        size = T.Bind((last - first) * self.row_length)
        for number in range(-(-lines * int(self.row_length) // (_LINE * self.threads))):
            at = T.Bind((number * self.threads + self.thread) * _LINE)
            ask_for(c_call("handle", "part_at", begin, at, source=PART_AT), T.Cast("int32", at < size))

    def copy(self, stage: Any, origin: Any, k_origin: Any) -> None:
        """Begin to copy a chunk."""
        vector = self.vector
        cache, nbytes = ("cg" if vector == PIECE else "ca"), 2 * vector
        source = _COPY_PART.format(vector=vector, cache=cache, nbytes=nbytes)
        for row, column, is_one in self._parts(vector, k_origin):
            to = self.part_address(stage, row, column)
            y, x, inside, valid = self._found_at(row, column, origin, k_origin)
            there = T.Cast("int32", valid > 0)
            with when(tirx.And(is_one, inside)):
                place = y * self.row_length + T.if_then_else(valid > 0, x, 0)
                from_ = c_call("handle", "part_at", self.slice, place, source=PART_AT)
                do(c_call("void", f"copy_part_{vector}", to, from_, there, source=source))

    def _depth(self, k_origin: int) -> int:
        """Return what there is of k in a chunk, in whole steps."""
        return min(self.bk, -(-(int(self.k) - k_origin) // STEP) * STEP)

    def _across(self, width: int, depth: int) -> int:
        """Count the parts of `width` elements in a row."""
        return -(-(depth if self.k_inner else min(self.block, int(self.extent))) // width)

    def _turns(self, width: int, depth: int) -> Iterator[tuple[int, int]]:
        """Go through first rows and first parts of what all threads copy at once."""
        across = self._across(width, depth)
        for row in range(0, self.block if self.k_inner else depth, max(1, self.threads // across)):
            for part in range(0, across, self.threads):
                yield row, part

    def _parts(self, width: int, k_origin: int) -> Iterator[tuple[Any, Any, Any]]:
        """Go through this thread's parts of `width` elements: row, first column, and if it is one.

        A thread stays in its columns, so that it goes the same way from each part to the next.
        """
        depth = self._depth(k_origin)
        across, threads, rows = (
            self._across(width, depth),
            self.threads,
            self.block if self.k_inner else depth,
        )
        side = max(1, threads // across)  # rows side by side
        own = T.Bind(T.truncdiv(self.thread, across)) if side > 1 else tirx.const(0, "int32")
        place = T.Bind(T.truncmod(self.thread, across)) if side > 1 else self.thread
        for row, part in self._turns(width, depth):
            here = [(own, side), (row + own, rows), (part + place, across)]
            most = ((threads - 1) // across, row + side - 1, part + (across if side > 1 else threads) - 1)
            # only what some thread may exceed is compared
            beyond = [at < size for (at, size), high in zip(here, most) if high >= size]
            is_one = functools.reduce(tirx.And, beyond, tirx.const(True, "bool"))
            yield row + own, (part + place) * width, is_one

    def _found_at(self, row: Any, column: Any, origin: Any, k_origin: int) -> tuple[Any, Any, Any, Any]:
        """Return a part's row and column in the array, if it is inside, and how much of it lies within k."""
        if self.k_inner:
            return origin + row, k_origin + column, origin + row < self.extent, self.k - k_origin - column
        row = k_origin + row
        valid = tirx.Select(row < self.k, self.extent - origin - column, 0)
        return tirx.min(row, self.k - 1), origin + column, origin + column < self.extent, valid
