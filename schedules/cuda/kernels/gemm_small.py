"""The kernel of `SmallGemm`: small products with mma.sync, of which a block has all of k.

Most of what a small product takes is waiting: for the launch, for memory, for each other. So a
block asks for all that it multiplies at once, and waits once; larger ones in a few chunks of k,
of which one is multiplied while others come. Sizes are known when the kernel is made, so that no
thread divides to find its part.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.kernels.flat_results import FlatResults, flat_bytes
from tvmops.schedules.cuda.kernels.gemm_mma import STORE_PAIR, MmaKernel, MmaTiles
from tvmops.schedules.cuda.kernels.mma_operand import Operand
from tvmops.schedules.cuda.kernels.product import Product, finished
from tvmops.schedules.cuda.kernels.shifted_operand import ShiftedOperand
from tvmops.schedules.cuda.kernels.whole_operand import STEP, WholeOperand
from tvmops.schedules.cuda.pieces import PIECE
from tvmops.schedules.cuda.words import Scalar, c_call, do, let_next_kernel_begin, pack, ptx, when

_ROWS = 16  # of a product
_KINDS = {8: "uint4", 4: "uint2", 2: "unsigned"}
_STORE_PART = """
__forceinline__ __device__ void store_part_{width}(void* c, long long at, const void* line, int unit) {{
  {kind}* to = reinterpret_cast<{kind}*>(static_cast<unsigned short*>(c) + at);
  to[unit] = static_cast<const {kind}*>(line)[unit];
}}
"""
# The same where rows begin anywhere: words of the array, and what is left of a row at both ends.
_STORE_LOOSE = """
__forceinline__ __device__ void store_loose(void* c, long long at, const void* line, int unit, int count) {
  const int first = 2 * unit - static_cast<int>(at & 1);
  const unsigned short* from = static_cast<const unsigned short*>(line) + first;
  unsigned short* to = static_cast<unsigned short*>(c) + at + first;
  if (first >= 0 && first + 1 < count) *reinterpret_cast<unsigned*>(to) = from[0] | from[1] << 16;
  else if (first >= 0 && first < count) to[0] = from[0];
  else if (first < 0) to[1] = from[1];
}
"""


@dataclass(frozen=True)
class SmallTiles(MmaTiles):
    """`stages` of the ring that chunks of `bk` of k go through: as many as chunks, or fewer."""

    bk: int = 0

    def is_flat(self, n: int) -> bool:
        """Say whether a block stores its rows as one stretch; else each is in vectors, or not whole."""
        return n % PIECE != 0 and n <= self.bn


class SmallKernel(MmaKernel):
    """`main(a, b, [bias], [residual], c)`; of the sizes the batch alone may be unknown."""

    alignment = 128  # of factors in shared memory: as many bytes are lost, at most
    tiles: SmallTiles
    a: WholeOperand
    b: WholeOperand

    def __init__(self, product: Product, tiles: SmallTiles, chained: int, asks: bool) -> None:
        super().__init__(product, tiles, bool(chained))
        self.operand = functools.partial(self.operand_of, bk=tiles.bk)
        self.is_flat = tiles.is_flat(int(product.n))
        # 1: when all is asked for; 2: when it has come. Earlier, it would take places of this one's blocks.
        self.launches_next, self.asks = chained, asks

    @classmethod
    def operand_of(
        cls, array: Any, extent: Extent, k: Extent, k_inner: bool, block: int, vector: int, bk: int
    ) -> WholeOperand:
        """Return a factor, by how its rows can be copied."""
        kind = ShiftedOperand if vector == 1 else WholeOperand
        return kind(array, extent, k, k_inner, block, vector, bk)

    def _locate(self, block: Any, rows: Any, columns: Any) -> None:
        self.item = T.Bind(T.truncdiv(block, rows * columns))
        at = T.Bind(T.truncmod(block, rows * columns))
        self.row = T.Bind(T.truncdiv(at, columns) * self.tiles.bm)
        self.column = T.Bind(T.truncmod(at, columns) * self.tiles.bn)

    def _slice(self, operand: Operand, name: str) -> Any:
        """Also tell where the matrix lies in its array: vectors are read that reach beyond the matrix."""
        assert isinstance(operand, WholeOperand)
        p = self.product
        elements = int(operand.extent) * int(operand.k)
        alone = not p.is_batched or p.shared == name
        operand.first = T.Cast("int64", 0 if alone else self.item) * elements
        operand.size = T.Cast("int64", 1 if alone else p.batch) * elements
        return super()._slice(operand, name)

    def _wait(self) -> None:
        """Wait for the kernel before; factors come to the L2 meanwhile."""
        if self.asks:
            for each, origin in ((self.a, self.row), (self.b, self.column)):
                each.ask(origin)
        ptx("griddepcontrol.wait")

    def _multiply_all(self) -> None:
        t, k = self.tiles, int(self.product.k)
        chunks = -(-k // t.bk)
        ahead = chunks if t.stages == chunks else t.stages - 1  # what is asked for before the first is used
        for chunk in range(ahead):
            self._copy(chunk)
        for chunk in range(chunks):
            asked = min(ahead + chunk, chunks)
            if self.launches_next == 1 and asked == chunks and (chunk == 0 or chunk + ahead == chunks):
                let_next_kernel_begin()
            ptx("cp.async.wait_group", asked - chunk - 1)
            self._publish(rewrites=0 < chunk and asked < chunks)
            do(T.cuda.cta_sync())
            if self.launches_next == 2 and chunk + 1 == chunks:
                let_next_kernel_begin()
            if asked < chunks:
                self._copy(asked)
            self._shift(chunk)
            self._multiply_chunk(chunk % t.stages, -(-min(t.bk, k - chunk * t.bk) // STEP))

    def _publish(self, rewrites: bool) -> None:
        """What this thread copied is about to be read by others; what was read is then copied over, or not."""

    def _multiply_chunk(self, stage: int, steps: int) -> None:
        for step in range(steps):
            self._load_parts(stage, step)
            self._multiply()

    def _copy(self, chunk: int) -> None:
        """Begin to copy a chunk."""
        for each, origin in ((self.a, self.row), (self.b, self.column)):
            each.copy(chunk % self.tiles.stages, origin, chunk * self.tiles.bk)
        ptx("cp.async.commit_group")

    def _shift(self, chunk: int) -> None:
        """Shift what came as its rows lie in the array."""
        for each, origin in ((self.a, self.row), (self.b, self.column)):
            if each.shifts:
                place = (chunk % self.tiles.stages, origin, chunk * self.tiles.bk)
                each.shift(*place, self.warp, self.lane)
        if self.a.shifts or self.b.shifts:
            self._publish(rewrites=False)
            do(T.cuda.cta_sync())

    # The end: sums go through shared memory, so that neighbours are stored together.

    def _share(self, pool: Any) -> None:
        for each in (self.a, self.b):
            each.ring = pool.alloc((each.nbytes(self.tiles.stages),), "uint8", align=self.alignment)
        pool.move_base_to(0)  # when those have been read
        self.lines = pool.alloc((results_bytes(self.product, self.tiles),), "uint8", align=16)

    def _store(self) -> None:
        do(T.cuda.cta_sync())  # the factors, whose place they take, are read
        if self.is_flat:
            self._store_flat()
        else:
            self._store_by_warps()

    def _store_flat(self) -> None:
        p, lane = self.product, self.lane
        m, n = int(p.m), int(p.n)
        start = T.Bind(T.Cast("int64", self.item) * (m * n) + T.Cast("int64", self.row * n))
        results = FlatResults(self.lines, n, T.Bind(T.Cast("int32", T.truncmod(start, PIECE))))
        row, column = T.Bind(self._warp_row()), T.Bind(self._warp_column() + lane % 4 * 2)
        own = T.Bind(T.truncdiv(lane, 4))
        for part in range(self.m_parts):
            for half in range(2):
                inside = T.Bind(row + part * _ROWS + own + half * 8)
                first = part * self.n_parts * 4 + half * 2
                pairs = [
                    self._pair(self.row + inside, column + j * 8, first + j * 4) for j in range(self.n_parts)
                ]
                results.put(inside, column, own, pairs)
        do(T.cuda.cta_sync())
        results.store(self.c, start, tirx.min(m - self.row, self.tiles.bm), self.thread, self.threads)

    def _store_by_warps(self) -> None:
        t, lane = self.tiles, self.lane
        pitch = line_bytes(t)
        first = T.Bind(self.warp * (_ROWS * pitch))
        row, column = T.Bind(self.row + self._warp_row()), T.Bind(self.column + self._warp_column())
        for part in range(self.m_parts):
            for half in range(2):
                own = T.truncdiv(lane, 4) + half * 8
                for j in range(self.n_parts):
                    inside = lane % 4 * 2 + j * 8
                    at = (part * self.n_parts + j) * 4 + half * 2
                    pair = self._pair(row + part * _ROWS + own, column + inside, at)
                    memory = self.lines.ptr_to([first + own * pitch + inside * 2])
                    do(c_call("void", "store_pair", memory, pair, source=STORE_PAIR))
            do(T.cuda.warp_sync())
            self._store_lines(row + part * _ROWS, column, first)
            if part + 1 < self.m_parts:
                do(T.cuda.warp_sync())

    def _pair(self, row: Any, column: Any, at: int) -> Any:
        """Return two neighbours, finished and rounded; those beyond the ends read what lies within."""
        p = self.product
        row = T.Cast("int64", tirx.min(row, p.m - 1))
        place = [self.item, row] if p.is_batched else [row]
        values = [
            Scalar(finished(p, self.bias, self.residual, self.sums[at + i], place, each), "float32")()
            for i, each in enumerate(tirx.min(column + i, p.n - 1) for i in range(2))
        ]
        return pack(p.dtype, *values)

    def _store_lines(self, row: Any, column: Any, first: Any) -> None:
        """Store a warp's 16 rows, as many neighbours together as rows begin at multiples of."""
        p, t = self.product, self.tiles
        m, n = int(p.m), int(p.n)
        width = next(width for width in (8, 4, 2, 1) if n % width == 0)
        units = t.wn // width if width > 1 else t.wn // 2 + 1
        for begin in range(0, _ROWS * units, 32):
            at = T.Bind(begin + self.lane)
            own, unit = T.Bind(T.truncdiv(at, units)), T.Bind(T.truncmod(at, units))
            line = self.lines.ptr_to([first + own * line_bytes(t)])
            there = tirx.And(row + own < m, column + unit * width < n)
            with when(tirx.And(at < _ROWS * units, there) if begin + 32 > _ROWS * units else there):
                start = T.Cast("int64", self.item) * (m * n) + T.Cast("int64", (row + own) * n + column)
                part = (self.c.data, start, line, unit)
                if width > 1:
                    source = _STORE_PART.format(width=width, kind=_KINDS[width])
                    do(c_call("void", f"store_part_{width}", *part, source=source))
                else:
                    count = tirx.min(n - column, t.wn)
                    do(c_call("void", "store_loose", *part, count, source=_STORE_LOOSE))


def line_bytes(tiles: SmallTiles) -> int:
    """Return the bytes from one of a warp's rows of results to the next, which starts in other banks."""
    return tiles.wn * 2 + 16


def results_bytes(product: Product, tiles: SmallTiles) -> int:
    """Return the bytes that results need on their way."""
    if tiles.is_flat(int(product.n)):
        return flat_bytes(tiles.bm, int(product.n))
    return tiles.warps * _ROWS * line_bytes(tiles)


def shared_bytes(product: Product, tiles: SmallTiles, kernel: type[SmallKernel] = SmallKernel) -> int:
    """Return the bytes of shared memory of a block."""
    a = kernel.operand_of(None, product.m, product.k, not product.trans_a, tiles.bm, tiles.a_vector, tiles.bk)
    b = kernel.operand_of(None, product.n, product.k, product.trans_b, tiles.bn, tiles.b_vector, tiles.bk)
    factors = sum(each.nbytes(tiles.stages) + kernel.alignment for each in (a, b))
    return max(factors, results_bytes(product, tiles))
