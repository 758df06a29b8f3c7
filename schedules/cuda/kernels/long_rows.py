"""The kernels of `long_rows`: softmax, layer_norm and rms_norm of rows of any length that begin anywhere.

The blocks of a cluster share a row. A thread keeps `kept` vectors of it in registers, as they lie in
memory; what is beyond these is read twice, the second time mostly from the L2. In between, each warp
sends what it knows of the row to all blocks of the cluster, so that they meet once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.attention_meeting import SEND_FOUR, await_all_here, say_here
from tvmops.schedules.cuda.kernels.row_stats import NormStats, RowStats, SoftmaxStats, SquareStats
from tvmops.schedules.cuda.kernels.row_values import WARP
from tvmops.schedules.cuda.kernels.rows import RowShape
from tvmops.schedules.cuda.loose_memory import full_width, load_loose, store_loose
from tvmops.schedules.cuda.row_memory import unpack
from tvmops.schedules.cuda.words import Barriers, Scalar, c_call, do, ptx, tie, when

PARTS = 4  # registers of a vector
_SLOT = 4  # floats of a share, at most


@dataclass(frozen=True)
class LongTiles:
    threads: int  # a block
    cluster: int  # blocks that share a row
    kept: int  # vectors of a row that a thread keeps
    depth: int  # those of the rest that it has on their way at once; 0: there is no rest
    ahead: bool  # weight and bias come before the blocks meet
    stream: bool  # writes pass the caches
    resident: int  # blocks for which a multiprocessor is to have registers

    @property
    def team(self) -> int:
        """Threads that share a row."""
        return self.threads * self.cluster

    @property
    def warps(self) -> int:
        return self.threads // WARP


class LongRowKernel:
    def __init__(self, shape: RowShape, tiles: LongTiles) -> None:
        self.shape, self.tiles = shape, tiles
        self.width = full_width(shape.dtype)
        self.aligned = isinstance(shape.cols, int) and shape.cols % self.width == 0

    def module(self) -> IRModule:
        with IRBuilder() as builder, T.prim_func():
            T.func_name("main")
            self._arguments()
            T.device_entry()
            with T.attr({"tirx.launch_bounds_min_blocks_per_sm": self.tiles.resident}):
                self._body()
        return IRModule({"main": builder.get().with_attr("global_symbol", "main")})

    def _arguments(self) -> None:
        shape, whole = self.shape, (self.shape.rows, self.shape.cols)
        inputs: dict[str, tuple[Any, ...]] = {"x": whole}
        inputs |= {name: (shape.cols,) for name in ("weight", "bias") if getattr(shape, name)}
        if shape.residual:
            inputs["residual"] = whole
        if not (isinstance(shape.mask_rows, int) and shape.mask_rows == 0):
            inputs["mask"] = (shape.mask_rows, shape.cols)
        self.arrays = {name: self._array(name, size) for name, size in inputs.items()}
        if shape.op != "softmax" or shape.scaled:
            self.scalar = T.arg("scale" if shape.op == "softmax" else "eps", T.float32())
        self.out = self._array("out", whole)
        self.sum = self._array("sum", whole) if shape.residual else None

    def _array(self, name: str, shape: tuple[Any, ...]) -> Any:
        return T.arg(name, T.buffer(shape, self.shape.dtype, align=16, buffer_name=name))

    def _body(self) -> None:
        t = self.tiles
        block = T.cta_id([self.shape.rows * t.cluster])
        self.rank = T.cta_id_in_cluster([t.cluster]) if t.cluster > 1 else 0
        self.warp, self.lane = T.warp_id([t.warps]), T.lane_id([WARP])
        self.thread = self.warp * WARP + self.lane
        self.row = T.Bind(T.truncdiv(block, t.cluster))
        # Through variables, lest what the launch computes becomes arguments of the kernel.
        self.cols = self.shape.cols if isinstance(self.shape.cols, int) else T.Bind(Scalar(self.shape.cols)())
        start = T.Cast("int64", self.row) * T.Cast("int64", self.cols)
        shift = 0 if self.aligned else T.Cast("int32", T.truncmod(start, T.int64(self.width)))
        self.first = T.Bind((self.rank * t.threads + self.thread) * self.width - shift)
        self.stats = self._stats()
        self._begin_to_meet()
        self.names = {"once": [n for n in self.arrays if n not in ("weight", "bias")]}
        self.names["factors"] = [n for n in self.arrays if n in ("weight", "bias")]
        self.floats = T.alloc_local((self.width,), "float32")
        self.more = T.alloc_local((self.width,), "float32")
        kept = self._registers("once", t.kept)
        self._load(kept, range(t.kept), self._column, "__ldcs")
        factors = self._registers("factors", t.kept if t.ahead else 0)
        self._load(factors, range(t.kept) if t.ahead else range(0), self._column, "__ldg")
        for step in range(t.kept):
            self._absorb(kept, step, self._column(step), self._is_whole(step))
        self._each_of_rest("__ldg", lambda raw, step, column: self._absorb(raw, step, column, False))
        self._meet()
        for raw in (*kept.values(), *factors.values()):
            if t.kept:
                tie(raw, t.kept * PARTS, "r")  # unpacked again: floats of all would take more registers
        for step in range(t.kept):
            self._finish(kept, step, self._column(step), factors if t.ahead else None)
        self._each_of_rest("__ldcs", lambda raw, step, column: self._finish(raw, step, column, None))

    def _stats(self) -> RowStats:
        if self.shape.op == "softmax":
            return SoftmaxStats(self.cols, self.shape.log)
        kind = {"layer_norm": NormStats, "rms_norm": SquareStats}[self.shape.op]
        return kind(self.cols, self.scalar)

    # Vectors of a row.

    def _column(self, step: Any) -> Any:
        return self.first + step * (self.tiles.team * self.width)

    def _is_whole(self, step: int) -> bool:
        """Say whether it is known that all vectors of `step` lie within the row."""
        end = (step + 1) * self.tiles.team * self.width
        return (step > 0 or self.aligned) and isinstance(self.shape.cols, int) and end <= self.shape.cols

    def _registers(self, kind: str, vectors: int) -> dict[str, Any]:
        length = max(1, vectors * PARTS)
        return {name: T.alloc_local((length,), "uint32") for name in self.names[kind]} if vectors else {}

    def _load(self, raw: dict[str, Any], steps: range, column: Callable[[int], Any], how: str) -> None:
        for step in steps:
            for name, registers in raw.items():
                self._load_vector(name, registers, step, column(step), how)

    def _load_vector(self, name: str, registers: Any, step: int, column: Any, how: str) -> None:
        array, row = self.arrays[name], self.row
        if name in ("weight", "bias"):
            pointer = array.ptr_to([0])
        else:
            own = T.truncmod(row, self.shape.mask_rows) if name == "mask" else row
            pointer = array.ptr_to([T.Cast("int64", own), 0])
        aligned = self.aligned or name in ("x", "residual")  # as the row of `out` is
        load_loose(registers, step * PARTS, pointer, column, self.cols, self.shape.dtype, how, aligned)

    def _each_of_rest(self, how: str, visit: Callable[[dict[str, Any], int, Any], None]) -> None:
        """Read what no thread keeps, `depth` vectors at once."""
        t = self.tiles
        if not t.depth:
            return
        raw = self._registers("once", t.depth)
        column = Scalar(self._column(t.kept))
        stride = t.team * self.width
        with T.While(column() < self.cols):
            self._load(raw, range(t.depth), lambda step: column() + step * stride, how)
            for step in range(t.depth):
                visit(raw, step, column() + step * stride)
            column.set(column() + t.depth * stride)

    def _sum_up(self, raw: dict[str, Any], step: int) -> None:
        """Leave x as floats, scaled, with what is added to it."""
        width, dtype = self.width, self.shape.dtype
        unpack(self.floats, 0, raw["x"], step * PARTS, dtype, width)
        if self.shape.scaled:
            self._change(lambda i: self.floats[i] * self.scalar)
        for name in raw:
            if name != "x":
                unpack(self.more, 0, raw[name], step * PARTS, dtype, width)
                self._change(lambda i: self.floats[i] + self.more[i])

    def _change(self, change: Callable[[int], Any]) -> None:
        for i in range(self.width):
            T.buffer_store(self.floats, change(i), [i])

    def _absorb(self, raw: dict[str, Any], step: int, column: Any, whole: bool) -> None:
        self._sum_up(raw, step)
        if self.sum is not None:
            self._store(self.sum, column)
        values = [self.floats[i] for i in range(self.width)]
        if whole:
            self.stats.absorb(values, None, self.width)
            return

        def inside(i: int) -> Any:
            return tirx.all(column + i >= 0, column + i < self.cols)

        if self.stats.outside:
            self._change(lambda i: tirx.Select(inside(i), self.floats[i], T.float32(self.stats.outside)))
        count = tirx.min(column + self.width, self.cols) - tirx.max(column, 0)
        count = T.Bind(tirx.max(count, 0))
        self.stats.absorb(values, inside, count)

    def _finish(self, raw: dict[str, Any], step: int, column: Any, factors: dict[str, Any] | None) -> None:
        self._sum_up(raw, step)
        self._change(lambda i: self.stats.applied(self.floats[i]))
        at = step
        if factors is None:
            factors, at = self._registers("factors", 1), 0
            self._load(factors, range(1), lambda _: column, "__ldg")
        for name, registers in factors.items():
            unpack(self.more, 0, registers, at * PARTS, self.shape.dtype, self.width)
            if name == "weight":
                self._change(lambda i: self.floats[i] * self.more[i])
            else:
                self._change(lambda i: self.floats[i] + self.more[i])
        self._store(self.out, column)

    def _store(self, array: Any, column: Any) -> None:
        pointer = array.ptr_to([T.Cast("int64", self.row), 0])
        store_loose(pointer, column, self.cols, self.floats, 0, self.shape.dtype, self.tiles.stream)

    # The meeting of all that share a row.

    def _begin_to_meet(self) -> None:
        t, pool = self.tiles, SMEMPool()
        self.slots = pool.alloc((t.cluster * t.warps, _SLOT), "float32", align=16)
        self.all_here = Barriers(pool, 1, 1)
        pool.commit()
        if t.cluster > 1:
            with when(self.thread == 0):
                self.all_here.init()
                ptx("fence.mbarrier_init.release.cluster")
            do(T.cuda.warp_sync())
            say_here()

    def _meet(self) -> None:
        """Make the statistics of this thread those of the row."""
        t, stats = self.tiles, self.stats
        stats.join([[each() for each in stats.of]], WARP)
        slots = t.cluster * t.warps
        if slots > 1:
            self._send()
            lanes = min(1 << (slots - 1).bit_length(), WARP)
            stats.join([self._share(self.lane % lanes + i) for i in range(0, slots, WARP)], lanes)
        stats.finish()

    def _share(self, place: Any) -> list[Any]:
        """Return what a warp has sent, of the slots beyond the last nothing."""
        t, stats = self.tiles, self.stats
        slots = t.cluster * t.warps
        own = self.slots
        if slots & (slots - 1) == 0:
            return [Scalar(own[place, i], "float32")() for i in range(stats.floats)]
        there = T.Bind(tirx.min(place, slots - 1))
        return [
            Scalar(tirx.Select(place < slots, own[there, i], T.float32(nothing)), "float32")()
            for i, nothing in enumerate(stats.nothing())
        ]

    def _send(self) -> None:
        t, own = self.tiles, [each() for each in self.stats.of]
        place = self.rank * t.warps + self.warp
        if t.cluster == 1:
            with when(self.lane == 0):
                for i, value in enumerate(own):
                    T.buffer_store(self.slots, value, [place, i])
            do(T.cuda.cta_sync())
            return
        await_all_here()  # memory of a block that has not begun is no place
        with when(self.thread == 0):
            self.all_here.expect(0, t.cluster * t.warps * _SLOT * 4)
        with when(self.lane < t.cluster):
            four = own + [T.float32(0)] * (_SLOT - len(own))
            to, barrier = self.slots.ptr_to([place, 0]), self.all_here.at(0)
            do(c_call("void", "send_four", to, barrier, self.lane, *four, source=SEND_FOUR))
        do(T.cuda.mbarrier_wait_acquire_cluster(self.all_here.at(0), 0))
