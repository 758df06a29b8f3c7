"""How a warp copies its chunks of keys and values, of a sequence or of pages, to its ring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import ceildiv
from tvmops.schedules.cuda.kernels.attention_shares import LINE, pitch
from tvmops.schedules.cuda.kernels.stream import ask_for
from tvmops.schedules.cuda.words import Scalar, c_call, do, ptx, slice_of, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.attention_split import SplitKernel

_COPY = """
__forceinline__ __device__ void copy_row_piece(unsigned to, const void* from, int row, int pitch,
                                               int offset, int rows) {
  const bool inside = row < rows;
  const char* at = static_cast<const char*>(from) + static_cast<long long>(inside ? row : 0) * pitch + offset;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::
               "r"(to), "l"(at), "r"(inside ? 16 : 0) : "memory");
}
"""

_ROW_OF = """
__forceinline__ __device__ const void* row_of(const void* rows, int row, int pitch, int offset) {
  return static_cast<const char*>(rows) + static_cast<long long>(row) * pitch + offset;
}
"""
_COPY_WHOLE = """
__forceinline__ __device__ void copy_whole_piece(unsigned to, const void* from, int offset) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::
               "r"(to), "l"(static_cast<const char*>(from) + offset) : "memory");
}
"""


class Copies:
    """The chunks of one warp, `count` of them.

    All warps of a head take turns: what they copy at a time lies together in memory.
    """

    def __init__(self, kernel: SplitKernel) -> None:
        self.kernel = kernel
        split, dim = kernel.split, kernel.sizes.head_dim
        self.pieces = dim // 8  # of 16 bytes, a row
        self.count_of_pieces = split.keys * self.pieces // 32
        self.pitch = 2 * dim * (kernel.sizes.kv_heads if kernel.cache.beside else 1)
        self.turns = split.blocks * split.warps
        self.first = T.Bind(kernel.warp * split.blocks + kernel.number)
        left = ceildiv(kernel.length, split.keys) - self.first + (self.turns - 1)
        self.count = T.Bind(T.truncdiv(tirx.max(left, 0), self.turns))
        self.base = Scalar(
            T.cuda.cvta_generic_to_shared(kernel.ring.ptr_to([kernel.warp, 0, 0, 0])), "uint32"
        )()
        if kernel.cache.page_size:
            self._pages = [Scalar(self._page_of(stage)) for stage in range(split.stages)]
        else:
            self._rows = {name: T.Bind(self._rows_of(name, kernel.sequence)) for name in "kv"}

    def ask_ahead(self) -> None:
        """Have the first chunks brought to the L2: what they hold is read later."""
        kernel = self.kernel
        lines = pitch(kernel.sizes.head_dim) // LINE  # of a row
        for step in range(kernel.split.ahead):
            for i in range(0, kernel.split.keys * lines, 32):
                line = i + kernel.lane
                row = self.key(step) + T.truncdiv(line, lines)
                offset = tirx.min(T.truncmod(line, lines) * LINE, 2 * kernel.sizes.head_dim - 16)
                for name in "kv":
                    at = c_call("handle", "row_of", self._rows[name], row, self.pitch, offset, source=_ROW_OF)
                    ask_for(at, row < kernel.length)

    def begin(self) -> None:
        """Fill the ring but for one stage."""
        split = self.kernel.split
        for stage in range(split.stages - 1):
            with when(stage < self.count):
                self._copy(stage, stage, stage)
            ptx("cp.async.commit_group")

    def go_on(self, step: Any, stage: Any) -> None:
        """Begin to copy the chunk that is a ring behind chunk `step`, if there is one, to `stage`."""
        stages = self.kernel.split.stages
        with when(step + (stages - 1) < self.count):
            self._copy(step + (stages - 1), stage, -1)
        ptx("cp.async.commit_group")
        if self.kernel.cache.page_size:  # read early: it is there when the next copy begins
            self._pages[-1].set(self._page_of(step + stages))

    def key(self, step: Any) -> Any:
        """Return the first key of chunk `step`."""
        return (self.first + step * self.turns) * self.kernel.split.keys

    def place(self, stage: Any, which: int) -> Any:
        return self.base + T.Cast("uint32", stage * (2 * self.kernel.chunk) + which * self.kernel.chunk)

    def _page_of(self, step: Any) -> Any:
        """Return the page of this warp's chunk `step`: some page of its sequence, where there is none."""
        column = T.truncdiv(self.key(step), self.kernel.cache.page_size)
        return self.kernel.table[self.kernel.sequence, tirx.min(column, self.kernel.columns_of_table - 1)]

    def _rows_of(self, name: str, outer: Any) -> Any:
        """Return where the rows of this block's head begin, in a sequence or a page."""
        kernel, data = self.kernel, self.kernel.kv[name].data
        s, cache = kernel.sizes, kernel.cache
        rows = cache.page_size or s.kv_len
        if cache.beside:
            return slice_of(
                slice_of(data, outer, rows, s.kv_heads * s.head_dim, 2), kernel.head, 1, s.head_dim, 2
            )
        return slice_of(data, outer * s.kv_heads + kernel.head, rows, s.head_dim, 2)

    def _copy(self, step: Any, stage: Any, page: int) -> None:
        """Begin to copy k and v of chunk `step`, of `_pages[page]`; rows beyond the end become 0."""
        kernel = self.kernel
        key = T.Bind(self.key(step))
        first, end = key, kernel.length
        if kernel.cache.page_size:
            first = T.Bind(T.truncmod(key, kernel.cache.page_size))
            end = kernel.length - key + first
        with T.If(key + kernel.split.keys <= kernel.length):
            with T.Then():
                for which, name in enumerate("kv"):
                    self._copy_whole(self._rows_at(name, page), first, self.place(stage, which))
            with T.Else():
                for which, name in enumerate("kv"):
                    self._copy_part(self._rows_at(name, page), first, end, self.place(stage, which))

    def _rows_at(self, name: str, page: int) -> Any:
        paged = self.kernel.cache.page_size > 0
        return T.Bind(self._rows_of(name, self._pages[page]())) if paged else self._rows[name]

    def _copy_whole(self, rows: Any, first: Any, to: Any) -> None:
        """Copy without a look at each row; addresses differ by constants where rows divide a warp."""
        lane, pieces = self.kernel.lane, self.pieces
        together = 32 % pieces == 0
        row, column = T.truncdiv(lane, pieces), T.truncmod(lane, pieces)
        own = row * self.pitch + column * 16 if together else 0
        start = T.Bind(c_call("handle", "row_of", rows, first, self.pitch, own, source=_ROW_OF))
        for i in range(self.count_of_pieces):
            row, column, inside = self._piece(i)
            offset = i * (32 // pieces) * self.pitch if together else row * self.pitch + column * 16
            do(c_call("void", "copy_whole_piece", to + inside, start, offset, source=_COPY_WHOLE))

    def _copy_part(self, rows: Any, first: Any, end: Any, to: Any) -> None:
        with T.serial(self.count_of_pieces, unroll=False) as i:  # seldom run
            row, column, inside = self._piece(i)
            do(
                c_call(
                    "void", "copy_row_piece", to + inside, rows, first + row, self.pitch, column * 16, end,
                    source=_COPY,
                )
            )  # fmt: skip

    def _piece(self, i: Any) -> tuple[Any, Any, Any]:
        """Return row and column of this thread's piece `i` of a chunk, and its place in shared memory."""
        piece = i * 32 + self.kernel.lane
        row, column = T.truncdiv(piece, self.pieces), T.truncmod(piece, self.pieces)
        inside = row * pitch(self.kernel.sizes.head_dim) + (column ^ (row % 8)) * 16
        return row, column, T.Cast("uint32", inside)
