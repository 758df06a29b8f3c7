"""The kernels of `softmax_columns`: softmax along an axis that is not the last.

A block takes neighbouring columns, `lanes` vectors of them, and its threads share their length, as the
blocks of a cluster may. What a thread can't keep in registers is read twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, ceildiv
from tvmops.schedules.cuda.kernels.attention_meeting import SEND_TWO, await_all_here, say_here
from tvmops.schedules.cuda.kernels.row_stats import SoftmaxStats
from tvmops.schedules.cuda.kernels.row_values import WARP
from tvmops.schedules.cuda.row_memory import load_vector, parts_of, store_vector, unpack
from tvmops.schedules.cuda.words import Barriers, Scalar, c_call, do, ptx, tie, when

DEPTH = 4  # vectors that a thread has on their way at once


@dataclass(frozen=True)
class ColumnShape:
    rows: Extent
    cols: Extent  # along which sums go
    inner: Extent  # columns side by side
    dtype: str
    log: bool
    scaled: bool
    mask_rows: Extent  # 0: there is no mask


@dataclass(frozen=True)
class ColumnTiles:
    threads: int
    lanes: int  # vectors of columns
    width: int  # columns of a vector
    cluster: int  # blocks that share the length of columns
    kept: int  # vectors that a thread keeps, a multiple of DEPTH
    stream: bool  # writes pass the caches
    resident: int  # blocks for which a multiprocessor is to have registers

    @property
    def groups(self) -> int:
        """Threads of a block that share a vector of columns."""
        return self.threads // self.lanes

    @property
    def columns(self) -> int:
        return self.lanes * self.width


class ColumnKernel:
    def __init__(self, shape: ColumnShape, tiles: ColumnTiles) -> None:
        self.shape, self.tiles = shape, tiles
        self.parts = parts_of(shape.dtype, tiles.width)

    def module(self) -> IRModule:
        with IRBuilder() as builder, T.prim_func():
            T.func_name("main")
            self._arguments()
            T.device_entry()
            with T.attr({"tirx.launch_bounds_min_blocks_per_sm": self.tiles.resident}):
                self._body()
        return IRModule({"main": builder.get().with_attr("global_symbol", "main")})

    def _arguments(self) -> None:
        s = self.shape
        sizes: dict[str, tuple[Extent, ...]] = {"x": (s.rows, s.cols, s.inner)}
        if not (isinstance(s.mask_rows, int) and s.mask_rows == 0):
            sizes["mask"] = (s.mask_rows, s.cols, s.inner)
        self.arrays = {name: self._array(name, size) for name, size in sizes.items()}
        if s.scaled:
            self.scale = T.arg("scale", T.float32())
        self.out = self._array("out", sizes["x"])

    def _array(self, name: str, shape: tuple[Extent, ...]) -> Any:
        return T.arg(name, T.buffer(shape, self.shape.dtype, align=16, buffer_name=name))

    def _body(self) -> None:
        s, t = self.shape, self.tiles
        strips = ceildiv(s.inner, t.columns)
        block = T.cta_id([s.rows * strips * t.cluster])
        self.rank = T.cta_id_in_cluster([t.cluster]) if t.cluster > 1 else 0
        warp, lane = T.warp_id([t.threads // WARP]), T.lane_id([WARP])
        self.thread = T.Bind(warp * WARP + lane)
        # Through variables, lest what the launch computes becomes arguments of the kernel.
        self.cols, self.inner = (
            size if isinstance(size, int) else T.Bind(Scalar(size)()) for size in (s.cols, s.inner)
        )
        strips = T.Bind(T.truncdiv(Scalar(self.inner)() + (t.columns - 1), t.columns))
        tile = T.Bind(T.truncdiv(block, t.cluster))
        self.row = T.Bind(T.truncdiv(tile, strips))
        self.place, self.group = T.truncmod(self.thread, t.lanes), T.Bind(T.truncdiv(self.thread, t.lanes))
        self.column = T.Bind(T.truncmod(tile, strips) * t.columns + self.place * t.width)
        beyond = tirx.any(self.group >= t.groups, self.column >= self.inner)
        first = self.rank * t.groups + self.group
        self.first = T.Bind(tirx.Select(beyond, self.cols, first))
        self.floats = T.alloc_local((DEPTH * t.width,), "float32")
        self.more = T.alloc_local((t.width,), "float32")
        self._begin_to_meet()
        self.stats = [SoftmaxStats(self.cols, s.log) for _ in range(t.width)]
        kept = self._registers(t.kept)
        for step in range(t.kept):
            self._load(kept, step, self._along(step), "__ldcs")
        for step in range(0, t.kept, DEPTH):
            self._absorb(kept, step, self._along(step))
        self._each_of_rest("__ldg", self._absorb)
        self._meet()
        for raw in kept.values():
            tie(raw, t.kept * self.parts, "r")  # unpacked again: floats of all would take more registers
        for step in range(0, t.kept, DEPTH):
            self._finish(kept, step, self._along(step))
        self._each_of_rest("__ldcs", self._finish)

    # Vectors along the columns.

    @property
    def _stride(self) -> int:
        return self.tiles.groups * self.tiles.cluster

    def _along(self, step: int) -> Any:
        return self.first + step * self._stride

    def _registers(self, vectors: int) -> dict[str, Any]:
        length = vectors * self.parts
        return {name: T.alloc_local((length,), "uint32") for name in self.arrays} if vectors else {}

    def _load(self, raw: dict[str, Any], step: int, along: Any, how: str) -> None:
        with when(along < self.cols):
            for name, registers in raw.items():
                row = T.truncmod(self.row, self.shape.mask_rows) if name == "mask" else self.row
                pointer = self.arrays[name].ptr_to([T.Cast("int64", row), along, self.column])
                load_vector(registers, step * self.parts, pointer, self.shape.dtype, self.tiles.width, how)

    def _each_of_rest(self, how: str, visit: Callable[[dict[str, Any], int, Any], None]) -> None:
        t = self.tiles
        if isinstance(self.shape.cols, int) and t.kept * self._stride >= self.shape.cols:
            return
        raw, along = self._registers(DEPTH), Scalar(self._along(t.kept))
        with T.While(along() < self.cols):
            for step in range(DEPTH):
                self._load(raw, step, along() + step * self._stride, how)
            visit(raw, 0, along())
            along.set(along() + DEPTH * self._stride)

    def _sum_up(self, raw: dict[str, Any], step: int, to: int) -> None:
        """Leave x as floats, scaled, with the mask."""
        width, dtype = self.tiles.width, self.shape.dtype
        unpack(self.floats, to, raw["x"], step * self.parts, dtype, width)
        for i in range(to, to + width) if self.shape.scaled else ():
            T.buffer_store(self.floats, self.floats[i] * self.scale, [i])
        if "mask" in raw:
            unpack(self.more, 0, raw["mask"], step * self.parts, dtype, width)
            for i in range(width):
                T.buffer_store(self.floats, self.floats[to + i] + self.more[i], [to + i])

    def _absorb(self, raw: dict[str, Any], step: int, along: Any) -> None:
        """Add `DEPTH` vectors from `step` on."""
        width = self.tiles.width
        for d in range(DEPTH):
            with T.If(along + d * self._stride < self.cols):
                with T.Then():
                    self._sum_up(raw, step + d, d * width)
                with T.Else():
                    for i in range(width):
                        T.buffer_store(self.floats, T.float32(float("-inf")), [d * width + i])
        for i, stats in enumerate(self.stats):
            stats.absorb([self.floats[d * width + i] for d in range(DEPTH)], DEPTH, None)

    def _finish(self, raw: dict[str, Any], step: int, along: Any) -> None:
        for d in range(DEPTH):
            at = along + d * self._stride
            with when(at < self.cols):
                self._sum_up(raw, step + d, 0)
                for i, stats in enumerate(self.stats):
                    T.buffer_store(self.floats, stats.applied(self.floats[i]), [i])
                out = self.out.ptr_to([T.Cast("int64", self.row), at, self.column])
                store_vector(out, self.floats, 0, self.shape.dtype, self.tiles.width, self.tiles.stream)

    # The meeting of all that share columns.

    def _begin_to_meet(self) -> None:
        t, pool = self.tiles, SMEMPool()
        self.slots = pool.alloc((t.groups, t.columns, 2), "float32", align=16)
        self.received = pool.alloc((t.cluster, t.columns, 2), "float32", align=16)
        self.all_here = Barriers(pool, 1, 1)
        pool.commit()
        if t.cluster > 1:
            with when(self.thread == 0):
                self.all_here.init()
                ptx("fence.mbarrier_init.release.cluster")
            do(T.cuda.warp_sync())
            say_here()

    def _meet(self) -> None:
        """Make the statistics of this thread those of its columns."""
        t = self.tiles
        with when(self.group < t.groups):
            for i, stats in enumerate(self.stats):
                for k, value in enumerate(stats.of):
                    T.buffer_store(self.slots, value(), [self.group, self.place * t.width + i, k])
        do(T.cuda.cta_sync())
        if t.cluster > 1:
            await_all_here()  # memory of a block that has not begun is no place
            with when(self.thread == 0):
                self.all_here.expect(0, t.cluster * t.columns * 8)
        with T.serial(ceildiv(t.columns, t.threads)) as turn:
            column = T.Bind(turn * t.threads + self.thread)
            with when(column < t.columns):
                self._join_block(column)
        if t.cluster > 1:
            do(T.cuda.mbarrier_wait_acquire_cluster(self.all_here.at(0), 0))
        else:
            do(T.cuda.cta_sync())
        for i, stats in enumerate(self.stats):
            own = self.place * t.width + i
            shares = [[self.received[rank, own, k] for k in range(2)] for rank in range(t.cluster)]
            stats.join(shares, 1)
            stats.finish()

    def _join_block(self, column: Any) -> None:
        """Tell all blocks what this one knows of a column."""
        t, known = self.tiles, SoftmaxStats(self.cols, self.shape.log)
        with T.serial(t.groups) as group:
            other = [self.slots[group, column, k] for k in range(2)]
            known.join([[each() for each in known.of], other], 1)
        if t.cluster == 1:
            for k, value in enumerate(known.of):
                T.buffer_store(self.received, value(), [0, column, k])
            return
        with T.serial(t.cluster) as rank:
            to, values = self.received.ptr_to([self.rank, column, 0]), [each() for each in known.of]
            do(c_call("void", "send_two", to, self.all_here.at(0), rank, *values, source=SEND_TWO))
