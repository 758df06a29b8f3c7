"""The kernel of `Float32Boxes`: products of float32 on Hopper's CUDA cores, from tiles that the copy engine brings.

One thread asks for boxes of both factors, 32 values of k at a time, for a ring in shared memory: no
other thread computes addresses of memory, and the engine writes zeros where an array ends. A factor
whose rows lie along k stays so: rows of the 128-byte swizzle, of which a thread reads four values of
k at once; of one across k it reads four neighbours. Either way a read of 16 bytes serves as many
multiplications, and no lane waits for another's bank. What the next four values of k need is read
while these are multiplied.

Blocks of a cluster may share a tile's k. Their sums lie in shared memory at the end, from where all
of them add up and store a stretch each, in rows, in a fixed order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx
from tvm.script import tirx as script
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, ceildiv
from tvmops.schedules.cuda.kernels.column_sums import add_four
from tvmops.schedules.cuda.kernels.gemm_float32 import STORE_FOUR, WarpTiles, place_of_lane
from tvmops.schedules.cuda.kernels.gemm_simt import FOUR, SimtKernel, read_four
from tvmops.schedules.cuda.kernels.pad_rows import Padded, pad_rows
from tvmops.schedules.cuda.kernels.product import Product, finished
from tvmops.schedules.cuda.words import (
    PROGRAMMATIC_LAUNCH,
    Ring,
    Scalar,
    c_call,
    do,
    let_next_kernel_begin,
    ptx,
    shared_address,
    tensor_map,
    when,
)

DEPTH = 32  # of k, of a stage: 128 bytes
_FOURS = DEPTH // FOUR
_ROWS = 8  # of the swizzle, which differ
_COPIERS = 264  # blocks that make copies
_LOAD = "cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes"


@dataclass(frozen=True)
class BoxTiles(WarpTiles):
    stages: int
    splits: int  # blocks of a cluster, which share k
    beside: int  # blocks that share a multiprocessor
    ahead: int = 1  # 1: the next four values of k are read while these are multiplied
    chained: int = 0  # launched while the kernel before it ends

    @property
    def stage_bytes(self) -> int:
        return 4 * DEPTH * (self.bm + self.bn)

    @property
    def sums_bytes(self) -> int:
        return 4 * self.bm * (self.bn + FOUR)

    @property
    def shared_bytes(self) -> int:
        return max(self.stages * self.stage_bytes, self.sums_bytes) + 16 * self.stages


class Boxed:
    """A factor in a ring of boxes, of which a thread multiplies `own` of `block` rows, `lanes` of a warp apart."""

    def __init__(
        self, array: Any, extent: Extent, k: Extent, k_inner: bool, block: int, own: int, lanes: int
    ) -> None:
        self.array, self.extent, self.k, self.k_inner = array, extent, k, k_inner
        self.block, self.own, self.lanes = block, own, lanes

    @property
    def stage_bytes(self) -> int:
        return 4 * DEPTH * self.block

    @property
    def items(self) -> int:
        """How many dimensions the array has beside those of a matrix."""
        return len(self.array.shape) - 2

    def copy_at(self, offset: Any) -> Padded:
        """Return what a copy of the array would be, in halves of floats."""
        *outer, rows, columns = self.array.shape
        return Padded(math.prod(outer, start=1) * rows, columns * 2, offset)

    def describe(self, memory: Any, pitch: Any) -> None:
        """Tell the copy engine about the array, or its copy: rows of `pitch` bytes in `memory`."""
        *outer, rows, columns = self.array.shape
        box = [DEPTH, self.block] if self.k_inner else [self.block, DEPTH]
        pitches = [pitch, *(pitch * T.Cast("int64", rows) for _ in outer)]
        self.view = tensor_map(
            memory, "float32", [columns, rows, *outer], [*box, *[1] * self.items], pitches=pitches, item=4,
            swizzles=self.k_inner,
        )  # fmt: skip

    def begin(self, pool: Any, stages: int, ahead: int) -> None:
        shape = (stages, self.block, DEPTH) if self.k_inner else (stages, DEPTH, self.block)
        self.ring = pool.alloc(shape, "float32", align=1024)
        self.values = T.alloc_local((self.own * ((1 + ahead) * FOUR if self.k_inner else 2),), "float32")

    def stand(self, first: Any, lane: Any) -> None:
        """Take a thread's place: the first row of its warp, and its lane's among them."""
        self.lane = lane
        self.first = T.Bind(first + lane * (1 if self.k_inner else FOUR))

    def place_of(self, index: int) -> Any:
        """Return where the `index`-th of a thread's own lies in the block."""
        if self.k_inner:
            return self.first + index * self.lanes
        return self.first + index // FOUR * (self.lanes * FOUR) + index % FOUR

    def load(self, stage: Any, origin: Any, k: Any, item: Any, barrier: Any) -> None:
        """Ask for a box."""
        corner = [k, origin] if self.k_inner else [origin, k]
        to = self.ring.ptr_to([stage, 0, 0])
        instruction = _LOAD.format(rank=2 + self.items)
        ptx(instruction, to, T.address_of(self.view), *corner, *[item] * self.items, barrier)

    def read_fours(self, stage: Any, four: Any, half: int) -> None:
        """Read four values of k of each of a thread's own rows, to one half of its registers."""
        if not self.k_inner:
            return
        turned = T.Bind(self.lane % _ROWS ^ four) if self.lanes > 1 else four
        for index in range(self.own):
            chunk = turned ^ (index * self.lanes % _ROWS)
            memory = self.ring.ptr_to([stage, self.place_of(index), chunk * FOUR])
            read_four(self.values, (half * self.own + index) * FOUR, memory)

    def read_one(self, stage: Any, k: Any, half: int) -> None:
        """Read one value of k of each."""
        if self.k_inner:
            return
        for index in range(0, self.own, FOUR):
            memory = self.ring.ptr_to([stage, k, self.place_of(index)])
            read_four(self.values, half * self.own + index, memory)

    def value(self, half: int, k: int, index: int) -> Any:
        if self.k_inner:
            return self.values[(half * self.own + index) * FOUR + k]
        return self.values[k % 2 * self.own + index]


