"""The kernel of `WeightOnlyWgmma`: many rows of x times integer weights with scales, on Hopper's wgmma.

c^T = w x^T: the weights' columns are the 64 rows of a wgmma, and come through registers, where their
integers become floats (`weight_fragments`); rows of x are its columns, 8 to 128 as there are. A thread
copies weights as they are packed, and x, by TMA to a ring of shared memory; warpgroups multiply, 64
columns each. The sum of a group is scaled in float32 and added up, so that integers are multiplied
exactly; while one warpgroup does so, or makes floats, the other's products go on.

Blocks take tile after tile. Of few tiles blocks of a cluster share k, and add up their sums in a fixed
order through the cluster's shared memory. `chained`: as in `kernels.gemm_swapped`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import ceildiv
from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.kernels.column_sums import add_four
from tvmops.schedules.cuda.kernels.neighbours import FOUR, store_four
from tvmops.schedules.cuda.kernels.weight_fragments import (
    COLUMNS,
    ELEMENTS,
    ROW_BYTES,
    PackedStage,
    WeightFragments,
    packed_map,
    variables,
)
from tvmops.schedules.cuda.weight_only_product import BK, WeightOnlyProduct
from tvmops.schedules.cuda.words import (
    PROGRAMMATIC_LAUNCH,
    Position,
    Ring,
    Scalar,
    ask_for_box,
    c_call,
    do,
    let_next_kernel_begin,
    pack,
    ptx,
    shared_address,
    swizzled,
    tensor_map,
    tie,
    when,
)

PANEL = 64  # elements: a row of the 128-byte swizzle
GROUP_COLUMNS = 64  # of a warpgroup
_PANELS = GROUP_COLUMNS // COLUMNS
_BAND = 16  # tiles of rows that are walked together
_REGISTERS = 65_536  # of a multiprocessor
_MOST_REGISTERS = 232  # of a thread that multiplies
_PRODUCER_REGISTERS = 40  # of one that loads
_MOST_ROWS_OF_TWO = 96  # of x, for two sets of products
_PAD = 4  # floats behind a row of sums, so that rows start in different banks
_TURN, _SHARED = 1, 3  # named barriers: of the first warpgroup's turn, and of all that multiply
_LOAD = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
_STORE_PAIR = """
__forceinline__ __device__ void store_pair(void* to, unsigned pair) { *static_cast<unsigned*>(to) = pair; }
"""


@dataclass(frozen=True)
class WeightOnlyWgmmaTiles:
    rows: int  # of x, a multiple of 8, at most 128
    groups: int  # warpgroups that multiply, 64 columns each
    stages: int
    splits: int  # blocks of a cluster, which share k
    beside: int  # blocks that share a multiprocessor
    chained: int  # 1: launched while the kernel before it ends; 2: as late as that pays
    multiprocessors: int

    @property
    def bn(self) -> int:
        return self.groups * GROUP_COLUMNS

    @property
    def sets(self) -> int:
        """Sets of products: while some of the second are made, the first are scaled, if there is room for both."""
        return 2 if self.rows <= _MOST_ROWS_OF_TWO else 1

    @property
    def sums(self) -> int:
        """Registers of a thread for sums."""
        return self.rows // 2 * (1 + self.sets)

    @property
    def consumer_registers(self) -> int:
        """Registers of a thread that multiplies, when those that load have given theirs away."""
        threads = 128 * (self.groups + 1)
        pool = _REGISTERS // self.beside // threads // 8 * 8 * threads
        return min((pool - 128 * _PRODUCER_REGISTERS) // (128 * self.groups) // 8 * 8, _MOST_REGISTERS)

    @property
    def x_bytes(self) -> int:
        return self.rows * BK * 2


def shared_bytes(product: WeightOnlyProduct, tiles: WeightOnlyWgmmaTiles) -> int:
    stage = tiles.x_bytes + tiles.groups * _PANELS * PackedStage.of(product).rows * ROW_BYTES
    sums = tiles.rows * (tiles.bn + _PAD) * 4 if tiles.splits > 1 else 0
    return max(tiles.stages * (stage + 16), sums)


class WeightOnlyWgmmaKernel:
    """`main(x, w, [bias], c)`; rows of x begin at multiples of 16 bytes."""

    def __init__(self, product: WeightOnlyProduct, tiles: WeightOnlyWgmmaTiles) -> None:
        self.product, self.tiles = product, tiles
        self.packed, self.panels = PackedStage.of(product), tiles.groups * _PANELS
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
        with T.If(self.warp < self.consumers):
            with T.Then():
                ptx("setmaxnreg.inc.sync.aligned.u32", t.consumer_registers)
                if t.chained:
                    ptx("griddepcontrol.wait")
                self._multiply(begin)
            with T.Else():
                ptx("setmaxnreg.dec.sync.aligned.u32", _PRODUCER_REGISTERS)
                with when((self.warp == self.consumers) & T.cuda.elect_sync()):
                    self._produce(begin)
        if t.splits > 1:
            do(T.cuda.cluster_sync())
            with when(self.warp < self.consumers):
                self._locate(begin)
                self._finish()
            do(T.cuda.cluster_sync())  # no block leaves while its memory is read

    def _shared_memory(self) -> None:
        p, t = self.product, self.tiles
        pool = SMEMPool()
        if t.splits > 1:  # in place of the ring, when that has been read
            self.sums = pool.alloc((t.rows, t.bn + _PAD), "float32", align=16)
            pool.move_base_to(0)
        self.x_stages = pool.alloc((t.stages, BK // PANEL, t.rows, PANEL), p.dtype, align=1024)
        self.w_stages = pool.alloc((t.stages, self.w_bytes), "uint8", align=128)
        self.ring = Ring(pool, t.stages, consumers=t.groups)
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
        t = self.tiles
        self.at, self.held = Position(t.stages), t.rows // 2
        self.group, self.place = T.truncdiv(self.warp, 4), T.truncmod(self.warp, 4)
        base = shared_address(self.w_stages, 0, 0)
        self.fragments = WeightFragments(self.packed, self.product, base, self.panels, self.warp, self.lane)
        self.x_base = Scalar(shared_address(self.x_stages, 0, 0, 0, 0), "uint32")()
        self.totals = variables("totals", self.held, "float32")
        self.products = [variables("products", self.held, "float32") for _ in range(t.sets)]
        self.scales = [variables("scales", 2, "float32") for _ in range(t.sets)]
        self.before = Scalar(0)
        if self._takes_turns:
            with when(self.group == 1):
                self._pass_turn()
        self._each_tile(begin, self._multiply_tile)

    def _multiply_tile(self) -> None:
        for registers in (self.totals, *self.products):
            for i in range(self.held):
                T.buffer_store(registers, T.float32(0), [i])
        for scales in self.scales:
            for i in range(2):
                T.buffer_store(scales, T.float32(0), [i])
        for products in self.products:
            tie(products, self.held)
        if self.tiles.sets > 1:
            self._multiply_ahead()
        else:
            self._multiply_in_turn()
        if self.tiles.splits > 1:
            self._share()
        else:
            self._store_all()

    def _batches(self) -> list[tuple[int, int, int]]:
        """Return a stage's sets of fragments: their number, their group, and which they are of that."""
        each = max(1, self.product.group // (BK // 2))
        return [(number, number // each, number % each) for number in range(BK // self.product.group * each)]

    def _multiply_in_turn(self) -> None:
        """Add up a group's products, and scale them when all are there."""
        with T.serial(self.steps) as step:
            self.ring.full.wait(self.at.stage, self.at.phase)
            stage, batches = self.at.stage, self._batches()
            for number, group, batch in batches:
                if batch == 0:
                    self.fragments.load_zero_points(stage, group)
                self.fragments.load(stage, group, batch, number % 2)
                if batch == 0:
                    self._scale(0, 0)
                    self.fragments.load_scales(self.scales[0], stage, group)
                    if number == 0:
                        with when(step > 0):
                            self._release()
                    self._await_turn()
                self._begin(stage, number, 0, batch == 0)
                if number + 1 == len(batches) or batches[number + 1][1] > group:
                    self._pass_turn()
                if batch > 0:  # the set before is free again
                    ptx("wgmma.wait_group.sync.aligned", 1)
            self.before.set(self.at.stage)
            self.at.advance()
        self._scale(0, 0)
        self._release()

    def _multiply_ahead(self) -> None:
        """Scale the products of each set of fragments, while those of the next are made."""
        at, before, batches = self.at, self.before, self._batches()
        self.ring.full.wait(at.stage, at.phase)
        self._load(at.stage, *batches[0])
        with T.serial(self.steps) as step:
            before.set(at.stage)
            at.advance()
            for number, group, _ in batches:
                self._begin(before(), number, number % 2, True)
                if number > 0:
                    self._scale((number - 1) % 2, 1)
                self.fragments.load_scales(self.scales[number % 2], before(), group)
                if number + 1 < len(batches):
                    self._load(before(), *batches[number + 1])
                else:
                    with when(step + 1 < self.steps):
                        self.ring.full.wait(at.stage, at.phase)
                        self._load(at.stage, *batches[0])
            self._scale((len(batches) - 1) % 2, 0)
            self._release()

    def _load(self, stage: Any, number: int, group: int, batch: int) -> None:
        if batch == 0:
            self.fragments.load_zero_points(stage, group)
        self.fragments.load(stage, group, batch, number % 2)

    def _begin(self, stage: Any, number: int, products: int, begins: bool) -> None:
        """Begin to multiply the `number`-th set of a stage."""
        ptx("wgmma.fence.sync.aligned")
        first = number * self.fragments.steps
        views = [self._view(stage, first + i) for i in range(self.fragments.steps)]
        self.fragments.multiply(number % 2, self.products[products], self.tiles.rows, views, begins)
        ptx("wgmma.commit_group.sync.aligned")

    @property
    def _takes_turns(self) -> bool:
        return self.tiles.groups == 2 and self.tiles.sets == 1

    def _await_turn(self) -> None:
        """Wait until the other warpgroup has begun to multiply, so that one multiplies while one does not."""
        if self._takes_turns:
            ptx("bar.sync", T.Cast("uint32", _TURN + self.group), T.uint32(256))

    def _pass_turn(self) -> None:
        if self._takes_turns:
            ptx("bar.arrive", T.Cast("uint32", _TURN + 1 - self.group), T.uint32(256))

    def _scale(self, which: int, others: int) -> None:
        """Wait for products but those of the last `others`; add those of a set, scaled, to what there is."""
        ptx("wgmma.wait_group.sync.aligned", others)
        products, scales = self.products[which], self.scales[which]
        tie(products, self.held)
        for i in range(self.held):
            T.buffer_store(self.totals, self.totals[i] + scales[i // 2 % 2] * products[i], [i])

    def _release(self) -> None:
        with when((self.place == 0) & (self.lane == 0)):
            self.ring.empty.arrive(self.before())

    def _view(self, stage: Any, step: int) -> Any:
        """Return wgmma's view of 16 values of k of x."""
        inside = step // 4 * (self.tiles.rows * PANEL * 2) + step % 4 * 32
        return swizzled(self.x_base + T.Cast("uint32", stage * self.tiles.x_bytes + inside))

    # The end: totals of two neighbouring columns, and of two rows of each eight.

    def _each_pair(self, use: Any) -> None:
        """Call `use(row, column, first)` for this thread's pairs, in terms of the tile and of `totals`."""
        column = T.Bind(self.warp * COLUMNS + T.truncdiv(self.lane, 4) * 2)
        for part in range(self.tiles.rows // 8):
            for e in range(2):
                use(part * 8 + T.truncmod(self.lane, 4) * 2 + e, column, part * 4 + e)

    def _share(self) -> None:
        def leave(row: Any, column: Any, first: int) -> None:
            for half in range(2):
                T.buffer_store(self.sums, self.totals[first + half * 2], [row, column + half])

        ptx("bar.sync", T.uint32(_SHARED), T.uint32(32 * self.consumers))  # others may still read the ring
        self._each_pair(leave)

    def _store_all(self) -> None:
        n = self.n
        biases: list[Any] = []
        if self.bias is not None:
            first = self.column + self.warp * COLUMNS + T.truncdiv(self.lane, 4) * 2
            for i in range(2):
                biases.append(Scalar(T.Cast("float32", self.bias[tirx.min(first + i, n - 1)]), "float32")())

        def store(row: Any, column: Any, first: int) -> None:
            place, at = self.row + row, self.column + column
            with when((place < self.m) & (at < n)):
                values = [self.totals[first + half * 2] for half in range(2)]
                if biases:
                    values = [value + bias for value, bias in zip(values, biases)]
                values = [activate(self.product.activation, value) for value in values]
                with T.If(T.truncmod(n, 2) == 0):
                    with T.Then():
                        to, pair = self.c.ptr_to([place, at]), pack(self.product.dtype, *values)
                        do(c_call("void", "store_pair", to, pair, source=_STORE_PAIR))
                    with T.Else():
                        for i, value in enumerate(values):
                            with when(at + i < n):
                                T.buffer_store(self.c, T.Cast(self.product.dtype, value), [place, at + i])

        self._each_pair(store)

    def _finish(self) -> None:
        """Add up what the cluster's blocks have, and write it: four neighbours at a time, blocks in turn."""
        t = self.tiles
        fours = t.bn // FOUR
        present = T.Bind(tirx.min(self.m - self.row, t.rows))
        first = self.rank * (self.consumers * 32) + self.warp * 32 + self.lane
        threads = t.splits * self.consumers * 32
        with T.serial(-(-t.rows * fours // threads)) as turn:
            at = T.Bind(first + turn * threads)
            row, inside = T.truncdiv(at, fours), T.truncmod(at, fours) * FOUR
            column = T.Bind(self.column + inside)
            with when((row < present) & (column < self.n)):
                address = T.Bind(shared_address(self.sums, row, inside))
                sums = add_four([(address, rank) for rank in range(t.splits)])
                columns = [tirx.min(column + i, self.n - 1) for i in range(FOUR)]
                done = [Scalar(self._finished(value, at), "float32")() for value, at in zip(sums, columns)]
                store_four(self.c, self.n, self.row + row, column, done)

    def _finished(self, value: Any, column: Any) -> Any:
        if self.bias is not None:
            value = value + T.Cast("float32", self.bias[column])
        return activate(self.product.activation, value)
