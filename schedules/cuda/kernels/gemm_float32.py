"""The kernel of `Float32Gemm`: products of float32 on CUDA cores, for GPUs from compute capability 8.0 on.

Tiles come to a ring of stages in shared memory, where both factors lie across k (`streamed_floats`).
Threads multiply as those of `kernels.gemm_simt` do, warp by warp: the lanes of a warp are a grid
(A. Kerr et al., CUTLASS: Fast Linear Algebra in CUDA C++, 2017), such that neighbours read one
address together and a read of four takes half of the cycles. What the next k needs is read while
this one is multiplied, and that of the next stage, too. Small products have few tiles: groups of
warps sum slices of each step's k apart, blocks of a cluster stretches of all of k, and they add up
their sums in a fixed order.

What lies beyond the rows of an array is copied from its last: nobody stores such results. The first
step takes of k what the others leave, and zeros: no other need look for an end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.in_order import IN_ORDER
from tvmops.schedules.cuda.kernels.float32_sums import MeetingSums
from tvmops.schedules.cuda.kernels.gemm_simt import FOUR, SimtKernel, SimtTiles
from tvmops.schedules.cuda.kernels.product import Product, finished
from tvmops.schedules.cuda.kernels.streamed_floats import Streamed
from tvmops.schedules.cuda.words import (
    PROGRAMMATIC_LAUNCH,
    Scalar,
    do,
    let_next_kernel_begin,
    ptx,
    when,
)

_GRIDS = ((8, 4), (4, 8), (16, 2), (2, 16))  # of lanes
_MULTIPROCESSOR_REGISTERS, _SCARCE_REGISTERS = 65_536, 128  # of a thread: as many are scarce


@dataclass(frozen=True)
class Float32Tiles(SimtTiles):
    stages: int
    a_vector: int  # elements of a copy
    b_vector: int
    beside: int  # blocks that share a multiprocessor
    slices: int = 1  # of each step's k, that groups of warps sum apart
    splits: int = 1  # blocks of a cluster, which share k
    chained: int = 0  # launched while the kernel before it ends

    @property
    def threads(self) -> int:
        return self.slices * self.threads_of_slice

    @property
    def threads_of_slice(self) -> int:
        return super().threads

    @property
    def fours(self) -> int:
        """Sums of a thread, by four."""
        return self.tm * self.tn // FOUR

    @property
    def meets(self) -> bool:
        """Whether sums of several threads are added up."""
        return self.slices * self.splits > 1

    @property
    def shared_bytes(self) -> int:
        ring = self.stages * self.bk * (self.bm + self.bn + 2 * FOUR)
        return 4 * max(ring, self.bm * self.bn if self.meets else 0)

    @property
    def registers(self) -> int:
        """Registers of a thread for sums, and for factors of this k and of the next."""
        return self.tm * self.tn + 2 * (self.tm + self.tn)

    @property
    def has_room(self) -> bool:
        """Whether a thread may have so many registers that the order of the source needs no spills."""
        return _MULTIPROCESSOR_REGISTERS // (self.threads * self.beside) > _SCARCE_REGISTERS

    @property
    def grid(self) -> tuple[int, int] | None:
        """Lanes of a warp, one above the other and side by side: the squarest tile of a warp that fits."""
        fitting = [
            (down, across)
            for down, across in _GRIDS
            if self.bm % (self.tm * down) == 0 and self.bn % (self.tn * across) == 0
        ]
        return min(fitting, key=lambda grid: abs(self.tm * grid[0] - self.tn * grid[1]), default=None)


class Float32Kernel(SimtKernel):
    """`main(a, b, [bias], [residual], c)`."""

    tiles: Float32Tiles
    a: Streamed
    b: Streamed

    def __init__(self, product: Product, tiles: Float32Tiles) -> None:
        super().__init__(product, tiles, "float32", "float32")
        self.align, self.beside = 16 if max(tiles.a_vector, tiles.b_vector) == 4 else 4, tiles.beside

    def module(self) -> IRModule:
        module = super().module()
        if self.tiles.has_room:
            module["main"] = module["main"].with_attr(*IN_ORDER)
        if self.tiles.chained:
            module["main"] = module["main"].with_attr(*PROGRAMMATIC_LAUNCH)
        return module

    def factors(self, a: Any, b: Any) -> tuple[Streamed, Streamed]:
        p, t = self.product, self.tiles
        assert t.grid is not None
        down, across = t.grid
        return (
            Streamed(a, p.m, p.k, not p.trans_a, t.bm, t.tm, down, t.a_vector),
            Streamed(b, p.n, p.k, p.trans_b, t.bn, t.tn, across, t.b_vector),
        )

    def reserve(self, pool: Any) -> None:
        self.meeting = MeetingSums(self.tiles, pool) if self.tiles.meets else None

    def place(self, warp: Any, lane: Any) -> tuple[Any, Any]:
        """Return a thread's first row and column."""
        t = self.tiles
        assert t.grid is not None
        own_row, own_column = place_of_lane(lane, t.grid)
        across, warps = t.bn // (t.tn * t.grid[1]), t.threads_of_slice // 32
        self.part = T.Bind(T.truncdiv(warp, warps)) if t.slices > 1 else 0
        warp = T.truncmod(warp, warps) if t.slices > 1 else warp
        self.a.part = self.b.part = self.part
        row = T.truncdiv(warp, across) * (t.tm * t.grid[0]) + own_row * FOUR
        return row, T.truncmod(warp, across) * (t.tn * t.grid[1]) + own_column * FOUR

    def _tile(self, count: Any) -> Any:
        splits = self.tiles.splits
        if splits == 1:
            self.rank: Any = 0
            return super()._tile(count)
        block = T.cta_id([count * splits])
        self.rank = T.cta_id_in_cluster([splits])
        return T.Bind(T.truncdiv(block, splits))

    def _multiply_all(self) -> None:
        t = self.tiles
        self.first = self.row, self.column
        if self.a.is_whole:
            self.row = T.Bind(tirx.min(self.row, self.product.m - t.bm))
        if self.b.is_whole:
            self.column = T.Bind(tirx.min(self.column, self.product.n - t.bn))
        if t.chained:
            ptx("griddepcontrol.wait")
        count, left = self._begin()
        for stage in range(t.stages - 1):
            with when(stage < count):
                self._copy(stage, None if stage else left)
            ptx("cp.async.commit_group")
        use, fill = Scalar(0), Scalar(t.stages - 1)
        self._await()
        for read in self._reads(use(), 0):
            read()
        with T.serial(count) as step:
            self._multiply_step(use, fill, T.Bind(step + (t.stages - 1) < count))
        ptx("cp.async.wait_group", 0)
        if t.chained:
            let_next_kernel_begin()

    def _begin(self) -> tuple[Any, Any]:
        """Aim at this block's stretch of k; return its steps, and how much the first of them takes."""
        t = self.tiles
        k = Scalar(self.product.k)()
        steps = T.Bind(T.truncdiv(k + (t.bk - 1), t.bk))
        rest = T.Bind(k - (steps - 1) * t.bk)
        first = T.Bind(T.truncdiv(steps * self.rank, t.splits))
        for each, origin in ((self.a, self.row), (self.b, self.column)):
            each.aim(origin)
            if each.fetches:
                each.begin_fetching()
            if t.splits > 1:
                with when(self.rank > 0):
                    each.advance(rest + (first - 1) * t.bk)
        if t.splits == 1:
            return steps, rest
        count = T.Bind(T.truncdiv(steps * (self.rank + 1), t.splits) - first)
        return count, T.Bind(tirx.Select(self.rank == 0, rest, t.bk))

    def _multiply_step(self, use: Scalar, fill: Scalar, ahead: Any) -> None:
        """Multiply a stage, and begin to copy another if one is `ahead`; read the first of what follows."""
        t = self.tiles
        count = t.bk // t.slices
        for k in range(count):
            if k == count - 1:
                self._await()
                use.set(following(use(), t.stages))
            reads = self._reads(use(), (k + 1) % count)
            if k == 0:
                with when(ahead):
                    self._copy(fill(), fetches=True)
                ptx("cp.async.commit_group")
            if k == max(count - 2, 0):
                with when(ahead):
                    self._put(fill())
                fill.set(following(fill(), t.stages))
            self._multiply_while(k, reads)

    def _multiply_while(self, k: int, reads: list[Callable[[], None]]) -> None:
        """Multiply, while what the next k needs is read bit by bit.

        Each row begins where the last ended: two of three registers that a multiplication reads are
        then another column's or row's and a sum, one of each bank, and the third is kept from before.
        """
        t, count = self.tiles, len(reads)
        for i in range(t.tm):
            for column in range(t.tn):
                while reads and (i * t.tn + column) * count >= (count - len(reads)) * t.tm * t.tn:
                    reads.pop(0)()
                j = column if i % 2 == 0 else t.tn - 1 - column
                self._multiply_one(k, i, j)

    def _await(self) -> None:
        """Wait until the next stage is there for all threads."""
        ptx("cp.async.wait_group", self.tiles.stages - 2)
        do(T.cuda.cta_sync())

    def _reads(self, stage: Any, k: int) -> list[Callable[[], None]]:
        return [*self.a.reads(stage, k, self.ty), *self.b.reads(stage, k, self.tx)]

    def _copy(self, stage: Any, left: Any = None, fetches: bool = False) -> None:
        """Begin to copy the next tiles, of all values of k or of so many as the others leave."""
        for each in (self.a, self.b):
            if fetches and each.fetches:
                each.fetch()
            else:
                each.copy(stage, left)
            each.advance(self.tiles.bk if left is None else left)

    def _put(self, stage: Any) -> None:
        """Write to a stage what came through registers."""
        for each in (self.a, self.b):
            if each.fetches:
                each.put(stage)

    def _store(self) -> None:
        if self.meeting is None:
            for i in range(self.tiles.fours):
                self._store_four(i)
            return
        self.meeting.meet(self.sums, self.part, self.rank, self.a.thread, self._store_four)

    def _store_four(self, four: int) -> None:
        """Finish and store four neighbours of a row: one by one, or sums would have to lie in fours before."""
        p, t = self.product, self.tiles
        i, j = four * FOUR // t.tn, four * FOUR % t.tn
        row = T.Bind(self.row + self.a.place_of(self.ty, i))
        column = T.Bind(self.column + self.b.place_of(self.tx, j))
        place = [self.item, row] if p.is_batched else [row]
        # of tiles that begin early, others store the first rows and columns
        with when(row >= self.first[0] if self.a.is_whole else row < p.m):
            for e in range(FOUR):
                with when(column + e >= self.first[1] if self.b.is_whole else column + e < p.n):
                    value = self.sums[four * FOUR + e]
                    done = finished(p, self.bias, self.residual, value, place, column + e)
                    T.buffer_store(self.c, done, [*place, column + e])


def place_of_lane(lane: Any, grid: tuple[int, int]) -> tuple[Any, Any]:
    """Return where a lane stands in its grid. Lanes beside one another share a row or a column."""
    places: list[Any] = [0, 0]
    weights = [1, 1]
    for bit in range(5):
        side = bit % 2 if weights[bit % 2] < grid[bit % 2] else 1 - bit % 2
        places[side] = places[side] + (lane >> bit & 1) * weights[side]
        weights[side] *= 2
    return places[0], places[1]


def following(stage: Any, stages: int) -> Any:
    return tirx.Select(stage == stages - 1, 0, stage + 1)