class BoxKernel(SimtKernel):
    """`main(a, b, [bias], [residual], c)`; rows of a and b are multiples of 16 bytes."""

    tiles: BoxTiles
    a: Boxed  # type: ignore[assignment]
    b: Boxed  # type: ignore[assignment]
    align = 16

    def __init__(self, product: Product, tiles: BoxTiles, pads: tuple[str, ...] = ()) -> None:
        super().__init__(product, tiles, "float32", "float32")
        self.beside, self.pads = tiles.beside, pads

    def module(self) -> IRModule:
        module = super().module()
        if self.tiles.chained:
            module["main"] = module["main"].with_attr(*PROGRAMMATIC_LAUNCH)
        if self.pads:
            module["main_workspace"] = self._workspace_function()
        return module

    def _workspace_function(self) -> tirx.PrimFunc:
        """Return `main_workspace`, of the same arguments but the workspace: the bytes that `main` needs."""

        @script.prim_func
        def main_workspace() -> None:
            declared = script.meta_var(self._arguments())  # noqa: F841
            return self._copies()[1]  # type: ignore[no-any-return]  # of the kernel language

        function: tirx.PrimFunc = main_workspace
        return function

    def _copies(self) -> tuple[dict[str, Padded], Any]:
        """Return the copies that are made of factors, and the bytes of all."""
        copies: dict[str, Padded] = {}
        end: Any = T.int64(0)
        for name, each in (("a", self.a), ("b", self.b)):
            if name in self.pads:
                copies[name] = each.copy_at(end)
                end = copies[name].end
        return copies, end

    def factors(self, a: Any, b: Any) -> tuple[Boxed, Boxed]:  # type: ignore[override]
        p, t = self.product, self.tiles
        assert t.grid is not None
        return (
            Boxed(a, p.m, p.k, not p.trans_a, t.bm, t.tm, t.grid[0]),
            Boxed(b, p.n, p.k, p.trans_b, t.bn, t.tn, t.grid[1]),
        )

    def _prepare(self) -> None:
        copies, _ = self._copies()
        if copies:
            shape = (tirx.Var("workspace_bytes", "int64"),)
            buffer = T.buffer(shape, "uint8", align=16, buffer_name="workspace")
            workspace = T.arg("workspace", buffer)
            sources = [(getattr(self, name).array, copy) for name, copy in copies.items()]
            pad_rows(workspace, sources, _COPIERS, self.tiles.chained > 0)
        for name, each in (("a", self.a), ("b", self.b)):
            if name in copies:
                memory, pitch = T.address_of(workspace[copies[name].offset]), copies[name].pitch * 2
            else:
                memory, pitch = each.array.data, each.array.shape[-1] * 4
            each.describe(memory, T.Cast("int64", pitch))

    def _body(self) -> None:
        p, t = self.product, self.tiles
        block = T.cta_id([ceildiv(p.m, t.bm) * ceildiv(p.n, t.bn) * p.batch * t.splits])
        self.rank = T.cta_id_in_cluster([t.splits]) if t.splits > 1 else 0
        self.warp, self.lane = T.warp_id([t.threads // 32]), T.lane_id([32])
        pool = SMEMPool()
        for each in (self.a, self.b):
            each.begin(pool, t.stages, t.ahead)
        pool.move_base_to(0)  # sums, when the factors have been read
        self.meeting = pool.alloc((t.bm, t.bn + FOUR), "float32", align=16)
        pool.move_base_to(max(t.stages * t.stage_bytes, t.sums_bytes))
        self.ring = Ring(pool, t.stages, consumers=t.threads // 32)
        pool.commit()
        self.is_first = T.Bind((self.warp == 0) & (self.lane == 0))
        with when(self.is_first):
            self.ring.init()
            ptx("fence.mbarrier_init.release.cluster")
        do(T.cuda.cta_sync())
        self._locate(block)
        if t.chained:
            ptx("griddepcontrol.wait")
        self._multiply_all()
        if t.chained:
            let_next_kernel_begin()
        self._share()
        do(T.cuda.cluster_sync() if t.splits > 1 else T.cuda.cta_sync())
        self._finish()
        if t.splits > 1:
            do(T.cuda.cluster_sync())  # no block leaves while its memory is read

    def _locate(self, block: Any) -> None:
        """Find the tile, the steps of k, and a thread's place."""
        p, t = self.product, self.tiles
        # Through variables, lest what the launch computes becomes arguments of the kernel.
        rows, columns = (
            T.Bind(T.truncdiv(Scalar(size)() + (tile - 1), tile)) for size, tile in ((p.m, t.bm), (p.n, t.bn))
        )
        tile = T.Bind(T.truncdiv(block, t.splits))
        self.item = T.Bind(T.truncdiv(tile, rows * columns))
        at = T.Bind(T.truncmod(tile, rows * columns))
        self.row, self.column = T.Bind(T.truncdiv(at, columns) * t.bm), T.Bind(T.truncmod(at, columns) * t.bn)
        steps = T.Bind(T.truncdiv(Scalar(p.k)() + (DEPTH - 1), DEPTH))
        self.begin = T.Bind(T.truncdiv(steps * self.rank, t.splits))
        self.count = T.Bind(T.truncdiv(steps * (self.rank + 1), t.splits) - self.begin)
        assert t.grid is not None
        (down, across), warps = t.grid, t.bn // (t.tn * t.grid[1])
        own_row, own_column = place_of_lane(self.lane, t.grid)
        self.a.stand(T.truncdiv(self.warp, warps) * (t.tm * down), own_row)
        self.b.stand(T.truncmod(self.warp, warps) * (t.tn * across), own_column)

    def _load(self, step: Any, stage: Any) -> None:
        """Ask for the boxes of a step."""
        p = self.product
        k = T.Bind((self.begin + step) * DEPTH)
        self.ring.full.expect(stage, self.tiles.stage_bytes)
        for each, origin, name in ((self.a, self.row, "a"), (self.b, self.column, "b")):
            item = 0 if p.shared == name else self.item
            each.load(stage, origin, k, item, self.ring.full.at(stage))

    def _multiply_all(self) -> None:
        t = self.tiles
        with when(self.is_first):
            for stage in range(t.stages):
                with when(stage < self.count):
                    self._load(stage, stage)
        self.sums = T.alloc_local((t.tm * t.tn,), "float32")
        for i in range(t.tm * t.tn):
            T.buffer_store(self.sums, T.float32(0), [i])
        if t.ahead:
            self.ring.full.wait(0, 0)
            self._read_fours(0, 0, 0)
            self._read_one(0, 0, 0)
        stage, phase = Scalar(0), Scalar(0)
        with T.serial(self.count) as step:
            is_end = T.Bind(stage() == t.stages - 1)
            following = T.Bind(tirx.Select(is_end, 0, stage() + 1))
            its_phase = T.Bind(tirx.Select(is_end, phase() ^ 1, phase()))
            if t.ahead:
                self._multiply_ahead(stage(), following, its_phase, step + 1 < self.count)
            else:
                self.ring.full.wait(stage(), phase())
                self._multiply_stage(stage())
            do(T.cuda.warp_sync())
            with when(self.lane == 0):
                self.ring.empty.arrive(stage())
            with when(self.is_first & (step + t.stages < self.count)):
                self.ring.empty.wait(stage(), phase())
                self._load(step + t.stages, stage())
            stage.set(following)
            phase.set(its_phase)

    def _multiply_stage(self, stage: Any) -> None:
        with T.serial(_FOURS) as four:
            self._read_fours(stage, four, 0)
            for k in range(FOUR):
                self._read_one(stage, four * FOUR + k, k % 2)
                self._multiply(0, k)

    def _multiply_ahead(self, stage: Any, following: Any, its_phase: Any, goes_on: Any) -> None:
        """Multiply a stage of which the first is read, and read the first of the following one, if there is one."""
        with T.serial(_FOURS // 2) as pair:
            self._multiply_four(0, (stage, pair * 2), (stage, pair * 2 + 1))
            is_last = T.Bind(pair == _FOURS // 2 - 1)
            with when(is_last & goes_on):
                self.ring.full.wait(following, its_phase)
            then = tirx.Select(is_last, following, stage), tirx.Select(is_last, 0, pair * 2 + 2)
            self._multiply_four(1, (stage, pair * 2 + 1), (T.Bind(then[0]), T.Bind(then[1])))

    def _multiply_four(self, half: int, here: tuple[Any, Any], then: tuple[Any, Any]) -> None:
        """Multiply four values of k of one stage, and read those that follow."""
        (stage, four), (next_stage, next_four) = here, then
        self._read_fours(next_stage, next_four, 1 - half)
        for k in range(FOUR):
            if k + 1 < FOUR:
                self._read_one(stage, four * FOUR + k + 1, (k + 1) % 2)
            else:
                self._read_one(next_stage, next_four * FOUR, 0)
            self._multiply(half, k)

    def _multiply(self, half: int, k: int) -> None:  # type: ignore[override]
        t = self.tiles
        for i in range(t.tm):
            for j in range(t.tn):
                at = i * t.tn + j
                product = self.a.value(half, k, i) * self.b.value(half, k, j)
                T.buffer_store(self.sums, self.sums[at] + product, [at])

    def _read_fours(self, stage: Any, four: Any, half: int) -> None:
        for each in (self.a, self.b):
            each.read_fours(stage, four, half)

    def _read_one(self, stage: Any, k: Any, half: int) -> None:
        for each in (self.a, self.b):
            each.read_one(stage, k, half)

    # The sums meet.

    def _share(self) -> None:
        t = self.tiles
        do(T.cuda.cta_sync())  # others may still read what this takes the place of
        for i in range(t.tm):
            row = self.a.place_of(i)
            if self.b.k_inner:
                for j in range(t.tn):
                    T.buffer_store(self.meeting, self.sums[i * t.tn + j], [row, self.b.place_of(j)])
                continue
            for j in range(0, t.tn, FOUR):
                memory = self.meeting.ptr_to([row, self.b.place_of(j)])
                _store_four(memory, T.address_of(self.sums[i * t.tn + j]))

    def _finish(self) -> None:
        """Add up what the cluster's blocks have, and write it: four neighbours at a time, blocks in turn."""
        p, t = self.product, self.tiles
        fours, threads = t.bn // FOUR, t.splits * t.threads
        n = T.Bind(Scalar(p.n)())
        first = self.rank * t.threads + self.warp * 32 + self.lane
        with T.serial(-(-t.bm * fours // threads)) as turn:
            at = T.Bind(first + turn * threads)
            inside = T.Bind(T.truncdiv(at, fours)), T.Bind(T.truncmod(at, fours) * FOUR)
            row, column = T.Bind(self.row + inside[0]), T.Bind(self.column + inside[1])
            with when((inside[0] < t.bm) & (row < p.m) & (column < n)):
                address = T.Bind(shared_address(self.meeting, *inside))
                sums = add_four([(address, rank) for rank in range(t.splits)] if t.splits > 1 else [(address,)])
                self._write(row, column, n, sums)

    def _write(self, row: Any, column: Any, n: Any, sums: list[Any]) -> None:
        p = self.product
        place = [self.item, row] if p.is_batched else [row]
        done = T.alloc_local((FOUR,), "float32")
        for i, value in enumerate(sums):
            at = tirx.min(column + i, n - 1)
            T.buffer_store(done, finished(p, self.bias, self.residual, value, place, at), [i])
        with T.If(T.truncmod(n, FOUR) == 0):
            with T.Then():
                _store_four(self.c.ptr_to([*place, column]), T.address_of(done[0]))
            with T.Else():
                for i in range(FOUR):
                    with when(column + i < n):
                        T.buffer_store(self.c, done[i], [*place, column + i])


def _store_four(to: Any, values: Any) -> None:
    do(c_call("void", "store_four_floats", to, values, source=STORE_FOUR))
