"""The kernel of `attention_decode`: one query a head against a long cache, which is read once.

A cluster of `splits` blocks serves one key and value head; each block takes a stretch of the
keys, each of its warps every `warps`-th chunk of that. A warp works alone: it copies its next
chunks to a ring of its own (cp.async) while it multiplies the last, on tensor cores, with keys
as rows and the heads that share them as columns (mma.sync m16n8k16), so that up to 8 heads cost
one product:

    scores (keys x heads) = k q^T        out^T (head_dim x heads) += v^T weights

Warps, then blocks, bring their sums to a common maximum and add them, in a fixed order, through
shared memory and that of the cluster: each block sends its sums of a head to the block that
finishes that head. No workspace, no second kernel (the split of the keys is that of T. Dao et
al., Flash-Decoding, 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, ceildiv
from tvmops.schedules.cuda.kernels.attention_tiles import Heads, least_scale
from tvmops.schedules.cuda.words import (
    PTX_TYPES,
    Scalar,
    c_call,
    do,
    exp2,
    pack,
    ptx,
    shuffle_xor,
    slice_of,
    when,
)

KEYS = 16  # of a product
COLUMNS = 8  # heads of a product
_PAD = 4  # floats behind each row of a sum

_COPY = """
__forceinline__ __device__ void copy_row_piece(unsigned to, const void* from, int row, int pitch,
                                               int offset, int rows) {
  const bool inside = row < rows;
  const char* at = static_cast<const char*>(from) + static_cast<long long>(inside ? row : 0) * pitch + offset;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::
               "r"(to), "l"(at), "r"(inside ? 16 : 0) : "memory");
}
"""
_PAIR = """
__forceinline__ __device__ unsigned load_pair(const void* pointer) {
  return *static_cast<const unsigned*>(pointer);
}
"""
_SEND = """
__forceinline__ __device__ void send_to_block(const void* place, int rank, float value) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(place)), remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  asm volatile("st.shared::cluster.f32 [%0], %1;" :: "r"(remote), "f"(value) : "memory");
}
"""
_CLUSTER = """
__forceinline__ __device__ void {name}() {{
  asm volatile("{instructions}" ::: "memory");
}}
"""
_ARRIVE, _WAIT = "barrier.cluster.arrive.{order}.aligned;", "barrier.cluster.wait.acquire.aligned;"


@dataclass(frozen=True)
class Split:
    splits: int  # blocks that share the keys of a head
    warps: int  # of a block
    keys: int  # of a chunk
    stages: int  # chunks of a warp's ring

    @property
    def threads(self) -> int:
        return 32 * self.warps

    def finished(self, group: int) -> int:
        """Return how many of a group's heads one block finishes, at most."""
        return -(-group // self.splits)


def pitch(head_dim: int) -> int:
    """Return the bytes of a row of k or v in shared memory."""
    return 2 * 64 * -(-head_dim // 64)


def shared_bytes(head_dim: int, group: int, split: Split) -> int:
    columns = COLUMNS * -(-group // COLUMNS)
    ring = split.warps * split.stages * 2 * split.keys * pitch(head_dim)
    sums = split.warps * columns * (head_dim + _PAD) * 4
    received = split.splits * split.finished(group) * 4 * (head_dim + _PAD + 2) if split.splits > 1 else 0
    return max(ring, sums) + 8 * columns * split.warps + received


@dataclass(frozen=True)
class Cache:
    """How keys and values lie: by sequence, or in pages; the heads of a row side by side, or apart."""

    beside: bool
    pages: Extent = 0
    page_size: int = 0  # 0 without pages


class SplitKernel:
    """`main(q, k, v, [lengths, [block_table,]] scale, out)` for one query a head that sees all keys."""

    def __init__(self, sizes: Heads, split: Split, cache: Cache) -> None:
        assert isinstance(sizes.heads, int) and isinstance(sizes.kv_heads, int)
        self.sizes, self.split, self.cache = sizes, split, cache
        self.most_keys = sizes.kv_len
        if cache.page_size:
            known = isinstance(sizes.kv_len, int)
            self.columns_of_table = (
                ceildiv(sizes.kv_len, cache.page_size) if known else tirx.Var("columns", "int32")
            )
            self.most_keys = self.columns_of_table * cache.page_size
        self.group = sizes.heads // sizes.kv_heads
        self.tiles = -(-self.group // COLUMNS)
        self.columns = self.tiles * COLUMNS
        self.parts = sizes.head_dim // 16
        self.chunk = split.keys * pitch(sizes.head_dim)  # bytes of k, or of v

    def module(self) -> IRModule:
        s = self.sizes
        with IRBuilder() as builder, T.prim_func():
            T.func_name("main")
            paged = self.cache.page_size > 0
            of_kv = (self.cache.pages, self.cache.page_size) if paged else (s.batch, s.kv_len)
            self.q = self._array("q", s.batch, s.heads, 1)
            self.kv = {name: self._array(name, of_kv[0], s.kv_heads, of_kv[1]) for name in "kv"}
            if s.lengths:
                self.lengths = T.arg("lengths", T.buffer((s.batch,), "int32", buffer_name="lengths"))
            if paged:
                table = T.buffer((s.batch, self.columns_of_table), "int32", buffer_name="block_table")
                self.table = T.arg("block_table", table)
            self.scale = T.arg("scale", T.float32())
            self.out = self._array("out", s.batch, s.heads, 1)
            T.device_entry()
            with T.attr({"tirx.launch_bounds_min_blocks_per_sm": 1}):
                self._body()
        return IRModule({"main": builder.get().with_attr("global_symbol", "main")})

    def _array(self, name: str, outer: Any, heads: Any, rows: Any) -> Any:
        beside = self.cache.beside and name != "out"
        shape = (outer, *((rows, heads) if beside else (heads, rows)), self.sizes.head_dim)
        return T.arg(name, T.buffer(shape, self.sizes.dtype, align=16, buffer_name=name))

    def _body(self) -> None:
        s, split = self.sizes, self.split
        block = T.cta_id([s.batch * s.kv_heads * split.splits])
        self.rank = T.cta_id_in_cluster([split.splits]) if split.splits > 1 else 0
        self.warp, self.lane = T.warp_id([split.warps]), T.lane_id([32])
        self.thread = self.warp * 32 + self.lane
        self.pair = T.truncdiv(block, split.splits)  # the key and value head, counted over the batch
        self.sequence, self.head = T.truncdiv(self.pair, s.kv_heads), T.truncmod(self.pair, s.kv_heads)
        self.length = s.kv_len
        if s.lengths:
            self.length = T.Bind(tirx.max(tirx.min(self.lengths[self.sequence], self.most_keys), 0))
        self._shared_memory()
        if split.splits > 1:
            self._of_cluster("say_here", _ARRIVE.format(order="relaxed"))
        self._begin_copies()
        self._load_q()
        self._allocate()
        self._walk()
        if split.splits > 1:
            self._of_cluster("await_all_here", _WAIT)  # memory of a block that has not begun is no place
        self._add_warps()
        if split.splits > 1:
            self._of_cluster("meet_cluster", _ARRIVE.format(order="release") + _WAIT)
            self._finish()

    def _shared_memory(self) -> None:
        split, dim = self.split, self.sizes.head_dim
        pool = SMEMPool()
        self.ring = pool.alloc((split.warps, split.stages, 2, self.chunk), "uint8", align=128)
        end = pool.offset
        pool.move_base_to(0)
        self.sums = pool.alloc((split.warps, self.columns, dim + _PAD), "float32", align=16)
        pool.move_base_to(max(end, pool.offset))
        self.mosts = pool.alloc((split.warps, self.columns), "float32", align=16)
        self.totals = pool.alloc((split.warps, self.columns), "float32", align=16)
        if split.splits > 1:  # from each block, of the heads that this one finishes
            places = (split.splits, split.finished(self.group))
            self.received = pool.alloc((*places, dim + _PAD), "float32", align=16)
            self.received_mosts = pool.alloc(places, "float32", align=4)
            self.received_totals = pool.alloc(places, "float32", align=4)
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
                    pair = c_call("uint32", "load_pair", at, source=_PAIR) ^ sign
                    T.buffer_store(self.queries, pair, [tile * self.parts * 2 + i])

    def _allocate(self) -> None:
        tiles, steps = self.tiles, self.split.keys // KEYS
        self.scores = T.alloc_local((steps * tiles * 4,), "float32")
        self.rows = T.alloc_local((tiles * self.parts * 4,), "float32")  # of out^T
        self.most = T.alloc_local((tiles * 2,), "float32")
        self.total = T.alloc_local((tiles * 2,), "float32")
        self.a = T.alloc_local((4,), "uint32")
        self.weights = T.alloc_local((tiles * steps * 2,), "uint32")
        for i in range(tiles * self.parts * 4):
            T.buffer_store(self.rows, T.float32(0), [i])
        for i in range(tiles * 2):
            T.buffer_store(self.most, tirx.const(-math.inf, "float32"), [i])
            T.buffer_store(self.total, T.float32(0), [i])
        self.factor = Scalar(least_scale(self.scale), "float32")

    # One warp, its chunks.

    def _begin_copies(self) -> None:
        """Find this warp's chunks; fill its ring but for one stage."""
        split = self.split
        chunks = ceildiv(self.length, split.keys)
        each = ceildiv(chunks, split.splits)
        self.first = T.Bind(self.rank * each + self.warp)
        end = tirx.min((self.rank + 1) * each, chunks)
        self.count = T.Bind(tirx.max(T.truncdiv(end - self.first + (split.warps - 1), split.warps), 0))
        self.base = Scalar(T.cuda.cvta_generic_to_shared(self.ring.ptr_to([self.warp, 0, 0, 0])), "uint32")()
        if self.cache.page_size:
            pages = [Scalar(self._page_of(stage)) for stage in range(split.stages)]
            self.page = pages[-1]
        else:
            self._rows = {name: T.Bind(self._rows_of(name, self.sequence)) for name in "kv"}
        for stage in range(split.stages - 1):
            with when(stage < self.count):
                page = pages[stage]() if self.cache.page_size else None
                self._copy(self.first + stage * split.warps, stage, page)
            ptx("cp.async.commit_group")

    def _page_of(self, step: Any) -> Any:
        """Return the page of this warp's chunk `step`: some page of its sequence, where there is none."""
        key = (self.first + step * self.split.warps) * self.split.keys
        column = T.truncdiv(key, self.cache.page_size)
        return self.table[self.sequence, tirx.min(column, self.columns_of_table - 1)]

    def _rows_of(self, name: str, outer: Any) -> Any:
        """Return where the rows of this block's head begin, in a sequence or a page."""
        s, cache, data = self.sizes, self.cache, self.kv[name].data
        rows = cache.page_size or s.kv_len
        if cache.beside:
            return slice_of(
                slice_of(data, outer, rows, s.kv_heads * s.head_dim, 2), self.head, 1, s.head_dim, 2
            )
        return slice_of(data, outer * s.kv_heads + self.head, rows, s.head_dim, 2)

    def _walk(self) -> None:
        first, count, split, stages = self.first, self.count, self.split, self.split.stages
        use, fill = Scalar(0), Scalar(stages - 1)
        with T.serial(count) as step:
            ptx("cp.async.wait_group", stages - 2)
            do(T.cuda.warp_sync())
            with when(step + (stages - 1) < count):
                page = self.page() if self.cache.page_size else None
                self._copy(first + (step + (stages - 1)) * split.warps, fill(), page)
            ptx("cp.async.commit_group")
            if self.cache.page_size:  # read early: it is there when the next copy begins
                self.page.set(self._page_of(step + stages))
            self._consume(use(), (first + step * split.warps) * split.keys)
            for at in (use, fill):
                at.set(tirx.Select(at() == stages - 1, 0, at() + 1))
        ptx("cp.async.wait_group", 0)

    def _place(self, stage: Any, which: int) -> Any:
        return self.base + T.Cast("uint32", stage * (2 * self.chunk) + which * self.chunk)

    def _copy(self, chunk: Any, stage: Any, page: Any) -> None:
        """Begin to copy a chunk of k and of v; rows beyond the end become 0."""
        dim, key = self.sizes.head_dim, chunk * self.split.keys
        first, end = key, self.length
        if page is not None:
            first = T.Bind(T.truncmod(key, self.cache.page_size))
            end = self.length - key + first
        apart = self.sizes.kv_heads if self.cache.beside else 1
        pieces = dim // 8  # of 16 bytes, a row
        for which, name in enumerate("kv"):
            rows = self._rows[name] if page is None else T.Bind(self._rows_of(name, page))
            for i in range(self.split.keys * pieces // 32):
                piece = i * 32 + self.lane
                row, column = T.truncdiv(piece, pieces), T.truncmod(piece, pieces)
                inside = row * pitch(dim) + (column ^ (row % 8)) * 16
                do(
                    c_call(
                        "void", "copy_row_piece", self._place(stage, which) + T.Cast("uint32", inside),
                        rows, first + row, 2 * dim * apart, column * 16, end, source=_COPY,
                    )
                )  # fmt: skip

    def _consume(self, stage: Any, first_key: Any) -> None:
        self._multiply_k(stage)
        if not isinstance(self.length, int) or self.length % self.split.keys:
            self._mask(first_key)
        for tile in range(self.tiles):
            for column in range(2):
                self._exponentiate(tile, column)
        self._pack_weights()
        self._multiply_v(stage)

    def _multiply_k(self, stage: Any) -> None:
        for i in range(self.split.keys // KEYS * self.tiles * 4):
            T.buffer_store(self.scores, T.float32(0), [i])
        for step in range(self.split.keys // KEYS):
            row = step * KEYS + self.lane % 16
            for part in range(self.parts):
                piece = (part * 2 + T.truncdiv(self.lane, 16)) ^ (row % 8)
                self._load_matrix("", self._place(stage, 0), row, piece)
                for tile in range(self.tiles):
                    at = (step * self.tiles + tile) * 4
                    b = (tile * self.parts + part) * 2
                    self._multiply(self.scores, at, self.queries, b)

    def _multiply_v(self, stage: Any) -> None:
        for step in range(self.split.keys // KEYS):
            row = step * KEYS + T.truncdiv(self.lane, 16) * 8 + self.lane % 8
            for part in range(self.parts):
                piece = (part * 2 + T.truncdiv(self.lane, 8) % 2) ^ (row % 8)
                self._load_matrix(".trans", self._place(stage, 1), row, piece)
                for tile in range(self.tiles):
                    at = (tile * self.parts + part) * 4
                    self._multiply(self.rows, at, self.weights, (step * self.tiles + tile) * 2)

    def _load_matrix(self, how: str, base: Any, row: Any, piece: Any) -> None:
        address = base + T.Cast("uint32", row * pitch(self.sizes.head_dim) + piece * 16)
        ptx(f"ldmatrix.sync.aligned.m8n8.x4{how}.shared.b16", *(self.a[i] for i in range(4)), address)

    def _multiply(self, sums: Any, at: int, b: Any, b_at: int) -> None:
        kind = PTX_TYPES[self.sizes.dtype]
        own = [sums[at + i] for i in range(4)]
        ptx(
            f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32",
            *own, *(self.a[i] for i in range(4)), b[b_at], b[b_at + 1], *own,
        )  # fmt: skip

    def _mask(self, first_key: Any) -> None:
        for i in range(self.split.keys // KEYS * self.tiles * 4):
            key = i // 4 // self.tiles * KEYS + i % 4 // 2 * 8 + T.truncdiv(self.lane, 4)
            seen = first_key + key < self.length
            unseen = tirx.const(-math.inf, "float32")
            T.buffer_store(self.scores, tirx.Select(seen, self.scores[i], unseen), [i])

    def _exponentiate(self, tile: int, column: int) -> None:
        """Scores of one head to weights; the sums so far to the new maximum."""
        own = [
            (step * self.tiles + tile) * 4 + half * 2 + column
            for step in range(self.split.keys // KEYS)
            for half in range(2)
        ]
        head = tile * 2 + column
        found = Scalar(self.scores[own[0]], "float32")
        for i in own[1:]:
            found.set(tirx.max(found(), self.scores[i]))
        for distance in (4, 8, 16):
            found.set(tirx.max(found(), shuffle_xor(found(), distance)))
        found.set(tirx.max(self.most[head], found() * self.factor()))
        base = Scalar(_finite(found()), "float32")
        shrink = Scalar(exp2(self.most[head] - base()), "float32")
        T.buffer_store(self.most, found(), [head])
        T.buffer_store(self.total, self.total[head] * shrink(), [head])
        for i in own:
            T.buffer_store(self.scores, exp2(self.scores[i] * self.factor() - base()), [i])
            T.buffer_store(self.total, self.total[head] + self.scores[i], [head])
        for part in range(self.parts):
            for half in range(2):
                i = (tile * self.parts + part) * 4 + half * 2 + column
                T.buffer_store(self.rows, self.rows[i] * shrink(), [i])

    def _pack_weights(self) -> None:
        """Round weights and turn each 8 x 8 of them, keys x heads, to heads x keys."""
        for i in range(self.split.keys // KEYS * self.tiles * 2):
            pair = pack(self.sizes.dtype, self.scores[2 * i], self.scores[2 * i + 1])
            T.buffer_store(self.weights, pair, [i])
            ptx("movmatrix.sync.aligned.m8n8.trans.b16", self.weights[i], self.weights[i])

    # Warps, then blocks, come together.

    def _add_warps(self) -> None:
        split, dim = self.split, self.sizes.head_dim
        for tile in range(self.tiles):
            for column in range(2):
                head = tile * 2 + column
                for distance in (4, 8, 16):
                    more = shuffle_xor(self.total[head], distance)
                    T.buffer_store(self.total, self.total[head] + more, [head])
        do(T.cuda.cta_sync())  # the rings are free
        with when(self.lane < 4):
            for tile in range(self.tiles):
                for column in range(2):
                    at = [self.warp, tile * COLUMNS + self.lane * 2 + column]
                    T.buffer_store(self.mosts, self.most[tile * 2 + column], at)
                    T.buffer_store(self.totals, self.total[tile * 2 + column], at)
        for tile in range(self.tiles):
            for i in range(self.parts * 4):
                row = i // 4 * 16 + i % 4 // 2 * 8 + T.truncdiv(self.lane, 4)
                column = tile * COLUMNS + self.lane % 4 * 2 + i % 2
                value = self.rows[tile * self.parts * 4 + i]
                T.buffer_store(self.sums, value, [self.warp, column, row])
        do(T.cuda.cta_sync())
        size = self.group * dim
        with T.serial(-(-size // split.threads)) as step:
            at = step * split.threads + self.thread
            with when(at < size):
                self._add_warps_at(T.truncdiv(at, dim), T.truncmod(at, dim))

    def _add_warps_at(self, head: Any, column: Any) -> None:
        warps = range(self.split.warps)
        most, total, value = _joined(
            [self.mosts[w, head] for w in warps],
            [self.totals[w, head] for w in warps],
            [self.sums[w, head, column] for w in warps],
        )
        if self.split.splits == 1:
            self._write(head, column, total, value)
            return
        owner, place = T.truncmod(head, self.split.splits), T.truncdiv(head, self.split.splits)
        self._send(self.received, [self.rank, place, column], owner, value)
        with when(column == 0):
            self._send(self.received_mosts, [self.rank, place], owner, most)
            self._send(self.received_totals, [self.rank, place], owner, total)

    def _of_cluster(self, name: str, instructions: str) -> None:
        do(c_call("void", name, source=_CLUSTER.format(name=name, instructions=instructions)))

    def _send(self, memory: Any, place: list[Any], rank: Any, value: Any) -> None:
        do(c_call("void", "send_to_block", memory.ptr_to(place), rank, value, source=_SEND))

    def _finish(self) -> None:
        """Add up what all blocks have sent of this one's heads."""
        split, dim = self.split, self.sizes.head_dim
        size = split.finished(self.group) * dim
        with T.serial(-(-size // split.threads)) as step:
            at = step * split.threads + self.thread
            place, column = T.truncdiv(at, dim), T.truncmod(at, dim)
            head = place * split.splits + self.rank
            with when(tirx.all(at < size, head < self.group)):
                ranks = range(split.splits)
                _, total, value = _joined(
                    [self.received_mosts[rank, place] for rank in ranks],
                    [self.received_totals[rank, place] for rank in ranks],
                    [self.received[rank, place, column] for rank in ranks],
                )
                self._write(head, column, total, value)

    def _write(self, head: Any, column: Any, total: Any, value: Any) -> None:
        result = tirx.Select(total == 0, T.float32(0), value / total)
        at = [self.sequence, self.head * self.group + head, 0, column]
        T.buffer_store(self.out, T.Cast(self.sizes.dtype, result), at)


def _joined(mosts: list[Any], totals: list[Any], values: list[Any]) -> tuple[Any, Any, Any]:
    """Return the common maximum of several sums, their total, and the sum of their values."""
    most = Scalar(mosts[0], "float32")
    for other in mosts[1:]:
        most.set(tirx.max(most(), other))
    base = Scalar(_finite(most()), "float32")
    total, value = Scalar(T.float32(0), "float32"), Scalar(T.float32(0), "float32")
    for own_most, own_total, own_value in zip(mosts, totals, values):
        worth = Scalar(exp2(own_most - base()), "float32")
        total.set(total() + own_total * worth())
        value.set(value() + own_value * worth())
    return most(), total(), value()


def _finite(value: Any) -> Any:
    return tirx.Select(value == tirx.const(-math.inf, "float32"), T.float32(0), value)
