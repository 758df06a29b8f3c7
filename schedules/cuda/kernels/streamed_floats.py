"""A factor of float32 on its way to CUDA cores: to a ring of stages in shared memory, and to registers.

Where rows lie across k, cp.async copies 16 bytes at a time, or each float. What lies along k is
stored across it: float by float, or by fours that come through registers. Rows change places in
their four by the k, so that a warp that copies neighbours along k meets no bank twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.kernels.gemm_simt import FOUR, Factor, read_four
from tvmops.schedules.cuda.words import Scalar, c_call, do, when

ANYWHERE = (1 << 31) - 1  # a last row, where all are there
_OCTAVE = 8  # values of k whose fours lie in different banks
ADDRESS = """
__forceinline__ __device__ unsigned long long address_in(const void* array, int row, int pitch, int column) {
  return reinterpret_cast<unsigned long long>(static_cast<const float*>(array) + static_cast<long long>(row) * pitch + column);
}
"""
# In one piece, lest the compiler keeps the place of each row in registers: row `row + more`, or the last.
_COPY = """
__forceinline__ __device__ void copy_floats_{vector}(unsigned to, unsigned long long from, int row, int more, int last,
                                                     int pitch) {{
  asm volatile("{{.reg .s32 at; .reg .s64 there;"
               "add.s32 at, %2, %3; min.s32 at, at, %4; mul.lo.s32 at, at, %5; mad.wide.s32 there, at, 4, %1;"
               "cp.async.{cache}.shared.global [%0], [there], {nbytes};}}" ::
               "r"(to), "l"(from), "r"(row), "r"(more), "r"(last), "r"(pitch) : "memory");
}}
"""
_COPY_PRESENT = """
__forceinline__ __device__ void copy_present_floats_{vector}(unsigned to, unsigned long long from, int row, int more,
                                                             int last, int pitch, int present) {{
  const unsigned long long at = from + (present ? 4ll * (min(row + more, last) * pitch) : 0);
  asm volatile("cp.async.{cache}.shared.global [%0], [%1], {nbytes}, %2;" ::
               "r"(to), "l"(at), "r"(present ? {nbytes} : 0) : "memory");
}}
"""
COPY_FOUR = _COPY_PRESENT.format(vector=FOUR, nbytes=4 * FOUR, cache="cg")
_FETCH_FOUR = """
__forceinline__ __device__ void fetch_four_floats(float* to, unsigned long long from, int row, int more, int last, int pitch,
                                                  int behind) {
  asm volatile("{.reg .s32 at; .reg .s64 there;"
               "add.s32 at, %5, %6; min.s32 at, at, %7; mad.lo.s32 at, at, %8, %9; mad.wide.s32 there, at, 4, %4;"
               "ld.global.nc.v4.f32 {%0, %1, %2, %3}, [there];}"
               : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3])
               : "l"(from), "r"(row), "r"(more), "r"(last), "r"(pitch), "r"(behind) : "memory");
}
"""
# The same where all rows are there: `apart` floats from the thread's first.
_COPY_WHOLE = """
__forceinline__ __device__ void copy_whole_floats_{vector}(unsigned to, unsigned long long from, int apart) {{
  asm volatile("cp.async.{cache}.shared.global [%0], [%1], {nbytes};" ::
               "r"(to), "l"(from + 4ll * apart) : "memory");
}}
"""
_FETCH_WHOLE_FOUR = """
__forceinline__ __device__ void fetch_whole_four(float* to, unsigned long long from, int apart) {
  asm volatile("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3]) : "l"(from + 4ll * apart) : "memory");
}
"""


class Streamed(Factor):
    """A factor of which `lanes` of a warp have different rows. Copies along k of `vector` 4 come through registers."""

    part: Any = 0  # the slice of each step's k that a thread multiplies

    def __init__(
        self,
        array: Any,
        extent: Extent,
        k: Extent,
        k_inner: bool,
        block: int,
        own: int,
        lanes: int,
        vector: int,
    ) -> None:
        super().__init__(array, "float32", extent, k, k_inner, block, own)
        self.lanes, self.vector, self.fetches = lanes, 1 if k_inner else vector, k_inner and vector == FOUR

    def begin(self, pool: Any, thread: Any, tiles: Any) -> None:
        self.hold(pool, thread, tiles, tiles.stages)
        self.values = T.alloc_local((2 * self.own,), "float32")
        self.slices = tiles.slices
        line = self.bk if self.k_inner else self.block // self.vector  # pieces that are neighbours
        self.inside, rest = T.truncmod(thread, line), T.truncdiv(thread, line)
        self.lines = tiles.threads // line  # that are copied at a time; none, if not a whole one
        self.line = self._spread(rest) if self.k_inner else rest
        self.count = -(-self.block * self.bk // (self.vector * tiles.threads))  # pieces of a thread

    def _spread(self, line: Any) -> Any:
        """Return the row of a line: where a warp copies two, one is in the other half of its four."""
        if self.bk != 2 * _OCTAVE or self.lines % FOUR:
            return line
        return (line & -4) + (line & 1) * 2 + (line >> 1 & 1)

    def place_of(self, thread: Any, index: int) -> Any:
        return thread + index // FOUR * (self.lanes * FOUR) + index % FOUR

    def read(self, stage: Any, k: int, thread: Any) -> None:
        for begin in self.reads(stage, k, thread):
            begin()

    def reads(self, stage: Any, k: int, thread: Any) -> list[Callable[[], None]]:
        """Return what reads, four by four, what a thread multiplies, of the `k`-th of its slice: slices take turns."""

        def one(index: int) -> None:
            at = k * self.slices + self.part
            memory = self.tile.ptr_to([stage, at, self.place_of(thread, index)])
            read_four(self.values, k % 2 * self.own + index, memory)

        return [partial(one, index) for index in range(0, self.own, FOUR)]

    def value(self, k: int, index: int) -> Any:
        turned = k * self.slices // _OCTAVE % FOUR if self.k_inner else 0
        return self.values[k % 2 * self.own + (index ^ turned)]

    def aim(self, origin: Any) -> None:
        """Find where this thread's pieces of the first tile begin."""
        last = self.extent - self.vector
        self.pitch = self.row_length if self.is_whole else T.Bind(Scalar(self.row_length)())
        row, column = 0, 0
        if self.is_whole and self.k_inner:
            row, column = origin + self.line, self.inside
        elif self.is_whole:
            row, column = self.line if self.lines else 0, origin + self.inside * self.vector
        elif self.k_inner:
            row, column, self.last = origin, self.inside, T.Bind(last - origin)
        elif self.lines:
            column = tirx.min(origin + self.inside * self.vector, last)
        else:
            self.origin, self.last = origin, last
        address = c_call("uint64", "address_in", self.slice, row, self.pitch, column, source=ADDRESS)
        self.source = Scalar(address, "uint64")

    @property
    def is_whole(self) -> bool:
        """Whether all rows of each tile are there, and how far they are apart is known: the last begin early."""
        sizes = isinstance(self.extent, int) and isinstance(self.row_length, int)
        return sizes and int(self.extent) >= self.block

    def _apart(self, number: int) -> int:
        """Return how many floats a piece of such a tile lies behind the thread's first."""
        pitch = int(self.row_length)
        if self.lines:
            return number * int(self.lines) * pitch
        passes = self.block // (self.vector * int(self.threads))
        return number % passes * int(self.threads) * self.vector + number // passes * pitch

    def _piece(self, number: int) -> tuple[Any, Any]:
        """Return a piece's place among the block's own, and its k."""
        more = number * self.lines
        if self.k_inner:
            return (self.line ^ T.truncdiv(self.inside, _OCTAVE) % FOUR) + more, self.inside
        if self.lines:
            return self.inside * self.vector, self.line + more
        passes = self.block // (self.vector * self.threads)  # of a line
        return (self.inside + number % passes * self.threads) * self.vector, number // passes

    def copy(self, stage: Any, left: Any = None) -> None:
        """Begin to copy the next tile, of which there are `left` values of k, or all."""
        nbytes, cache = 4 * self.vector, "cg" if self.vector == FOUR else "ca"
        fields = {"vector": self.vector, "nbytes": nbytes, "cache": cache}
        count = self.block * self.bk // self.vector
        for i in range(self.count):
            own, k = self._piece(i)
            place = self._source_of(i, own, k)
            to = T.cuda.cvta_generic_to_shared(self.tile.ptr_to([stage, k, own]))
            present = () if left is None else (T.Cast("int32", k < left),)
            name, text = ("copy_present_floats", _COPY_PRESENT) if present else ("copy_floats", _COPY)
            if self.is_whole and not present:
                name, text, place = "copy_whole_floats", _COPY_WHOLE, (self.source(), self._apart(i))
            source = text.format(**fields)
            copy = c_call("void", f"{name}_{self.vector}", to, *place, *present, source=source)
            if (i + 1) * self.threads <= count:
                do(copy)
                continue
            with when(i * self.threads + self.thread < count):
                do(copy)

    def _source_of(self, number: int, own: Any, k: Any) -> tuple[Any, ...]:
        """Return an address, a row and how many more, the last row, and floats from one row to the next."""
        if self.is_whole:
            return self.source(), 0, self._apart(number), ANYWHERE, 1
        if self.lines:
            return (
                self.source(),
                self.line,
                number * self.lines,
                self.last if self.k_inner else ANYWHERE,
                self.pitch,
            )
        column = tirx.min(self.origin + own, self.last)
        return self.source() + T.Cast("uint64", column * 4), k, 0, ANYWHERE, self.pitch

    # Fours along k come through registers, and go from there to their places.

    def begin_fetching(self) -> None:
        self.pair = T.truncmod(self.thread, 2)  # of fours, that neighbours take
        rest, lines = T.truncdiv(self.thread, 2), self.threads // 2
        self.fetch_row, self.run = T.truncmod(rest, self.block), T.truncdiv(rest, self.block)
        self.rows_apart, self.runs_apart = max(1, self.block // lines), max(1, lines // self.block)
        self.fours = -(-self.block * self.bk // (FOUR * self.threads))
        self.fetched = T.alloc_local((self.fours * FOUR,), "float32")

    def _four(self, number: int) -> tuple[int, Any]:
        """Return how many rows a four lies below the thread's first, and its run of 8 along k."""
        more = number % self.rows_apart * (self.threads // 2)
        return more, self.run + number // self.rows_apart * self.runs_apart

    def _each_four(self, use: Callable[[int], None]) -> None:
        count = self.block * self.bk // FOUR
        for i in range(self.fours):
            if (i + 1) * self.threads <= count:
                use(i)
                continue
            with when(i * self.threads + self.thread < count):
                use(i)

    def fetch(self) -> None:  # type: ignore[override]
        """Begin to read the next tile to registers."""

        def one(i: int) -> None:
            more, run = self._four(i)
            behind = run * _OCTAVE + self.pair * FOUR - self.inside
            to = T.address_of(self.fetched[i * FOUR])
            if self.is_whole:
                first = (
                    (self.fetch_row - self.line) * self.pitch
                    + self.run * _OCTAVE
                    + self.pair * FOUR
                    - self.inside
                )
                apart = more * self.pitch + i // self.rows_apart * self.runs_apart * _OCTAVE
                do(
                    c_call(
                        "void", "fetch_whole_four", to, self.source(), T.Bind(first) + apart,
                        source=_FETCH_WHOLE_FOUR,
                    )
                )  # fmt: skip
                return
            do(
                c_call(
                    "void", "fetch_four_floats", to, self.source(), self.fetch_row, more, self.last, self.pitch,
                    behind, source=_FETCH_FOUR,
                )
            )  # fmt: skip

        self._each_four(one)

    def put(self, stage: Any) -> None:
        """Write what was read to a stage."""

        def one(i: int) -> None:
            more, run = self._four(i)
            own = (self.fetch_row ^ run % FOUR) + more
            for e in range(FOUR):
                T.buffer_store(
                    self.tile, self.fetched[i * FOUR + e], [stage, run * _OCTAVE + self.pair * FOUR + e, own]
                )

        self._each_four(one)

    def advance(self, by: Any) -> None:
        """Go on to what lies `by` values of k behind."""
        floats = by if self.k_inner else T.Cast("int64", self.pitch) * by
        self.source.set(self.source() + T.Cast("uint64", floats * 4))
