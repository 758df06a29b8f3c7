"""The kernel of `attention_decode`: one query a head against a long cache, which is read once.

A cluster of `splits` blocks serves one key and value head; their warps take its chunks of keys by
turns. A warp works alone: it copies its next chunks to a ring of its own (cp.async) while it
multiplies the last, on tensor cores, with keys as rows and the heads that share them as columns
(mma.sync m16n8k16), so that up to 8 heads cost one product:

    scores (keys x heads) = k q^T        out^T (head_dim x heads) += v^T weights

Warps, then blocks, bring their sums to a common maximum and add them, in a fixed order, through
shared memory and that of the cluster: each block sends its sums of a head to the block that
finishes that head, and which waits for nothing else (the split of the keys is that of T. Dao et al.,
Flash-Decoding, 2023). There is no workspace and no second kernel, unless several clusters serve a head:
`attention_parts`.

On Hopper the kernel is launched while the one before ends; it asks the L2 for its first keys and
values, and reads nothing until that one is done. It lets the next one begin in turn: where blocks of
that find room, when a warp has some chunks left, so that memory is busy while blocks meet.
"""

from __future__ import annotations

from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import ceildiv
from tvmops.schedules.cuda.kernels.attention_chunk import Chunk
from tvmops.schedules.cuda.kernels.attention_copies import Copies
from tvmops.schedules.cuda.kernels.attention_meeting import Meeting
from tvmops.schedules.cuda.kernels.attention_parts import (
    add_parts,
    workspace_argument,
    workspace_bytes,
    workspace_function,
)
from tvmops.schedules.cuda.kernels.attention_shares import COLUMNS, PAD, SUMMED, Cache, Split, pitch
from tvmops.schedules.cuda.kernels.attention_tiles import Heads, mask_argument
from tvmops.schedules.cuda.words import (
    PROGRAMMATIC_LAUNCH,
    Barriers,
    Scalar,
    c_call,
    do,
    let_next_kernel_begin,
    ptx,
    when,
)

_PAIR = """
__forceinline__ __device__ unsigned load_query_pair(const void* pointer) {
  return *static_cast<const unsigned*>(pointer);
}
"""


