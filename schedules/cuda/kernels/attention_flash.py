"""The kernel of `attention_wgmma`: online softmax between two products on Hopper's tensor cores.

A block of threads takes one tile of `bm` query rows at a time and walks the tiles of `bn` keys
that these rows see, last ones first. One warpgroup of threads feeds rings of shared memory
through the copy engine; each of the others owns 64 rows, whose scores, weights and sums stay
in its registers:

    scores = q k^T       (wgmma, both from shared memory)   of the next tile, while
    out   += weights v   (wgmma, weights from registers)    runs, too; then
    weights = exp2(scale log2(e) scores - maximum), and out is scaled to the new maximum

Warpgroups take turns at the tensor cores, so that the exponentials of one run under the products
of another (J. Shah et al., FlashAttention-3, NeurIPS 2024, sections 3.1 and 3.2).

Only the first tiles of a walk can have keys that are not seen: beyond the end, or above the
diagonal. They are masked; the others run without.
"""

from __future__ import annotations

from typing import Any

from tvm import IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, ceildiv
from tvmops.schedules.cuda.kernels.attention_consumer import Consumer
from tvmops.schedules.cuda.kernels.attention_load import Producer
from tvmops.schedules.cuda.kernels.attention_tiles import COLUMNS, ROWS, Heads, Tiles, mask_argument
from tvmops.schedules.cuda.kernels.attention_walk import Walk
from tvmops.schedules.cuda.words import Barriers, Ring, do, ptx, tensor_map, when


class FlashKernel:
    resident = 1  # blocks for which a multiprocessor is to have registers

    def __init__(self, sizes: Heads, tiles: Tiles) -> None:
        self.sizes, self.tiles = sizes, tiles
        self.blocks_of_columns = -(-sizes.head_dim // COLUMNS)
        self.depth = -(-sizes.head_dim // 16) * 16  # columns that the products run over
        self.q_tiles = ceildiv(sizes.q_len, tiles.bm)
        self.pairs = sizes.batch * sizes.heads

    def module(self) -> IRModule:
        with IRBuilder() as builder, T.prim_func():
            T.func_name("main")
            self._arguments()
            T.device_entry()
            with T.attr({"tirx.launch_bounds_min_blocks_per_sm": self.resident}):
                self._body()
        return IRModule({"main": builder.get().with_attr("global_symbol", "main")})

    def _arguments(self) -> None:
        s = self.sizes
        for name, heads, length in (
            ("q", s.heads, s.q_len),
            ("k", s.kv_heads, s.kv_len),
            ("v", s.kv_heads, s.kv_len),
        ):
            self._array(name, heads, length)
        if s.mask:
            self.mask = mask_argument(s)
        if s.lengths:
            self.lengths = T.arg("lengths", T.buffer((s.batch,), "int32", buffer_name="lengths"))
        self.scale = T.arg("scale", T.float32())
        self._array("out", s.heads, s.q_len)
        boxes = {"q": ROWS, "k": self.tiles.bn, "v": self.tiles.bn, "out": ROWS}
        self.maps = {
            name: tensor_map(
                array,
                s.dtype,
                [s.head_dim, array.shape[2], s.batch * array.shape[1]],
                [COLUMNS, boxes[name], 1],
            )
            for name, array in self.arrays.items()
        }

    def _array(self, name: str, heads: Extent, length: Extent) -> None:
        if not hasattr(self, "arrays"):
            self.arrays: dict[str, Any] = {}
        shape = (self.sizes.batch, heads, length, self.sizes.head_dim)
        self.arrays[name] = T.arg(name, T.buffer(shape, self.sizes.dtype, align=16, buffer_name=name))

    def _body(self) -> None:
        tiles = self.tiles
        self.block = T.cta_id([self.grid()])
        self.group = T.warpgroup_id([tiles.consumers + 1])
        self.warp = T.warp_id_in_wg([4])
        self.lane = T.lane_id([32])
        pool = SMEMPool()
        self._shared_memory(pool)
        pool.commit()
        with when((self.group == 0) & (self.warp == 0) & (self.lane == 0)):
            for barriers in self.barriers():
                barriers.init()
            ptx("fence.mbarrier_init.release.cluster")
        do(T.cuda.cta_sync())
        produces, consumes = self.registers()
        with T.If(self.group == tiles.consumers):
            with T.Then():
                ptx("setmaxnreg.dec.sync.aligned.u32", produces)
                self._produce()
            with T.Else():
                ptx("setmaxnreg.inc.sync.aligned.u32", consumes)
                self._consume()

    def barriers(self) -> tuple[Barriers | Ring, ...]:
        return self.q_full, self.q_empty, self.k_ring, self.v_ring

    def grid(self) -> Extent:
        """Count the blocks."""
        return self.tiles.blocks

    def registers(self) -> tuple[int, int]:
        """Count the registers of a thread of the producer, and of a consumer."""
        return self.tiles.registers

    def _produce(self) -> None:
        with when(self.warp == 0), when(T.cuda.elect_sync()):
            Producer(self, Walk(self)).run()

    def _consume(self) -> None:
        Consumer(self, Walk(self)).run()

    def _shared_memory(self, pool: Any) -> None:
        tiles, dtype, columns = self.tiles, self.sizes.dtype, self.blocks_of_columns
        own = (tiles.consumers, columns, ROWS, COLUMNS)
        self.q_words = pool.alloc((tiles.consumers, columns * ROWS * COLUMNS // 2), "uint32", align=1024)
        pool.move_base_to(0)
        self.q = pool.alloc(own, dtype, align=1024)
        self.out = pool.alloc(own, dtype, align=1024) if tiles.own_out else self.q
        self.k = pool.alloc((tiles.stages, columns, tiles.bn, COLUMNS), dtype, align=1024)
        self.v = pool.alloc((tiles.stages, columns, tiles.bn, COLUMNS), dtype, align=1024)
        self.q_full, self.q_empty = Barriers(pool, tiles.consumers, 1), Barriers(pool, tiles.consumers, 1)
        self.k_ring, self.v_ring = (Ring(pool, tiles.stages, tiles.consumers) for _ in "kv")
