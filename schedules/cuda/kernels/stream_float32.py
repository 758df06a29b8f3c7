"""The kernel of `Float32Stream`: few rows of a by a b of float32, at the speed of memory.

No value of b serves two threads: each goes from memory to shared memory, 16 bytes at a time, and from
there to the registers of the very thread that copied it, which waits for no other. (Loads to registers
come in an order of the compiler's: it waits for all of them before it asks for more.)
Where its rows lie along k, the lanes of a warp take different values of k of a few columns, and add
up what they have at the end; where they lie across k, each lane takes four columns, and the warps of
a block, or groups of lanes, too, different values of k. The rows of a wait in shared memory. Blocks of
a cluster may share k, too. Sums that meet in shared memory, and in that of the cluster, are added in a
fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import ceildiv
from tvmops.schedules.cuda.kernels.column_sums import add_piece, zeros
from tvmops.schedules.cuda.kernels.gemm_float32 import following
from tvmops.schedules.cuda.kernels.gemm_simt import FOUR, SimtKernel, read_four
from tvmops.schedules.cuda.kernels.lane_sums import add_lanes, share_out
from tvmops.schedules.cuda.kernels.product import Product, finished
from tvmops.schedules.cuda.kernels.streamed_floats import ADDRESS, ANYWHERE, COPY_FOUR
from tvmops.schedules.cuda.words import (
    PROGRAMMATIC_LAUNCH,
    Scalar,
    c_call,
    do,
    let_next_kernel_begin,
    ptx,
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
_STORE_FOUR = """
__forceinline__ __device__ void store_four_floats(void* to, const float* sums) {
  *static_cast<float4*>(to) = make_float4(sums[0], sums[1], sums[2], sums[3]);
}
"""


@dataclass(frozen=True)
class StreamTiles:
    rows: int  # of a, of a block
    columns: int  # of a lane: where b lies along k as many rows of it, otherwise four neighbours
    warps: int
    splits: int  # blocks of a cluster, which share k
    spread: int  # groups of lanes of a warp, that take other values of k where b lies across k
    depth: int  # groups of values of k in shared memory, that are on their way or being multiplied
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
        return FOUR * (_LANES if self.along else self.tiles.spread)

    @property
    def width(self) -> int:
        """Columns of a block."""
        return self.tiles.columns * self.tiles.warps if self.along else FOUR * self.across

    @property
    def across(self) -> int:
        """Lanes of a warp that have other columns of the same values of k."""
        return _LANES // self.tiles.spread

    @property
    def groups(self) -> int:
        """Groups of a warp, one after the other."""
        return -(-self.stretch // (self.group * (1 if self.along else self.tiles.warps)))

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
        t = self.tiles
        ring = t.depth * self.slots * t.threads * FOUR
        return 4 * (max(ring, self.parts * t.rows * self.width) + t.rows * self.stretch)

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
        self.ring = pool.alloc((t.depth, self.slots, t.threads, FOUR), "float32", align=16)
        pool.move_base_to(4 * t.rows * self.stretch)  # in place of the ring, when it has been read
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
        # of a group, the values of k that lie before this lane's
        self.inside = T.Bind((self.lane if self.along else T.truncdiv(self.lane, self.across)) * FOUR)
        if t.chained:
            ptx("griddepcontrol.wait")
        self._stream()
        if t.chained:
            let_next_kernel_begin()
        do(T.cuda.cta_sync())  # others may still read what their sums take the place of
        self._share()
        do(T.cuda.cluster_sync() if t.splits > 1 else T.cuda.cta_sync())
        self._finish()
        if t.splits > 1:
            do(T.cuda.cluster_sync())  # no block leaves while its memory is read

    # The way through k.

    def _stream(self) -> None:
        t = self.tiles
        self.weights = T.alloc_local((self.slots * FOUR,), "float32")
        self.sums = T.alloc_local((t.rows * self.slots,), "float32")
        self.values = T.alloc_local((FOUR,), "float32")
        for i in range(t.rows * self.slots):
            T.buffer_store(self.sums, T.float32(0), [i])
        stride = self.group * (1 if self.along else t.warps)
        first = T.Bind(self.begin + (0 if self.along else self.warp * self.group))
        groups = T.Bind(T.truncdiv(tirx.max(self.end - first, 0) + (stride - 1), stride))
        self._aim(first + self.inside, stride)
        for slot in range(t.depth - 1):
            self._fetch(slot, first + (slot * stride + self.inside))
        self._hold_rows()
        do(T.cuda.cta_sync())
        use, fill = Scalar(0), Scalar(t.depth - 1)
        with T.serial(groups) as group:
            k = T.Bind(first + group * stride + self.inside)
            self._fetch(fill(), k + (t.depth - 1) * stride)
            ptx("cp.async.wait_group", t.depth - 1)
            self._multiply_group(use(), k - self.begin)
            for place in (use, fill):
                place.set(following(place(), t.depth))
        ptx("cp.async.wait_group", 0)

    def _aim(self, k: Any, stride: int) -> None:
        """Find where this lane's vectors of the first group lie, and how far apart those of a group are."""
        if self.along:
            self.own, self.apart = T.Bind(self.column + self.warp * self.tiles.columns), self.k
            row, column = self.own, k
        else:
            self.own, self.apart = T.Bind(self.column + T.truncmod(self.lane, self.across) * FOUR), self.n
            row, column = k, self.own
        self.source = Scalar(
            c_call("uint64", "address_in", self.b.data, row, self.apart, column, source=ADDRESS), "uint64"
        )
        self.step = T.Bind(T.Cast("uint64", stride * 4) * (1 if self.along else T.Cast("uint64", self.n)))

    def _fetch(self, slot: Any, k: Any) -> None:
        """Begin to copy a lane's vectors of the next group, of which those beyond the end are 0."""
        for i in range(self.slots):
            there = (self.own + (i if self.along else 0) < self.n) & (k < self.end)
            to = T.cuda.cvta_generic_to_shared(self.ring.ptr_to([slot, i, self.thread, 0]))
            place = (self.source(), 0, i * self.apart, ANYWHERE, 1, T.Cast("int32", there))
            do(c_call("void", "copy_present_floats_4", to, *place, source=COPY_FOUR))
        ptx("cp.async.commit_group")
        self.source.set(self.source() + self.step)

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
                to = T.address_of(four[0])
                do(c_call("void", "fetch_present_four", to, self.a.data, place, there, source=_FETCH))
                memory = self.held.ptr_to([own, inside])
                do(c_call("void", "store_four_floats", memory, T.address_of(four[0]), source=_STORE_FOUR))

    def _multiply_group(self, slot: Any, k: Any) -> None:
        """Multiply a group; beyond the stretch the rows of a are read elsewhere, and b is 0."""
        t = self.tiles
        inside = T.Bind(tirx.min(k, self.stretch - FOUR))
        for i in range(self.slots):
            read_four(self.weights, i * FOUR, self.ring.ptr_to([slot, i, self.thread, 0]))
        for row in range(t.rows):
            read_four(self.values, 0, self.held.ptr_to([row, inside]))
            for i in range(self.slots):
                for e in range(FOUR):
                    # along k an element of a vector is a value of k, otherwise a column
                    at = row * self.slots + (i if self.along else e)
                    value = self.values[e if self.along else i]
                    T.buffer_store(self.sums, self.sums[at] + value * self.weights[i * FOUR + e], [at])

    # The sums meet.

    def _share(self) -> None:
        t = self.tiles
        if not self.along:
            add_lanes(self.sums, t.rows * FOUR, self.across)
            with when(self.lane < self.across):
                for row in range(t.rows):
                    memory = self.meeting.ptr_to([self.warp, row, self.lane * FOUR])
                    first = T.address_of(self.sums[row * FOUR])
                    do(c_call("void", "store_four_floats", memory, first, source=_STORE_FOUR))
            return
        count = t.rows * t.columns
        if count >= _LANES:
            first = share_out(self.sums, count, self.lane)
            for i in range(count // _LANES):
                self._leave(first + i, self.sums[i])
            return
        add_lanes(self.sums, count)
        with when(self.lane == 0):
            for i in range(count):
                self._leave(i, self.sums[i])

    def _leave(self, number: Any, value: Any) -> None:
        columns = self.tiles.columns
        row, column = T.truncdiv(number, columns), T.truncmod(number, columns)
        T.buffer_store(self.meeting, value, [0, row, self.warp * columns + column])

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
                sums = zeros(FOUR)
                with T.serial(t.splits) as rank:
                    for place in places:
                        add_piece(sums, (place, rank) if t.splits > 1 else (place,))
                for i in range(FOUR):
                    with when(column + i < self.n):
                        done = finished(p, self.bias, self.residual, sums[i], [row], column + i)
                        T.buffer_store(self.c, done, [row, column + i])