class SplitKernel:
    """`main(q, k, v, [mask], [lengths, [block_table]], scale, out, [workspace])` for one query a head."""

    def __init__(self, sizes: Heads, split: Split, cache: Cache, chained: bool) -> None:
        assert isinstance(sizes.heads, int) and isinstance(sizes.kv_heads, int)
        self.sizes, self.split, self.cache = sizes, split, cache
        self.chained = chained  # launched while the kernel before ends
        self.most_keys = sizes.kv_len
        if cache.page_size:
            known = isinstance(sizes.kv_len, int)
            self.columns_of_table = (
                ceildiv(sizes.kv_len, cache.page_size) if known else tirx.Var("columns", "int32")
            )
            self.most_keys = self.columns_of_table * cache.page_size
        self.parts_meet = split.clusters > 1  # in a workspace
        self.group = sizes.heads // sizes.kv_heads
        self.tiles = -(-self.group // COLUMNS)
        self.columns = self.tiles * COLUMNS
        self.parts = sizes.head_dim // 16
        self.chunk = split.keys * pitch(sizes.head_dim)  # bytes of k, or of v

    def module(self) -> IRModule:
        with IRBuilder() as builder, T.prim_func():
            T.func_name("main")
            self._arguments()
            if self.parts_meet:
                self.workspace = workspace_argument()
            with T.attr(0, "tirx.device_entry", True), T.attr({"tirx.launch_bounds_min_blocks_per_sm": 1}):
                self._body()
            if self.parts_meet:
                add_parts(self)
        function = builder.get().with_attr("global_symbol", "main")
        functions = {"main": function.with_attr(*PROGRAMMATIC_LAUNCH) if self.chained else function}
        if self.parts_meet:
            functions["main_workspace"] = workspace_function(self._arguments, lambda: workspace_bytes(self))
        return IRModule(functions)

    def _arguments(self) -> None:
        s, paged = self.sizes, self.cache.page_size > 0
        of_kv = (self.cache.pages, self.cache.page_size) if paged else (s.batch, s.kv_len)
        self.q = self._array("q", s.batch, s.heads, 1)
        self.kv = {name: self._array(name, of_kv[0], s.kv_heads, of_kv[1]) for name in "kv"}
        if s.mask:
            self.mask = mask_argument(s)
        if s.lengths:
            self.lengths = T.arg("lengths", T.buffer((s.batch,), "int32", buffer_name="lengths"))
        if paged:
            table = T.buffer((s.batch, self.columns_of_table), "int32", buffer_name="block_table")
            self.table = T.arg("block_table", table)
        self.scale = T.arg("scale", T.float32())
        self.out = self._array("out", s.batch, s.heads, 1)

    def _array(self, name: str, outer: Any, heads: Any, rows: Any) -> Any:
        beside = self.cache.beside and name != "out"
        shape = (outer, *((rows, heads) if beside else (heads, rows)), self.sizes.head_dim)
        return T.arg(name, T.buffer(shape, self.sizes.dtype, align=16, buffer_name=name))

    def _body(self) -> None:
        s, split = self.sizes, self.split
        block = T.cta_id([s.batch * s.kv_heads * split.blocks])
        self.rank = T.cta_id_in_cluster([split.splits]) if split.splits > 1 else 0
        self.warp, self.lane = T.warp_id([split.warps]), T.lane_id([32])
        self.thread = self.warp * 32 + self.lane
        self.pair = T.truncdiv(block, split.blocks)  # the key and value head, counted over the batch
        self.part, self.number = 0, self.rank  # of the blocks that share it: the cluster's, the block's
        if self.parts_meet:
            self.part = T.Bind(T.truncmod(T.truncdiv(block, split.splits), split.clusters))
            self.number = T.Bind(self.part * split.splits + self.rank)
        self.sequence, self.head = T.truncdiv(self.pair, s.kv_heads), T.truncmod(self.pair, s.kv_heads)
        self.length = s.kv_len
        if s.lengths:
            self._await_kernels_before()
            self.length = T.Bind(tirx.max(tirx.min(self.lengths[self.sequence], self.most_keys), 0))
        self._shared_memory()
        copies = Copies(self)
        if not s.lengths:
            copies.ask_ahead()
            self._await_kernels_before()
        copies.begin()  # before all that need not come first
        meeting = Meeting(self)
        self._load_q()
        chunk = Chunk(self, copies)
        self._walk(copies, chunk)
        meeting.hold(chunk)

    def _await_kernels_before(self) -> None:
        if self.chained:
            ptx("griddepcontrol.wait")

    def _shared_memory(self) -> None:
        split, dim = self.split, self.sizes.head_dim
        pool = SMEMPool()
        self.ring = pool.alloc((split.warps, split.stages, 2, self.chunk), "uint8", align=128)
        pool.move_base_to(0)  # a warp leaves its sums in its own ring, which is larger
        self.sums = pool.alloc((split.warps, split.stages * 2 * self.chunk // 4), "float32", align=128)
        self.mosts = pool.alloc((split.warps, self.columns), "float32", align=16)
        self.totals = pool.alloc((split.warps, self.columns), "float32", align=16)
        if split.splits > 1:  # from each block, of the heads that this one finishes
            places = (split.splits, split.finished(self.group))
            self.received = pool.alloc((*places, dim + PAD), "float32", align=16)
            self.received_scales = pool.alloc((*places, 2), "float32", align=8)  # maximum and total
            self.all_here = Barriers(pool, 1, 1)
        pool.commit()

    def _load_q(self) -> None:
        """This thread's part of q^T: column lane / 4, two rows of each 8."""
        sign = tirx.Select(self.scale < T.float32(0), T.uint32(0x80008000), T.uint32(0))
        self.queries = T.alloc_local((self.tiles * self.parts * 2,), "uint32")
        for tile in range(self.tiles):
            head = tile * COLUMNS + T.truncdiv(self.lane, 4)
            for i in range(self.parts * 2):
                T.buffer_store(self.queries, T.uint32(0), [tile * self.parts * 2 + i])
            with when(head < self.group):
                for i in range(self.parts * 2):
                    own = self.head * self.group + head
                    place = [0, own] if self.cache.beside else [own, 0]
                    at = self.q.ptr_to([self.sequence, *place, i * 8 + self.lane % 4 * 2])
                    pair = c_call("uint32", "load_query_pair", at, source=_PAIR) ^ sign
                    T.buffer_store(self.queries, pair, [tile * self.parts * 2 + i])

    def _walk(self, copies: Copies, chunk: Chunk) -> None:
        split, stages = self.split, self.split.stages
        use, fill = Scalar(0), Scalar(stages - 1)
        with T.serial(copies.count) as step:
            ptx("cp.async.wait_group", stages - 2)
            do(T.cuda.warp_sync())
            if self.chained and split.early > SUMMED:
                left = tirx.min(split.early - SUMMED, copies.count)
                with when(tirx.And(self.warp == 0, step == copies.count - left)):
                    let_next_kernel_begin()
            copies.go_on(step, fill())
            chunk.consume(use(), copies.key(step))
            for at in (use, fill):
                at.set(tirx.Select(at() == stages - 1, 0, at() + 1))
        ptx("cp.async.wait_group", 0)
