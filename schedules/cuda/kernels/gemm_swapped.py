"""Few rows of a by a 16-bit b on Hopper: c^T = b^T a^T, so that b fills the rows of a wgmma.

A wgmma has 64 rows at least, and as few as 8 columns: b's columns are its rows, and what is
multiplied besides is little. One thread streams b through the copy engine to a ring of shared
memory, as many bytes on their way as the ring holds, and with each stage what the rows of a
have there; a warpgroup multiplies from the ring. Blocks of a cluster may share a tile's k, and
add up their sums in a fixed order through the cluster's shared memory.

`chained`: the kernel is launched while the one before it ends. Until that has ended only the L2,
where all that it may still write comes by, is asked for the first stages of b, so that the memory
does not pause between kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import ceildiv
from tvmops.schedules.cuda.kernels.column_sums import add_four
from tvmops.schedules.cuda.kernels.neighbours import FOUR, store_four
from tvmops.schedules.cuda.kernels.product import Product, finished
from tvmops.schedules.cuda.words import (
    PROGRAMMATIC_LAUNCH,
    PTX_TYPES,
    Position,
    Ring,
    Scalar,
    ask_for_box,
    do,
    let_next_kernel_begin,
    ptx,
    shared_address,
    swizzled,
    tensor_map,
    tie,
    when,
)

PANEL = 64  # elements: a row of the 128-byte swizzle
CONSUMERS = 4  # warps
_PAD = 4  # floats behind a row of sums, so that rows start in different banks
_LOAD = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"


@dataclass(frozen=True)
class SwappedTiles:
    rows: int  # of a, a multiple of 8
    bn: int  # columns of b, a multiple of 8
    bk: int  # of a stage, a multiple of 64
    stages: int
    splits: int  # blocks of a cluster, which share k
    chained: int = 0  # 1: launched while the kernel before it ends; 2: as late as that pays
    ahead: int = 0  # stages that the L2 is asked for meanwhile

    @property
    def lines(self) -> int:
        """Columns of b that are multiplied: a multiple of what a wgmma takes."""
        return -(-self.bn // 64) * 64

    @property
    def stage_bytes(self) -> int:
        return (self.rows + self.lines) * self.bk * 2

    @property
    def shared_bytes(self) -> int:
        sums = self.rows * (self.lines + _PAD) * 4
        return self.stages * self.stage_bytes + sums + 16 * self.stages


class SwappedKernel:
    """`main(a, b, [bias], [residual], c)` of two dimensions each; rows of multiples of 16 bytes."""

    loaders = 1  # warps that load
    beside = 1  # blocks that share a multiprocessor, for which registers are left

    def __init__(self, product: Product, tiles: SwappedTiles) -> None:
        self.product, self.tiles = product, tiles

    def module(self) -> IRModule:
        p = self.product
        with IRBuilder() as builder, T.prim_func():
            T.func_name("main")
            self.a = self._array("a", p.m, p.k)
            self.b = self._array("b", *((p.n, p.k) if p.trans_b else (p.k, p.n)))
            self.bias = self._array("bias", p.n) if p.bias else None
            self.residual = self._array("residual", p.m, p.n) if p.residual else None
            self.c = self._array("c", p.m, p.n)
            self._maps()
            T.device_entry()
            with T.attr({"tirx.launch_bounds_min_blocks_per_sm": self.beside}):
                self._body()
        function = builder.get().with_attr("global_symbol", "main")
        chained = self.tiles.chained > 0
        return IRModule({"main": function.with_attr(*PROGRAMMATIC_LAUNCH) if chained else function})

    def _array(self, name: str, *shape: Any) -> Any:
        return T.arg(name, T.buffer(shape, self.product.dtype, align=16, buffer_name=name))

    def _maps(self) -> None:
        p, t = self.product, self.tiles
        self.a_map = tensor_map(self.a, p.dtype, [p.k, p.m], [PANEL, t.rows])
        if p.trans_b:
            self.b_map = tensor_map(self.b, p.dtype, [p.k, p.n], [PANEL, t.lines])
        else:
            self.b_map = tensor_map(self.b, p.dtype, [p.n, p.k], [PANEL, t.bk])

    def _body(self) -> None:
        p, t = self.product, self.tiles
        block = T.cta_id([ceildiv(p.m, t.rows) * ceildiv(p.n, t.bn) * t.splits])
        self.rank = T.cta_id_in_cluster([t.splits]) if t.splits > 1 else 0
        self.warp, self.lane = T.warp_id([CONSUMERS + self.loaders]), T.lane_id([32])
        self._shared_memory()
        with when((self.warp == 0) & (self.lane == 0)):
            self.ring.init()
            ptx("fence.mbarrier_init.release.cluster")
        do(T.cuda.cta_sync())
        # Through variables, lest what the launch computes becomes arguments of the kernel.
        band_count = T.Bind(T.truncdiv(Scalar(p.m)() + (t.rows - 1), t.rows))
        tile = T.Bind(T.truncdiv(block, t.splits))
        self.column = T.Bind(T.truncdiv(tile, band_count) * t.bn)  # bands of rows that share b are neighbours
        self.row = T.Bind(T.truncmod(tile, band_count) * t.rows)
        self.n = T.Bind(Scalar(p.n)())
        steps = T.Bind(T.truncdiv(Scalar(p.k)() + (t.bk - 1), t.bk))
        self.first = T.Bind(T.truncdiv(steps * self.rank, t.splits)) if t.splits > 1 else 0
        self.count = T.Bind(T.truncdiv(steps * (self.rank + 1), t.splits) - self.first)
        with T.If(self.warp < CONSUMERS):
            with T.Then():
                if t.chained:
                    ptx("griddepcontrol.wait")
                self._multiply()
                self._share()
            with T.Else():
                self._load_all()
        self._meet()  # all of the block at one instruction, as `bar.sync` is defined
        with when(self.warp < CONSUMERS):
            self._finish()
        if t.splits > 1:
            do(T.cuda.cluster_sync())  # no block leaves while its memory is read

    def _shared_memory(self) -> None:
        p, t = self.product, self.tiles
        panels = t.bk // PANEL
        pool = SMEMPool()
        of_b = (panels, t.lines, PANEL) if p.trans_b else (t.lines // PANEL, t.bk, PANEL)
        self.b_stages = pool.alloc((t.stages, *of_b), p.dtype, align=1024)
        self.a_stages = pool.alloc((t.stages, panels, t.rows, PANEL), p.dtype, align=1024)
        self.sums = pool.alloc((t.rows, t.lines + _PAD), "float32", align=16)
        self.ring = Ring(pool, t.stages, consumers=1, producers=self.loaders)
        pool.commit()

    # One thread loads.

    def _load_all(self) -> None:
        with when(T.cuda.elect_sync()):
            self._produce()

    def _produce(self) -> None:
        t, at = self.tiles, Position(self.tiles.stages)
        if t.chained:
            for step in range(t.ahead):
                with when(step < self.count):
                    self._each_box_of_b(step, self._ask)
                    self._each_box_of_a(step, self._ask)
        if t.chained == 1:
            let_next_kernel_begin()
        if t.chained:
            ptx("griddepcontrol.wait")
        with T.serial(self.count) as step:
            self.ring.empty.wait(at.stage, at.phase ^ 1)
            self.ring.full.expect(at.stage, t.stage_bytes)
            self.at = at
            self._each_box_of_b(step, self._load)
            self._each_box_of_a(step, self._load)
            at.advance()
        if t.chained == 2:
            let_next_kernel_begin()

    def _each_box_of_b(self, step: Any, use: Any) -> None:
        """Call `use(stages, panel, view, column, row)` for the boxes of a step of b, in the engine's terms."""
        t, k = self.tiles, (self.first + step) * self.tiles.bk
        if self.product.trans_b:
            for panel in range(t.bk // PANEL):
                use(self.b_stages, panel, self.b_map, k + panel * PANEL, self.column)
        else:
            for panel in range(t.lines // PANEL):
                use(self.b_stages, panel, self.b_map, self.column + panel * PANEL, k)

    def _each_box_of_a(self, step: Any, use: Any) -> None:
        k = (self.first + step) * self.tiles.bk
        for panel in range(self.tiles.bk // PANEL):
            use(self.a_stages, panel, self.a_map, k + panel * PANEL, self.row)

    def _ask(self, _: Any, panel: int, view: Any, column: Any, row: Any) -> None:
        ask_for_box(view, column, row)

    def _load(self, stages: Any, panel: int, view: Any, column: Any, row: Any) -> None:
        stage = self.at.stage
        ptx(
            _LOAD, stages.ptr_to([stage, panel, 0, 0]), T.address_of(view), column, row,
            self.ring.full.at(stage),
        )  # fmt: skip

    # Four warps multiply.

    def _multiply(self) -> None:
        t, at = self.tiles, Position(self.tiles.stages)
        self.blocks, each = t.lines // 64, t.rows // 2
        self.held = T.alloc_local((self.blocks * each,), "float32")
        for i in range(self.blocks * each):
            T.buffer_store(self.held, T.float32(0), [i])
        tie(self.held, self.blocks * each)
        a_base = Scalar(shared_address(self.a_stages, 0, 0, 0, 0), "uint32")
        b_base = Scalar(shared_address(self.b_stages, 0, 0, 0, 0), "uint32")
        before = Scalar(0)
        with T.serial(self.count) as step:
            self.ring.full.wait(at.stage, at.phase)
            ptx("wgmma.fence.sync.aligned")
            a = Scalar(a_base() + T.Cast("uint32", at.stage * (t.rows * t.bk * 2)), "uint32")()
            b = Scalar(b_base() + T.Cast("uint32", at.stage * (t.lines * t.bk * 2)), "uint32")()
            for part in range(t.bk // 16):
                for number in range(self.blocks):
                    self._product(number, part, a, b)
            ptx("wgmma.commit_group.sync.aligned")
            ptx("wgmma.wait_group.sync.aligned", 1)
            with when((step > 0) & (self.warp == 0) & (self.lane == 0)):
                self.ring.empty.arrive(before())
            before.set(at.stage)
            at.advance()
        ptx("wgmma.wait_group.sync.aligned", 0)
        tie(self.held, self.blocks * each)

    def _product(self, number: int, part: int, a: Any, b: Any) -> None:
        """Add to 64 columns of b the products of 16 values of k."""
        p, t, each = self.product, self.tiles, self.tiles.rows // 2
        kind = PTX_TYPES[p.dtype]
        panel, inside = part // 4, part % 4 * 32
        if p.trans_b:
            columns = swizzled(b + T.uint32(panel * t.lines * 128 + number * 8192 + inside))
        else:
            columns = swizzled(b + T.uint32(number * t.bk * 128 + part * 2048), leading=t.bk * 8)
        ptx(
            f"wgmma.mma_async.sync.aligned.m64n{t.rows}k16.f32.{kind}.{kind}",
            *(self.held[number * each + i] for i in range(each)),
            columns,
            swizzled(a + T.uint32(panel * t.rows * 128 + inside)),
            tirx.const(True, "bool"), 1, 1, int(not p.trans_b), 0,
        )  # fmt: skip

    # The sums meet.

    def _share(self) -> None:
        each = self.tiles.rows // 2
        for number in range(self.blocks):
            for i in range(each):
                row = i // 4 * 8 + self.lane % 4 * 2 + i % 2
                column = number * 64 + self.warp * 16 + i // 2 % 2 * 8 + T.truncdiv(self.lane, 4)
                T.buffer_store(self.sums, self.held[number * each + i], [row, column])

    def _meet(self) -> None:
        do(T.cuda.cluster_sync() if self.tiles.splits > 1 else T.cuda.cta_sync())

    def _finish(self) -> None:
        """Add up what the cluster's blocks have, and write it: four neighbours at a time, blocks in turn."""
        p, t = self.product, self.tiles
        fours = t.bn // FOUR
        present = T.Bind(tirx.min(Scalar(p.m)() - self.row, t.rows))
        first = self.rank * (CONSUMERS * 32) + self.warp * 32 + self.lane
        threads = t.splits * CONSUMERS * 32
        with T.serial(-(-t.rows * fours // threads)) as turn:
            at = T.Bind(first + turn * threads)
            row, inside = T.truncdiv(at, fours), T.truncmod(at, fours) * FOUR
            column = T.Bind(self.column + inside)
            with when((row < present) & (column < self.n)):
                address = T.Bind(shared_address(self.sums, row, inside))
                sums = add_four(
                    [(address, rank) for rank in range(t.splits)] if t.splits > 1 else [(address,)]
                )
                self._store(self.row + row, column, sums)

    def _store(self, row: Any, column: Any, sums: list[Any]) -> None:
        p, n = self.product, self.n
        columns = [tirx.min(column + i, n - 1) for i in range(FOUR)]
        done = [
            Scalar(finished(p, self.bias, self.residual, value, [row], at), "float32")()
            for value, at in zip(sums, columns)
        ]
        store_four(self.c, n, row, column, done)
