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

from tvmops.schedules.cuda.kernels.row_meeting import RowMeeting
from tvmops.schedules.cuda.kernels.row_stats import NormStats, RowStats, SoftmaxStats, SquareStats
from tvmops.schedules.cuda.kernels.row_values import WARP
from tvmops.schedules.cuda.kernels.rows import RowShape
from tvmops.schedules.cuda.loose_memory import full_width, load_loose, store_loose
from tvmops.schedules.cuda.row_memory import VECTOR_BYTES, load_vector, unpack
from tvmops.schedules.cuda.words import Scalar, c_call, do, tie, when

PARTS = 4  # registers of a vector
_KEEP = """
__forceinline__ __device__ void keep_vector(void* place, const unsigned* vector) {
  *static_cast<uint4*>(place) = uint4{vector[0], vector[1], vector[2], vector[3]};
}
"""


@dataclass(frozen=True)
class LongTiles:
    threads: int  # a block
    cluster: int  # blocks that share a row
    kept: int  # vectors of a row that a thread keeps
    depth: int  # those of the rest that it has on their way at once; 0: there is no rest
    ahead: bool  # weight and bias come before the blocks meet
    stream: bool  # writes pass the caches
    resident: int  # blocks for which a multiprocessor is to have registers
    stays: bool  # these take row after row that begin alike: what weight and bias are beside is the same
    multiprocessors: int

    @property
    def team(self) -> int:
        """Threads that share a row."""
        return self.threads * self.cluster

    @property
    def blocks(self) -> int:
        """Blocks that stay; as many rows further on, one begins as this does."""
        return self.resident * self.multiprocessors // VECTOR_BYTES * VECTOR_BYTES

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
        block = T.cta_id([t.blocks if t.stays else self.shape.rows * t.cluster])
        self.rank = T.cta_id_in_cluster([t.cluster]) if t.cluster > 1 else 0
        self.warp, self.lane = T.warp_id([t.warps]), T.lane_id([WARP])
        self.thread = self.warp * WARP + self.lane
        row = T.Bind(T.truncdiv(block, t.cluster))
        # Through variables, lest what the launch computes becomes arguments of the kernel.
        self.cols = self.shape.cols if isinstance(self.shape.cols, int) else T.Bind(Scalar(self.shape.cols)())
        shift = 0 if self.aligned else T.Bind(self._begin_of(row))
        self.first = T.Bind((self.rank * t.threads + self.thread) * self.width - shift)
        self.ahead = 0 if self.aligned else T.Bind(self._bytes_ahead(0, shift))
        self.floats, self.more = (T.alloc_local((self.width,), "float32") for _ in range(2))
        self.factor = T.alloc_local((PARTS,), "uint32")
        self._shared_memory()
        self.meeting.begin()
        if t.stays:
            self._take_rows(row)
        else:
            self._take_row(row, shift)

    def _begin_of(self, row: Any) -> Any:
        """Return how many elements after an aligned place a row begins."""
        return T.Cast(
            "int32", T.truncmod(T.Cast("int64", row) * T.Cast("int64", self.cols), T.int64(self.width))
        )

    def _bytes_ahead(self, begin: Any, shift: Any) -> Any:
        """Return how far after an aligned place vectors are of an array's row, where those of x are aligned."""
        return T.truncmod(begin - shift + self.width, self.width) * (VECTOR_BYTES // self.width)

    def _take_row(self, row: Any, shift: Any) -> None:
        t = self.tiles
        self.mask_ahead = 0
        if "mask" in self.arrays and not self.aligned:
            self.mask_ahead = T.Bind(
                self._bytes_ahead(self._begin_of(T.truncmod(row, self.shape.mask_rows)), shift)
            )
        self.stats = self._stats()
        kept = self._registers(self._names(False), t.kept)
        self._load(kept, range(t.kept), row, self._column, "__ldcs")
        self.factors = self._registers(self._names(True), t.kept if t.ahead else 0)
        self._load(self.factors, range(t.kept), row, self._column, "__ldg")
        self._absorb_kept(kept, row)
        self._each_of_rest(
            row, "__ldg", lambda raw, step, column: self._absorb(raw, step, row, column, False)
        )
        self.meeting.meet(self.stats, 0)
        self._finish_kept({**kept, **self.factors}, kept, row)
        self._each_of_rest(
            row, "__ldcs", lambda raw, step, column: self._finish(raw, step, row, column, None)
        )

    def _take_rows(self, first: Any) -> None:
        t, parity = self.tiles, Scalar(0)
        self.mask_ahead, self.factors = 0, {}
        kept, coming = (self._registers(self._names(False), t.kept) for _ in range(2))
        for name in self._names(True):
            for step in range(t.kept):
                self._load_vector(name, self.factor, 0, first, self._column(step), "__ldg")
                do(
                    c_call(
                        "void", "keep_vector", self._place(name, step), self.factor.ptr_to([0]), source=_KEEP
                    )
                )
        own = Scalar(first)
        with when(own() < self.shape.rows):
            self._load(kept, range(t.kept), first, self._column, "__ldcs")
        with T.While(own() < self.shape.rows):
            row = T.Bind(own())
            self.stats = self._stats()
            self._absorb_kept(kept, row)
            with when(row + t.blocks < self.shape.rows):
                self._load(coming, range(t.kept), row + t.blocks, self._column, "__ldcs")
            self.meeting.meet(self.stats, parity())
            self._finish_kept(kept, kept, row)
            for name, registers in kept.items():
                for i in range(t.kept * PARTS):
                    T.buffer_store(registers, coming[name][i], [i])
            own.set(row + t.blocks)
            parity.set(parity() ^ 1)

    def _place(self, name: str, step: int) -> Any:
        """Return where this thread keeps a vector of weight or bias."""
        return self.held[name].ptr_to([step * self.tiles.threads + self.thread, 0])

    def _names(self, factors: bool) -> list[str]:
        return [name for name in self.arrays if (name in ("weight", "bias")) == factors]

    def _absorb_kept(self, kept: dict[str, Any], row: Any) -> None:
        for step in range(self.tiles.kept):
            self._absorb(kept, step, row, self._column(step), self._is_whole(step))

    def _finish_kept(self, registers: dict[str, Any], kept: dict[str, Any], row: Any) -> None:
        count = self.tiles.kept
        for raw in registers.values() if count else ():
            tie(raw, count * PARTS, "r")  # unpacked again: floats of all would take more registers
        for step in range(count):
            self._finish(kept, step, row, self._column(step), step)

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

    def _registers(self, names: list[str], vectors: int) -> dict[str, Any]:
        return {name: T.alloc_local((vectors * PARTS,), "uint32") for name in names} if vectors else {}

    def _load(
        self, raw: dict[str, Any], steps: range, row: Any, column: Callable[[int], Any], how: str
    ) -> None:
        for step in steps:
            for name, registers in raw.items():
                self._load_vector(name, registers, step, row, column(step), how)

    def _load_vector(self, name: str, registers: Any, step: int, row: Any, column: Any, how: str) -> None:
        array, ahead = self.arrays[name], 0
        if name in ("weight", "bias"):
            pointer, ahead = array.ptr_to([0]), self.ahead
        elif name == "mask":
            pointer, ahead = array.ptr_to([T.truncmod(row, self.shape.mask_rows), 0]), self.mask_ahead
        else:
            pointer = array.ptr_to([T.Cast("int64", row), 0])
        load_loose(registers, step * PARTS, pointer, column, self.cols, self.shape.dtype, how, ahead)

    def _each_of_rest(self, row: Any, how: str, visit: Callable[[dict[str, Any], int, Any], None]) -> None:
        """Read what no thread keeps, `depth` vectors at once."""
        t = self.tiles
        if not t.depth:
            return
        raw = self._registers(self._names(False), t.depth)
        column = Scalar(self._column(t.kept))
        stride = t.team * self.width
        with T.While(column() < self.cols):
            self._load(raw, range(t.depth), row, lambda step: column() + step * stride, how)
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

    def _absorb(self, raw: dict[str, Any], step: int, row: Any, column: Any, whole: bool) -> None:
        self._sum_up(raw, step)
        if self.sum is not None:
            self._store(self.sum, row, column)
        values = [self.floats[i] for i in range(self.width)]
        if whole:
            self.stats.absorb(values, self.width, None)
            return
        inside = tirx.min(column + self.width, self.cols) - tirx.max(column, 0)
        count = T.Bind(tirx.max(inside, 0))

        def fill(value: Any) -> None:
            def filled(i: int) -> Any:
                return tirx.Select(tirx.all(column + i >= 0, column + i < self.cols), self.floats[i], value)

            with when(count < self.width):
                self._change(filled)

        self.stats.absorb(values, count, fill)

    def _finish(self, raw: dict[str, Any], step: int, row: Any, column: Any, kept: int | None) -> None:
        """Compute and write a vector; `kept` is its number among those whose weight and bias may be kept."""
        self._sum_up(raw, step)
        self._change(lambda i: self.stats.applied(self.floats[i]))
        for name in self._names(True):
            registers, at = self.factors.get(name, self.factor), 0
            if kept is not None and self.tiles.stays:
                load_vector(registers, 0, self._place(name, kept), self.shape.dtype, self.width, "*")
            elif kept is not None and self.tiles.ahead:
                at = kept * PARTS
            else:
                registers = self.factor
                self._load_vector(name, registers, 0, row, column, "__ldg")
            unpack(self.more, 0, registers, at, self.shape.dtype, self.width)
            if name == "weight":
                self._change(lambda i: self.floats[i] * self.more[i])
            else:
                self._change(lambda i: self.floats[i] + self.more[i])
        self._store(self.out, row, column)

    def _store(self, array: Any, row: Any, column: Any) -> None:
        pointer = array.ptr_to([T.Cast("int64", row), 0])
        store_loose(pointer, column, self.cols, self.floats, 0, self.shape.dtype, self.tiles.stream)

    def _shared_memory(self) -> None:
        t, pool = self.tiles, SMEMPool()
        self.meeting = RowMeeting(pool, t.warps, t.cluster, self.rank, self.warp, self.lane)
        self.held = {
            name: pool.alloc((t.kept * t.threads, PARTS), "uint32", align=16)
            for name in (self._names(True) if t.stays else ())
        }
        pool.commit()
