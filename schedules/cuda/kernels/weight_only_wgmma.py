"""The kernel of `WeightOnlyWgmma`: many rows of x times integer weights with scales, on Hopper's wgmma.

c^T = w x^T: the weights' columns are the 64 rows of a wgmma, and come through registers, where their
integers become floats (`weight_fragments`); rows of x are its columns, 8 to 128 as there are. A thread
copies weights as they are packed, and x, by TMA to a ring of shared memory; warpgroups multiply, 64
columns each. The sum of a group is scaled in float32 and added up, so that integers are multiplied
exactly; while one warpgroup does so, or makes floats, the other's products go on. With `rounded`
tiles the floats are scaled before, and rounded: all of k is one sum, which leaves registers for twice
the rows, and nothing waits for the end of a group.

Blocks take tile after tile. Of few tiles blocks of a cluster share k, and add up their sums in a fixed
order through the cluster's shared memory. `chained`: as in `kernels.gemm_swapped`.
"""

from __future__ import annotations

from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import ceildiv
from tvmops.schedules.cuda.kernels.weight_fragments import (
    COLUMNS,
    ELEMENTS,
    ROW_BYTES,
    PackedStage,
    packed_map,
)
from tvmops.schedules.cuda.kernels.weight_only_products import PANEL, WeightProducts
from tvmops.schedules.cuda.kernels.weight_only_totals import Totals
from tvmops.schedules.cuda.weight_only_product import BK, WeightOnlyProduct
from tvmops.schedules.cuda.weight_only_tiles import PAD, PRODUCER_REGISTERS, WeightOnlyWgmmaTiles
from tvmops.schedules.cuda.words import (
    PROGRAMMATIC_LAUNCH,
    Position,
    Ring,
    Scalar,
    ask_for_box,
    do,
    let_next_kernel_begin,
    ptx,
    tensor_map,
    when,
)

_BAND = 16  # tiles of rows that are walked together
_LOAD = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"


