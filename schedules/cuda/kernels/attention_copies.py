"""How a warp copies its chunks of keys and values, of a sequence or of pages, to its ring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import ceildiv
from tvmops.schedules.cuda.kernels.attention_shares import pitch
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


class Copies:
    """The chunks of one warp, `count` of them.

    All warps of a head take turns: what they copy at a time lies together in memory.
    """

    def __init__(self, kernel: SplitKernel) -> None:
        self.kernel = kernel
        split = kernel.split
        self.turns = split.splits * split.warps
        self.first = T.Bind(kernel.warp * split.splits + kernel.rank)
        left = ceildiv(kernel.length, split.keys) - self.first + (self.turns - 1)
        self.count = T.Bind(T.truncdiv(tirx.max(left, 0), self.turns))
        self.base = Scalar(
            T.cuda.cvta_generic_to_shared(kernel.ring.ptr_to([kernel.warp, 0, 0, 0])), "uint32"
        )()
        if kernel.cache.page_size:
            self._pages = [Scalar(self._page_of(stage)) for stage in range(split.stages)]
        else:
            self._rows = {name: T.Bind(self._rows_of(name, kernel.sequence)) for name in "kv"}

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
        dim = kernel.sizes.head_dim
        key = self.key(step)
        first, end = key, kernel.length
        if kernel.cache.page_size:
            first = T.Bind(T.truncmod(key, kernel.cache.page_size))
            end = kernel.length - key + first
        apart = kernel.sizes.kv_heads if kernel.cache.beside else 1
        pieces = dim // 8  # of 16 bytes, a row
        for which, name in enumerate("kv"):
            paged = kernel.cache.page_size > 0
            rows = T.Bind(self._rows_of(name, self._pages[page]())) if paged else self._rows[name]
            for i in range(kernel.split.keys * pieces // 32):
                piece = i * 32 + kernel.lane
                row, column = T.truncdiv(piece, pieces), T.truncmod(piece, pieces)
                inside = row * pitch(dim) + (column ^ (row % 8)) * 16
                do(
                    c_call(
                        "void", "copy_row_piece", self.place(stage, which) + T.Cast("uint32", inside),
                        rows, first + row, 2 * dim * apart, column * 16, end, source=_COPY,
                    )
                )  # fmt: skip
