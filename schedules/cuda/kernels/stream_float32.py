"""The kernel of `Float32Stream`: few rows of a by a b of float32, at the speed of memory.

No value of b serves two threads: each goes from memory to the registers of one, 16 bytes at a time.
Where its rows lie along k, the lanes of a warp take different values of k of a few columns, and add
up what they have at the end; where they lie across k, each lane takes four columns, and the warps of
a block different values of k. The rows of a wait in shared memory. Blocks of a cluster may share k,
too. Sums that meet in shared memory, and in that of the cluster, are added in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import ceildiv
from tvmops.schedules.cuda.kernels.column_sums import add_four
from tvmops.schedules.cuda.kernels.gemm_float32 import STORE_FOUR
from tvmops.schedules.cuda.kernels.gemm_simt import FOUR, SimtKernel, read_four
from tvmops.schedules.cuda.kernels.product import Product, finished
from tvmops.schedules.cuda.words import (
    PROGRAMMATIC_LAUNCH,
    Scalar,
    c_call,
    do,
    let_next_kernel_begin,
    ptx,
    shuffle_xor,
    when,
)

_LANES = 32
_FETCH = """
__forceinline__ __device__ void fetch_present_four(float* to, const void* array, long long at, int present) {
  if (present) {
    asm volatile("ld.global.nc.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3])
                 : "l"(static_cast<const float*>(array) + at));
  } else {
    to[0] = to[1] = to[2] = to[3] = 0.0f;
  }
}
"""


@dataclass(frozen=True)
class StreamTiles:
    rows: int  # of a, of a block
    columns: int  # of a lane: where b lies along k as many rows of it, otherwise four neighbours
    warps: int
    splits: int  # blocks of a cluster, which share k
    depth: int  # groups of values of k that are on their way
    chained: int  # launched while the kernel before it ends

    @property
    def threads(self) -> int:
        return _LANES * self.warps


class StreamKernel(SimtKernel):
    """`main(a, b, [bias], [residual], c)`, of two dimensions each; k is a multiple of 4, and rows of b are."""

    tiles: StreamTiles  # type: ignore[assignment]
    a: Any
    b: Any
    align = 16

    def __init__(self, product: Product, tiles: StreamTiles, stretch: int) -> None:
        super().__init__(product, tiles, "float32", "float32")  # type: ignore[arg-type]
        self.stretch = stretch  # the most values of k of a block, a multiple of a group
        self.along = product.trans_b

    @property
    def group(self) -> int:
        """Values of k that a warp multiplies at a time."""
        return FOUR * _LANES if self.along else FOUR

    @property
    def width(self) -> int:
        """Columns of a block."""
        return self.tiles.columns * self.tiles.warps if self.along else FOUR * _LANES

    @property
    def slots(self) -> int:
        """Vectors of a group, of a lane."""
        return self.tiles.columns if self.along else FOUR

    @property
    def parts(self) -> int:
        """Sums of each result in a block."""
        return 1 if self.along else self.tiles.warps

    @property
    def shared_bytes(self) -> int:
        return 4 * self.tiles.rows * (self.stretch + self.parts * self.width)

    def module(self) -> IRModule:
        module = super().module()
        if self.tiles.chained:
            module["main"] = module["main"].with_attr(*PROGRAMMATIC_LAUNCH)
        return module

    def factors(self, a: Any, b: Any) -> tuple[Any, Any]:
        return a, b

    def _body(self) -> None:
        p, t = self.product, self.tiles
        block = T.cta_id([ceildiv(p.m, t.rows) * ceildiv(p.n, self.width) * t.splits])
        self.rank = T.cta_id_in_cluster([t.splits]) if t.splits > 1 else 0
        self.warp, self.lane = T.warp_id([t.warps]), T.lane_id([_LANES])
        self.thread = T.Bind(self.warp * _LANES + self.lane)
        pool = SMEMPool()
        self.held = pool.alloc((t.rows, self.stretch), "float32", align=16)
        self.meeting = pool.alloc((self.parts, t.rows, self.width), "float32", align=16)
        pool.commit()
        # Through variables, lest what the launch computes becomes arguments of the kernel.
        self.n, self.k = T.Bind(Scalar(p.n)()), T.Bind(Scalar(p.k)())
        bands = T.Bind(T.truncdiv(Scalar(p.m)() + (t.rows - 1), t.rows))
        tile = T.Bind(T.truncdiv(block, t.splits))
        self.row = T.Bind(T.truncmod(tile, bands) * t.rows)
        self.column = T.Bind(T.truncdiv(tile, bands) * self.width)
        self.begin = T.Bind(self.rank * self.stretch)
        self.end = T.Bind(tirx.min(self.begin + self.stretch, self.k))
        if t.chained:
            ptx("griddepcontrol.wait")
        self._stream()
        if t.chained:
            let_next_kernel_begin()
        self._share()
        do(T.cuda.cluster_sync() if t.splits > 1 else T.cuda.cta_sync())
        self._finish()
        if t.splits > 1:
            do(T.cuda.cluster_sync())  # no block leaves while its memory is read

    # The way through k.

    def _stream(self) -> None:
        t = self.tiles
        self.weights = T.alloc_local((t.depth * self.slots * FOUR,), "float32")
        self.sums = T.alloc_local((t.rows * self.slots,), "float32")
        self.values = T.alloc_local((FOUR,), "float32")
        for i in range(t.rows * self.slots):
            T.buffer_store(self.sums, T.float32(0), [i])
        stride = self.group * (1 if self.along else t.warps)
        first = T.Bind(self.begin + (0 if self.along else self.warp * FOUR))
        for slot in range(t.depth):
            self._fetch(slot, first + slot * stride)
        self._hold_rows()
        do(T.cuda.cta_sync())
        turns = T.Bind(T.truncdiv(tirx.max(self.end - first, 0) + (stride * t.depth - 1), stride * t.depth))
        with T.serial(turns) as turn:
            for slot in range(t.depth):
                k = T.Bind(first + (turn * t.depth + slot) * stride)
                self._multiply_group(slot, k - self.begin)
                self._fetch(slot, k + t.depth * stride)

    def _fetch(self, slot: int, k: Any) -> None:
        """Begin to read a warp's group of values of k, of which those beyond the end are 0."""
        t = self.tiles
        for i in range(self.slots):
            if self.along:
                row, column = self.column + self.warp * t.columns + i, k + self.lane * FOUR
                there, pitch = (row < self.n) & (column < self.end), self.k
            else:
                row, column = k + i, self.column + self.lane * FOUR
                there, pitch = (row < self.end) & (column < self.n), self.n
            at = T.Cast("int64", row) * T.Cast("int64", pitch) + T.Cast("int64", column)
            to = T.address_of(self.weights[(slot * self.slots + i) * FOUR])
            present = T.Cast("int32", there)
            do(c_call("void", "fetch_present_four", to, self.b.data, at, present, source=_FETCH))

    def _hold_rows(self) -> None:
        """Copy this block's stretch of the rows of a to shared memory; what lies beyond is 0."""
        p, t = self.product, self.tiles
        fours = self.stretch // FOUR
        with T.serial(-(-t.rows * fours // t.threads)) as turn:
            at = T.Bind(turn * t.threads + self.thread)
            own, inside = T.Bind(T.truncdiv(at, fours)), T.Bind(T.truncmod(at, fours) * FOUR)
            k = T.Bind(self.begin + inside)
            there = T.Cast("int32", (self.row + own < p.m) & (k < self.end))
            place = T.Cast("int64", self.row + own) * T.Cast("int64", self.k) + T.Cast("int64", k)
            four = T.alloc_local((FOUR,), "float32")
            with when(at < t.rows * fours):
                do(
                    c_call(
                        "void",
                        "fetch_present_four",
                        T.address_of(four[0]),
                        self.a.data,
                        place,
                        there,
                        source=_FETCH,
                    )
                )
                memory = self.held.ptr_to([own, inside])
                do(c_call("void", "store_four_floats", memory, T.address_of(four[0]), source=STORE_FOUR))

    def _multiply_group(self, slot: int, k: Any) -> None:
        """Multiply a group; beyond the stretch the rows of a are read elsewhere, and b is 0."""
        t = self.tiles
        inside = tirx.min(k + (self.lane * FOUR if self.along else 0), self.stretch - FOUR)
        inside = T.Bind(inside)
        for row in range(t.rows):
            read_four(self.values, 0, self.held.ptr_to([row, inside]))
            for i in range(self.slots):
                for e in range(FOUR):
                    # along k an element of a vector is a value of k, otherwise a column
                    at = row * self.slots + (i if self.along else e)
                    value = self.values[e if self.along else i]
                    weight = self.weights[(slot * self.slots + i) * FOUR + e]
                    T.buffer_store(self.sums, self.sums[at] + value * weight, [at])

    # The sums meet.

    def _share(self) -> None:
        t = self.tiles
        if not self.along:
            for row in range(t.rows):
                memory = self.meeting.ptr_to([self.warp, row, self.lane * FOUR])
                first = T.address_of(self.sums[row * FOUR])
                do(c_call("void", "store_four_floats", memory, first, source=STORE_FOUR))
            return
        left = self._add_lanes()
        each = len(left)
        if t.rows * t.columns >= _LANES:
            for i, value in enumerate(left):
                self._leave(self.first + i, value)
            return
        with when(self.lane == 0):
            for i in range(each):
                self._leave(i, left[i])

    def _leave(self, number: Any, value: Any) -> None:
        columns = self.tiles.columns
        row, column = T.truncdiv(number, columns), T.truncmod(number, columns)
        T.buffer_store(self.meeting, value, [0, row, self.warp * columns + column])

    def _add_lanes(self) -> list[Any]:
        """Add up what lanes have: of many sums each lane is left with a few, of few all with all."""
        count, sums = self.tiles.rows * self.tiles.columns, self.sums
        if count < _LANES:
            for i in range(count):
                for bit in range(5):
                    T.buffer_store(sums, sums[i] + shuffle_xor(sums[i], 1 << bit), [i])
            return [sums[i] for i in range(count)]
        self.first: Any = 0
        for bit in (16, 8, 4, 2, 1):
            count //= 2
            upper = T.Bind((self.lane & bit) != 0)
            for i in range(count):
                kept = Scalar(tirx.Select(upper, sums[i + count], sums[i]), "float32")
                given = Scalar(tirx.Select(upper, sums[i], sums[i + count]), "float32")
                T.buffer_store(sums, kept() + shuffle_xor(given(), bit), [i])
            self.first = self.first + T.Cast("int32", upper) * count
        self.first = T.Bind(self.first)
        return [sums[i] for i in range(count)]

    def _finish(self) -> None:
        """Add up what warps and blocks have, and write it: four neighbours at a time, blocks in turn."""
        p, t = self.product, self.tiles
        fours, threads = self.width // FOUR, t.splits * t.threads
        with T.serial(-(-t.rows * fours // threads)) as turn:
            at = T.Bind((turn * t.splits + self.rank) * t.threads + self.thread)
            own, inside = T.Bind(T.truncdiv(at, fours)), T.Bind(T.truncmod(at, fours) * FOUR)
            row, column = T.Bind(self.row + own), T.Bind(self.column + inside)
            with when((own < t.rows) & (row < p.m) & (column < self.n)):
                places = [
                    T.Bind(T.cuda.cvta_generic_to_shared(self.meeting.ptr_to([part, own, inside])))
                    for part in range(self.parts)
                ]
                ranks = [(rank,) for rank in range(t.splits)] if t.splits > 1 else [()]
                sums = add_four([(place, *rank) for rank in ranks for place in places])
                for i, value in enumerate(sums):
                    with when(column + i < self.n):
                        done = finished(p, self.bias, self.residual, value, [row], column + i)
                        T.buffer_store(self.c, done, [row, column + i])