class WeightOnlyWgmmaKernel:
    """`main(x, w, [bias], c)`; rows of x begin at multiples of 16 bytes."""

    def __init__(self, product: WeightOnlyProduct, tiles: WeightOnlyWgmmaTiles) -> None:
        self.product, self.tiles = product, tiles
        self.packed, self.panels = PackedStage.of(product), tiles.panels
        self.w_bytes = self.panels * self.packed.rows * ROW_BYTES  # of a stage
        self.consumers = 4 * tiles.groups  # warps

    def module(self) -> IRModule:
        p, t = self.product, self.tiles
        panels, rows = ceildiv(p.n, COLUMNS), ceildiv(p.k, p.groups.group) * p.groups.rows
        with IRBuilder() as builder, T.prim_func():
            T.func_name("main")
            self.x = T.arg("x", T.buffer((p.m, p.k), p.dtype, align=16, buffer_name="x"))
            self.w = T.arg("w", T.buffer((panels, rows, ROW_BYTES), "uint8", align=16, buffer_name="w"))
            bias = T.buffer((p.n,), p.dtype, align=2, buffer_name="bias") if p.bias else None
            self.bias = T.arg("bias", bias) if bias is not None else None
            self.c = T.arg("c", T.buffer((p.m, p.n), p.dtype, align=16, buffer_name="c"))
            self.x_map = tensor_map(self.x, p.dtype, [p.k, p.m], [PANEL, t.rows])
            pitch = rows * ELEMENTS
            self.w_map = packed_map(self.w, pitch, panels, self.packed.box_rows, self.panels)
            if self.packed.apart:
                self.head_map = packed_map(self.w, pitch, panels, self.packed.heads, self.panels)
            T.device_entry()
            with T.attr({"tirx.launch_bounds_min_blocks_per_sm": t.beside}):
                self._body()
        function = builder.get().with_attr("global_symbol", "main")
        return IRModule({"main": function.with_attr(*PROGRAMMATIC_LAUNCH) if t.chained else function})

    def _body(self) -> None:
        p, t = self.product, self.tiles
        count = ceildiv(p.m, t.rows) * ceildiv(p.n, t.bn)
        workers = t.multiprocessors * t.beside
        block = T.cta_id([count * t.splits if t.splits > 1 else tirx.min(count, workers)])
        self.rank = T.cta_id_in_cluster([t.splits]) if t.splits > 1 else 0
        self.warp, self.lane = T.warp_id([self.consumers + 4]), T.lane_id([32])
        self._shared_memory()
        with when((self.warp == 0) & (self.lane == 0)):
            self.ring.init()
            ptx("fence.mbarrier_init.release.cluster")
        do(T.cuda.cta_sync())
        # Through variables, lest what the launch computes becomes arguments of the kernel.
        self.n, self.m = T.Bind(Scalar(p.n)()), T.Bind(Scalar(p.m)())
        self.bands = T.Bind(T.truncdiv(self.m + (t.rows - 1), t.rows))
        self.count = T.Bind(self.bands * T.truncdiv(self.n + (t.bn - 1), t.bn))
        steps = T.Bind(T.truncdiv(Scalar(p.k)() + (BK - 1), BK))
        self.first = T.Bind(T.truncdiv(steps * self.rank, t.splits)) if t.splits > 1 else 0
        self.steps = T.Bind(T.truncdiv(steps * (self.rank + 1), t.splits) - self.first)
        begin = T.Bind(T.truncdiv(block, t.splits)) if t.splits > 1 else block
        self.totals = Totals(p, t, (self.bias, self.c), (self.m, self.n), self.warp, self.lane)
        with T.If(self.warp < self.consumers):
            with T.Then():
                ptx("setmaxnreg.inc.sync.aligned.u32", t.consumer_registers)
                if t.chained:
                    ptx("griddepcontrol.wait")
                self._multiply(begin)
            with T.Else():
                ptx("setmaxnreg.dec.sync.aligned.u32", PRODUCER_REGISTERS)
                with when((self.warp == self.consumers) & T.cuda.elect_sync()):
                    self._produce(begin)
        if t.splits > 1:
            do(T.cuda.cluster_sync())
            with when(self.warp < self.consumers):
                self._locate(begin)
                self.totals.add_up(self.sums, self.row, self.column, self.rank)
            do(T.cuda.cluster_sync())  # no block leaves while its memory is read

    def _shared_memory(self) -> None:
        p, t = self.product, self.tiles
        pool = SMEMPool()
        if t.splits > 1:  # in place of the ring, when that has been read
            self.sums = pool.alloc((t.rows, t.bn + PAD), "float32", align=16)
            pool.move_base_to(0)
        self.x_stages = pool.alloc((t.stages, BK // PANEL, t.rows, PANEL), p.dtype, align=1024)
        self.w_stages = pool.alloc((t.stages, self.w_bytes), "uint8", align=128)
        self.ring = Ring(pool, t.stages, consumers=self.consumers)
        pool.commit()

    # The tiles.

    def _each_tile(self, begin: Any, work: Any) -> None:
        """Call `work()` for each of this block's tiles, when it knows where that lies."""
        t = self.tiles
        if t.splits > 1:
            self._locate(begin)
            work()
            return
        workers, tile = t.multiprocessors * t.beside, Scalar(begin)
        with T.While(tile() < self.count):
            self._locate(tile())
            work()
            tile.set(tile() + workers)

    def _locate(self, tile: Any) -> None:
        """Find a tile: bands of rows of tiles are walked column by column."""
        t = self.tiles
        columns = T.truncdiv(self.n + (t.bn - 1), t.bn)
        band = T.Bind(T.truncdiv(tile, columns * _BAND))
        rest = T.Bind(tile - band * (columns * _BAND))
        height = T.Bind(tirx.min(self.bands - band * _BAND, _BAND))
        self.column = T.Bind(T.truncdiv(rest, height) * t.bn)
        self.row = T.Bind((band * _BAND + T.truncmod(rest, height)) * t.rows)

    # One thread loads.

    def _produce(self, begin: Any) -> None:
        t, self.at = self.tiles, Position(self.tiles.stages)
        if t.chained:
            self._locate(begin)
            for step in range(t.stages):
                with when(step < self.steps):
                    self._each_box(self.first + step, self._ask_for_box)
        if t.chained == 1:
            let_next_kernel_begin()
        if t.chained:
            ptx("griddepcontrol.wait")
        self._each_tile(begin, self._produce_tile)
        if t.chained == 2:
            let_next_kernel_begin()

    def _produce_tile(self) -> None:
        t, at = self.tiles, self.at
        with T.serial(self.steps) as step:
            self.ring.empty.wait(at.stage, at.phase ^ 1)
            self.ring.full.expect(at.stage, t.x_bytes + self.w_bytes)
            self._each_box(self.first + step, self._load_box)
            for panel in range(BK // PANEL):
                k = (self.first + step) * BK + panel * PANEL
                to, full = self.x_stages.ptr_to([at.stage, panel, 0, 0]), self.ring.full.at(at.stage)
                ptx(_LOAD, to, T.address_of(self.x_map), k, self.row, full)
            at.advance()

    def _each_box(self, step: Any, use: Any) -> None:
        """Call `use(view, inside, element, panel)` for the boxes of a step of weights, in the engine's terms."""
        layout, packed = self.product.groups, self.packed
        panel = T.truncdiv(self.column, COLUMNS)
        first = T.truncdiv(step * BK, layout.group) * (layout.rows * ELEMENTS)
        if not packed.apart:
            for box in range(packed.boxes):
                along = first + box * packed.box_rows * ELEMENTS
                use(self.w_map, box * packed.box_rows, along, panel)
            return
        use(self.head_map, 0, first, panel)
        skipped = T.truncdiv(T.truncmod(step * BK, layout.group), layout.step)
        use(self.w_map, packed.heads, first + (packed.heads + skipped) * ELEMENTS, panel)

    def _load_box(self, view: Any, row: int, element: Any, panel: Any) -> None:
        stage, place = self.at.stage, row * ROW_BYTES * self.panels
        to, full = self.w_stages.ptr_to([stage, place]), self.ring.full.at(stage)
        ptx(_LOAD, to, T.address_of(view), element, panel, full)

    def _ask_for_box(self, view: Any, _: int, element: Any, panel: Any) -> None:
        ask_for_box(view, element, panel)

    # Warpgroups multiply.

    def _multiply(self, begin: Any) -> None:
        stages = self.x_stages, self.w_stages, self.ring
        products = WeightProducts(self.product, self.tiles, stages, self.steps, self.warp, self.lane)

        def work() -> None:
            products.multiply()
            if self.tiles.splits > 1:
                self.totals.leave(products.totals, self.sums)
            else:
                self.totals.store(products.totals, self.row, self.column)

        self._each_tile(begin, work)
