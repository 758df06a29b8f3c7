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

import math
from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, ceildiv, minimum
from tvmops.schedules.cuda.words import (
    PTX_TYPES,
    Barriers,
    Position,
    Ring,
    Scalar,
    do,
    exp2,
    pack,
    ptx,
    shared_address,
    shuffle_xor,
    tensor_map,
    tie,
    when,
)

COLUMNS = 64  # of 2 bytes: a row of the 128-byte swizzle
ROWS = 64  # of a wgmma
_LEAST_SCALE = 1e-30  # below, scores differ by nothing that shows; 0 times -inf would be NaN
IN_PAIRS = 0
_TURN = 4  # the first of the named barriers by which warpgroups take turns
_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Heads:
    """The sizes of an attention."""

    batch: Extent
    heads: Extent
    kv_heads: Extent
    q_len: Extent
    kv_len: Extent
    head_dim: int
    causal: bool
    below_right: bool  # the last query sees the last key
    dtype: str
    lengths: bool  # sequences have fewer keys than kv_len

    def offset(self, length: Extent) -> Extent:
        """Return the last of `length` keys that query 0 sees under a causal mask."""
        return length - self.q_len if self.causal and self.below_right else 0


@dataclass(frozen=True)
class Tiles:
    """The knobs. `blocks` thread blocks stay on the machine and share the tiles of queries."""

    consumers: int
    bn: int
    stages: int
    take_turns: bool
    own_out: bool  # out leaves through memory of its own, so that q's is free for the next tile
    together: int  # causal: heads walked side by side, the longest rows first; or IN_PAIRS
    blocks: int

    @property
    def bm(self) -> int:
        return ROWS * self.consumers

    @property
    def registers(self) -> tuple[int, int]:
        """Registers of a thread of the producer, and of a consumer."""
        return {2: (24, 240), 3: (32, 160)}[self.consumers]


def shared_bytes(head_dim: int, tiles: Tiles) -> int:
    columns = 2 * COLUMNS * -(-head_dim // COLUMNS)
    rows = tiles.bm * (1 + tiles.own_out) + 2 * tiles.stages * tiles.bn
    return rows * columns + 16 * (2 * tiles.stages + tiles.consumers)


class FlashKernel:
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
            with T.attr({"tirx.launch_bounds_min_blocks_per_sm": 1}):
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
        self.block = T.cta_id([tiles.blocks])
        self.group = T.warpgroup_id([tiles.consumers + 1])
        self.warp = T.warp_id_in_wg([4])
        self.lane = T.lane_id([32])
        self._shared_memory()
        with when((self.group == 0) & (self.warp == 0) & (self.lane == 0)):
            for barriers in (self.q_full, self.q_empty, self.k_ring, self.v_ring):
                barriers.init()
            ptx("fence.mbarrier_init.release.cluster")
        do(T.cuda.cta_sync())
        produces, consumes = tiles.registers
        with T.If(self.group == tiles.consumers):
            with T.Then():
                ptx("setmaxnreg.dec.sync.aligned.u32", produces)
                with when(self.warp == 0), when(T.cuda.elect_sync()):
                    Producer(self).run()
            with T.Else():
                ptx("setmaxnreg.inc.sync.aligned.u32", consumes)
                Consumer(self).run()

    def _shared_memory(self) -> None:
        tiles, dtype, columns = self.tiles, self.sizes.dtype, self.blocks_of_columns
        pool = SMEMPool()
        own = (tiles.consumers, columns, ROWS, COLUMNS)
        self.q_words = pool.alloc((tiles.consumers, columns * ROWS * COLUMNS // 2), "uint32", align=1024)
        pool.move_base_to(0)
        self.q = pool.alloc(own, dtype, align=1024)
        self.out = pool.alloc(own, dtype, align=1024) if tiles.own_out else self.q
        self.k = pool.alloc((tiles.stages, columns, tiles.bn, COLUMNS), dtype, align=1024)
        self.v = pool.alloc((tiles.stages, columns, tiles.bn, COLUMNS), dtype, align=1024)
        self.q_full, self.q_empty = Barriers(pool, tiles.consumers, 1), Barriers(pool, tiles.consumers, 1)
        self.k_ring, self.v_ring = (Ring(pool, tiles.stages, tiles.consumers) for _ in "kv")
        pool.commit()


class Walk:
    """The tiles of queries that a block takes, one after the other, as one thread sees them.

    Causal tiles differ in length; blocks that stay must get equal shares. Either a block takes
    pairs of one head's tiles, a long and a short one; or tiles go longest first, `together`
    heads side by side, to the blocks in order and back again. Pairs keep few heads in L2;
    the other way divides few tiles better.
    """

    def __init__(self, kernel: FlashKernel) -> None:
        self.kernel = kernel
        self._index, self._q_tile, self._pair = Scalar(kernel.block), Scalar(0), Scalar(0)
        self._count = Scalar(0)
        if kernel.sizes.lengths:
            self._length = Scalar(0)
        blocks = kernel.tiles.blocks
        self.in_pairs = kernel.sizes.causal and kernel.tiles.together == IN_PAIRS
        if self.in_pairs:
            self._half = T.truncdiv(kernel.q_tiles + 1, 2)
            self._second = Scalar(0)
        elif kernel.sizes.causal:
            self._stride = Scalar(2 * blocks - 1 - 2 * kernel.block)

    @property
    def pair(self) -> Any:
        """The head, counted over the batch."""
        return self._pair()

    @property
    def length(self) -> Any:
        """How many keys this sequence has."""
        return self._length() if self.kernel.sizes.lengths else self.kernel.sizes.kv_len

    @property
    def offset(self) -> Any:
        """The last key that query 0 sees."""
        return self.kernel.sizes.offset(self.length)

    @property
    def first_row(self) -> Any:
        return self._q_tile() * self.kernel.tiles.bm

    @property
    def count(self) -> Any:
        """How many tiles of keys these queries see; at least one is walked."""
        return self._count()

    def more(self) -> Any:
        tiles = self._half if self.in_pairs else self.kernel.q_tiles
        return self._index() < self.kernel.pairs * tiles

    def advance(self) -> None:
        blocks = self.kernel.tiles.blocks
        if not self.kernel.sizes.causal:
            self._index.set(self._index() + blocks)
        elif not self.in_pairs:
            self._index.set(self._index() + self._stride())
            self._stride.set(2 * blocks - self._stride())
        else:
            alone = T.truncmod(self._index(), self._half) * 2 + 1 == self.kernel.q_tiles
            with T.If(tirx.any(self._second() == 1, alone)):
                with T.Then():
                    self._second.set(0)
                    self._index.set(self._index() + blocks)
                with T.Else():
                    self._second.set(1)

    def locate(self) -> None:
        kernel, bn = self.kernel, self.kernel.tiles.bn
        if not kernel.sizes.causal:
            self._pair.set(T.truncdiv(self._index(), kernel.q_tiles))
            self._q_tile.set(T.truncmod(self._index(), kernel.q_tiles))
            self._find_length()
            tiles = ceildiv(self.length, bn)
            self._count.set(tirx.max(tiles, 1) if kernel.sizes.lengths else tiles)
            return
        if self.in_pairs:
            near = T.truncmod(self._index(), self._half)
            self._pair.set(T.truncdiv(self._index(), self._half))
            self._q_tile.set(tirx.Select(self._second() == 1, near, kernel.q_tiles - 1 - near))
        else:
            self._locate_longest_first()
        self._find_length()
        seen = minimum(self.first_row + kernel.tiles.bm + self.offset, self.length)
        self._count.set(tirx.max(T.truncdiv(seen + (bn - 1), bn), 1))

    def _locate_longest_first(self) -> None:
        kernel, q_tiles, together = self.kernel, self.kernel.q_tiles, self.kernel.tiles.together
        party = T.truncdiv(self._index(), together * q_tiles)
        rest = T.truncmod(self._index(), together * q_tiles)
        size: Extent = together
        if not isinstance(kernel.pairs, int) or kernel.pairs % together:
            size = tirx.min(kernel.pairs - party * together, together)
        self._pair.set(party * together + T.truncmod(rest, size))
        self._q_tile.set(q_tiles - 1 - T.truncdiv(rest, size))

    def _find_length(self) -> None:
        kernel = self.kernel
        if kernel.sizes.lengths:
            length = kernel.lengths[T.truncdiv(self.pair, kernel.sizes.heads)]
            self._length.set(tirx.max(tirx.min(length, kernel.sizes.kv_len), 0))

    def whole(self) -> Any:
        """Count the tiles of keys that all these queries see whole."""
        seen = minimum(self.first_row + self.offset + 1, self.length)
        return tirx.max(T.truncdiv(seen, self.kernel.tiles.bn), 0)


class Producer:
    """One thread: fills the rings, in the order in which consumers need what is in them."""

    def __init__(self, kernel: FlashKernel) -> None:
        self.kernel, self.walk = kernel, Walk(kernel)
        self.k, self.v = Position(kernel.tiles.stages), Position(kernel.tiles.stages)
        self.q_phase = Scalar(0)

    def run(self) -> None:
        walk = self.walk
        with T.While(walk.more()):
            walk.locate()
            sizes = self.kernel.sizes
            if sizes.heads is sizes.kv_heads or sizes.heads == sizes.kv_heads:
                self.kv_pair = walk.pair
            else:
                batch, head = T.truncdiv(walk.pair, sizes.heads), T.truncmod(walk.pair, sizes.heads)
                group = T.truncdiv(sizes.heads, sizes.kv_heads)
                self.kv_pair = T.Bind(batch * sizes.kv_heads + T.truncdiv(head, group))
            self._load("k", self.k, walk.count - 1)
            self._load_q()
            with T.serial(walk.count - 1) as step:
                self._load("k", self.k, walk.count - 2 - step)
                self._load("v", self.v, walk.count - 1 - step)
            self._load("v", self.v, 0)
            walk.advance()

    def _load(self, name: str, at: Position, tile: Any) -> None:
        kernel = self.kernel
        ring, memory = (kernel.k_ring, kernel.k) if name == "k" else (kernel.v_ring, kernel.v)
        ring.empty.wait(at.stage, at.phase ^ 1)
        ring.full.expect(at.stage, kernel.tiles.bn * kernel.blocks_of_columns * 2 * COLUMNS)
        row = tile * kernel.tiles.bn
        self._copy(name, memory, at.stage, row, self.kv_pair, ring.full.at(at.stage))
        at.advance()

    def _load_q(self) -> None:
        kernel = self.kernel
        for group in range(kernel.tiles.consumers):
            kernel.q_empty.wait(group, self.q_phase() ^ 1)
            kernel.q_full.expect(group, ROWS * kernel.blocks_of_columns * 2 * COLUMNS)
            row = self.walk.first_row + group * ROWS
            self._copy("q", kernel.q, group, row, self.walk.pair, kernel.q_full.at(group))
        self.q_phase.set(self.q_phase() ^ 1)

    def _copy(self, name: str, memory: Any, stage: Any, row: Any, pair: Any, barrier: Any) -> None:
        for block in range(self.kernel.blocks_of_columns):
            ptx(
                "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes",
                memory.ptr_to([stage, block, 0, 0]), T.address_of(self.kernel.maps[name]),
                block * COLUMNS, row, pair, barrier,
            )  # fmt: skip


class Consumer:
    """One warpgroup: 64 rows of a tile of queries. A thread holds parts of two rows."""

    def __init__(self, kernel: FlashKernel) -> None:
        self.kernel, self.walk = kernel, Walk(kernel)
        bn = kernel.tiles.bn
        self.k, self.v = Position(kernel.tiles.stages), Position(kernel.tiles.stages)
        self.q_phase = Scalar(0)
        self.scores = T.alloc_local((bn // 2,), "float32")
        self.out = T.alloc_local((kernel.depth // 2,), "float32")
        self.weights = T.alloc_local((bn // 4,), "uint32")  # two to a register
        self.most = T.alloc_local((2,), "float32")  # the maximum so far, times the scale
        self.base = T.alloc_local((2,), "float32")  # the same, but 0 where no key was seen
        self.total = T.alloc_local((2,), "float32")  # of the weights in this thread's columns
        self.shrink = T.alloc_local((2,), "float32")  # what the last maximum's weights are worth now
        self.scale = Scalar(least_scale(kernel.scale), "float32")
        self.q_at = self._base(kernel.q, kernel.group)
        self.k_at, self.v_at = self._base(kernel.k, 0), self._base(kernel.v, 0)

    def _base(self, memory: Any, stage: Any) -> Any:
        return Scalar(shared_address(memory, stage, 0, 0, 0), "uint32")()

    def run(self) -> None:
        tiles, walk = self.kernel.tiles, self.walk
        if tiles.take_turns:
            with when(self.kernel.group == 0):
                self._pass_turn(tiles.consumers - 1)
        with T.While(walk.more()):
            walk.locate()
            self._begin()
            if self.may_mask_more:
                more = T.Bind(tirx.max(walk.count - 1 - tirx.min(self._whole(), walk.count - 1), 0))
                with T.serial(more) as step:
                    self._step(walk.count - 2 - step, masked=True)
                with T.serial(walk.count - 1 - more):
                    self._step(None, masked=False)
            else:
                with T.serial(walk.count - 1):
                    self._step(None, masked=False)
            self._end()
            walk.advance()
        with when((self.kernel.warp == 0) & (self.kernel.lane == 0)):
            ptx("cp.async.bulk.wait_group", 0)

    @property
    def may_mask_more(self) -> bool:
        """True if tiles beside the last may hold keys that are not seen."""
        sizes, tiles = self.kernel.sizes, self.kernel.tiles
        if not sizes.causal:
            return False
        offset = sizes.offset(sizes.kv_len)
        if sizes.lengths or not isinstance(offset, int):
            return True
        return tiles.bn % tiles.bm != 0 or offset % tiles.bm != 0

    def _whole(self) -> Any:
        return self.walk.whole()

    # The steps of a walk.

    def _begin(self) -> None:
        kernel = self.kernel
        for i in range(kernel.depth // 2):
            T.buffer_store(self.out, T.float32(0), [i])
        for row in range(2):
            T.buffer_store(self.most, _unseen(), [row])
            T.buffer_store(self.total, T.float32(0), [row])
        kernel.q_full.wait(kernel.group, self.q_phase())
        self._turn_sign()
        kernel.k_ring.full.wait(self.k.stage, self.k.phase)
        ptx("wgmma.fence.sync.aligned")
        self._multiply_q_k()
        ptx("wgmma.wait_group.sync.aligned", 0)
        tie(self.scores, kernel.tiles.bn // 2)
        self._release(kernel.k_ring.empty, self.k)
        if kernel.sizes.causal or not self._divides():
            self._mask(self.walk.count - 1)
        self._raise_maximum()
        self._exponentiate()
        self._pack_weights()

    def _step(self, tile: Any, masked: bool) -> None:
        """Scores of the next tile, and out += weights v of the last."""
        kernel = self.kernel
        kernel.k_ring.full.wait(self.k.stage, self.k.phase)
        if kernel.tiles.take_turns:
            self._await_turn()
        ptx("wgmma.fence.sync.aligned")
        self._multiply_q_k()
        kernel.v_ring.full.wait(self.v.stage, self.v.phase)
        ptx("wgmma.fence.sync.aligned")
        self._multiply_weights_v()
        if kernel.tiles.take_turns:
            self._pass_turn(kernel.group)
        ptx("wgmma.wait_group.sync.aligned", 1)
        tie(self.scores, kernel.tiles.bn // 2)
        self._release(kernel.k_ring.empty, self.k)
        if masked:
            self._mask(tile)
        self._raise_maximum()
        self._exponentiate()
        tie(self.scores, kernel.tiles.bn // 2)
        ptx("wgmma.wait_group.sync.aligned", 0)
        tie(self.out, kernel.depth // 2)
        self._release(kernel.v_ring.empty, self.v)
        self._pack_weights()
        for i in range(kernel.depth // 2):
            T.buffer_store(self.out, self.out[i] * self.shrink[(i // 2) % 2], [i])

    def _end(self) -> None:
        """The last product; out is divided by the sums and leaves."""
        kernel = self.kernel
        if kernel.tiles.own_out:
            self._release_q()
        kernel.v_ring.full.wait(self.v.stage, self.v.phase)
        ptx("wgmma.fence.sync.aligned")
        self._multiply_weights_v()
        for row in range(2):
            for mask in (1, 2):
                T.buffer_store(self.total, self.total[row] + shuffle_xor(self.total[row], mask), [row])
            factor = tirx.Select(self.total[row] == 0, T.float32(0), T.float32(1) / self.total[row])
            T.buffer_store(self.total, factor, [row])
        ptx("wgmma.wait_group.sync.aligned", 0)
        tie(self.out, kernel.depth // 2)
        self._release(kernel.v_ring.empty, self.v)
        self._write_out()
        self.q_phase.set(self.q_phase() ^ 1)

    def _turn_sign(self) -> None:
        """A negative scale is a positive one of -q."""
        kernel = self.kernel
        with when(kernel.scale < T.float32(0)):
            thread = kernel.warp * 32 + kernel.lane
            with T.serial(kernel.q_words.shape[1] // 128) as step:
                at = [kernel.group, step * 128 + thread]
                T.buffer_store(kernel.q_words, kernel.q_words[tuple(at)] ^ T.uint32(0x80008000), at)
            ptx("fence.proxy.async.shared::cta")
            do(T.cuda.warpgroup_sync(kernel.group + 1))

    # Products.

    def _multiply_q_k(self) -> None:
        kernel, bn = self.kernel, self.kernel.tiles.bn
        kind = PTX_TYPES[kernel.sizes.dtype]
        product = f"wgmma.mma_async.sync.aligned.m64n{bn}k16.f32.{kind}.{kind}"
        stage = T.Cast("uint32", self.k.stage * (bn * kernel.blocks_of_columns * 2 * COLUMNS))
        for part in range(kernel.depth // 16):
            block, inside = part // 4, part % 4 * 32
            ptx(
                product, *(self.scores[i] for i in range(bn // 2)),
                _rows_by_depth(self.q_at + T.uint32(block * ROWS * 2 * COLUMNS + inside)),
                _rows_by_depth(self.k_at + stage + T.uint32(block * bn * 2 * COLUMNS + inside)),
                tirx.const(part > 0, "bool"), 1, 1, 0, 0,
            )  # fmt: skip
        ptx("wgmma.commit_group.sync.aligned")

    def _multiply_weights_v(self) -> None:
        kernel, bn, depth = self.kernel, self.kernel.tiles.bn, self.kernel.depth
        kind = PTX_TYPES[kernel.sizes.dtype]
        product = f"wgmma.mma_async.sync.aligned.m64n{depth}k16.f32.{kind}.{kind}"
        stage = T.Cast("uint32", self.v.stage * (bn * kernel.blocks_of_columns * 2 * COLUMNS))
        for part in range(bn // 16):
            ptx(
                product, *(self.out[i] for i in range(depth // 2)),
                *(self.weights[part * 4 + i] for i in range(4)),
                _depth_by_columns(self.v_at + stage + T.uint32(part * 16 * 2 * COLUMNS), bn),
                tirx.const(True, "bool"), 1, 1, 1,
            )  # fmt: skip
        ptx("wgmma.commit_group.sync.aligned")

    # Softmax. Register i of a thread is column (i // 4) * 8 + lane % 4 * 2 + i % 2 of row i // 2 % 2.

    def _divides(self) -> bool:
        sizes = self.kernel.sizes
        return (
            not sizes.lengths and isinstance(sizes.kv_len, int) and sizes.kv_len % self.kernel.tiles.bn == 0
        )

    def _mask(self, tile: Any) -> None:
        """Make the scores of keys that are not seen -inf."""
        kernel, sizes = self.kernel, self.kernel.sizes
        column = tile * kernel.tiles.bn + self.kernel.lane % 4 * 2
        limits = []
        for row in range(2):
            own = kernel.group * ROWS + kernel.warp * 16 + T.truncdiv(kernel.lane, 4) + row * 8
            last = self.walk.first_row + own + self.walk.offset
            seen = minimum(last + 1, self.walk.length) if sizes.causal else self.walk.length
            limits.append(Scalar(seen - column)())
        for i in range(kernel.tiles.bn // 2):
            seen = i // 4 * 8 + i % 2 < limits[i // 2 % 2]
            T.buffer_store(self.scores, tirx.Select(seen, self.scores[i], _unseen()), [i])

    def _raise_maximum(self) -> None:
        bn = self.kernel.tiles.bn
        for row in range(2):
            mine = [i for i in range(bn // 2) if i // 2 % 2 == row]
            found = Scalar(self.scores[mine[0]], "float32")
            other = Scalar(self.scores[mine[1]], "float32")  # two chains, half the latency
            for i, j in zip(mine[2::2], mine[3::2]):
                found.set(tirx.max(found(), self.scores[i]))
                other.set(tirx.max(other(), self.scores[j]))
            found.set(tirx.max(found(), other()))
            for mask in (1, 2):
                found.set(tirx.max(found(), shuffle_xor(found(), mask)))
            found.set(tirx.max(self.most[row], found() * self.scale()))
            T.buffer_store(self.base, tirx.Select(found() == _unseen(), T.float32(0), found()), [row])
            T.buffer_store(self.shrink, exp2(self.most[row] - self.base[row]), [row])
            T.buffer_store(self.most, found(), [row])

    def _exponentiate(self) -> None:
        for row in range(2):
            T.buffer_store(self.total, self.total[row] * self.shrink[row], [row])
        for i in range(0, self.kernel.tiles.bn // 2, 2):
            row = i // 2 % 2
            for j in (i, i + 1):
                T.buffer_store(self.scores, exp2(self.scores[j] * self.scale() - self.base[row]), [j])
            T.buffer_store(self.total, self.total[row] + (self.scores[i] + self.scores[i + 1]), [row])

    def _pack_weights(self) -> None:
        for i in range(self.kernel.tiles.bn // 4):
            pair = pack(self.kernel.sizes.dtype, self.scores[2 * i], self.scores[2 * i + 1])
            T.buffer_store(self.weights, pair, [i])

    # Where consumers meet the producer, the memory and each other.

    def _release(self, empty: Barriers, at: Position) -> None:
        with when((self.kernel.warp == 0) & (self.kernel.lane == 0)):
            empty.arrive(at.stage)
        at.advance()

    def _release_q(self) -> None:
        with when((self.kernel.warp == 0) & (self.kernel.lane == 0)):
            self.kernel.q_empty.arrive(self.kernel.group)

    def _await_turn(self) -> None:
        ptx("bar.sync", T.Cast("uint32", self.kernel.group + _TURN), T.uint32(256))

    def _pass_turn(self, group: Any) -> None:
        consumers = self.kernel.tiles.consumers
        after = T.Cast("uint32", tirx.Select(group == consumers - 1, 0, group + 1) + _TURN)
        if isinstance(group, int):
            after = T.uint32((group + 1) % consumers + _TURN)
        ptx("bar.arrive", after, T.uint32(256))

    def _write_out(self) -> None:
        """Registers to swizzled shared memory, and from there by the copy engine."""
        kernel = self.kernel
        leads = (kernel.warp == 0) & (kernel.lane == 0)
        if kernel.tiles.own_out:
            with when(leads):
                ptx("cp.async.bulk.wait_group.read", 0)
            do(T.cuda.warpgroup_sync(kernel.group + 1))
        row = kernel.warp * 16 + kernel.lane % 16
        for part in range(kernel.depth // 16):
            for i in range(4):
                j = part * 8 + i * 2
                low, high = (self.out[j + x] * self.total[i % 2] for x in range(2))
                T.buffer_store(self.weights, pack(kernel.sizes.dtype, low, high), [i])
            chunk = (part % 4 * 2 + T.truncdiv(kernel.lane, 16)) ^ (kernel.lane % 8)
            ptx(
                "stmatrix.sync.aligned.m8n8.x4.shared.b16",
                kernel.out.ptr_to([kernel.group, part // 4, row, chunk * 8]),
                *(self.weights[i] for i in range(4)),
            )
        ptx("fence.proxy.async.shared::cta")
        do(T.cuda.warpgroup_sync(kernel.group + 1))
        with when(leads):
            for block in range(kernel.blocks_of_columns):
                ptx(
                    "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group",
                    T.address_of(kernel.maps["out"]), block * COLUMNS,
                    self.walk.first_row + kernel.group * ROWS, self.walk.pair,
                    kernel.out.ptr_to([kernel.group, block, 0, 0]),
                )  # fmt: skip
            ptx("cp.async.bulk.commit_group")
            if not kernel.tiles.own_out:
                ptx("cp.async.bulk.wait_group.read", 0)
                kernel.q_empty.arrive(kernel.group)


def least_scale(scale: Any) -> Any:
    """Return what turns scores into exponents of 2; q takes the sign of a negative scale."""
    return tirx.max(tirx.abs(scale) * T.float32(_LOG2_E), T.float32(_LEAST_SCALE))


def _unseen() -> Any:
    return tirx.const(-math.inf, "float32")


# Descriptors of matrices in shared memory, 128-byte swizzle; offsets in units of 16 bytes.


def _rows_by_depth(address: Any) -> Any:
    """Rows whose 64 columns are the sum's axis: 8 rows are 1024 bytes."""
    return _descriptor(address, leading=1, stride=64)


def _depth_by_columns(address: Any, rows: int) -> Any:
    """Rows are the sum's axis; the next 64 columns are `rows` rows on."""
    return _descriptor(address, leading=rows * 8, stride=64)


def _descriptor(address: Any, leading: int, stride: int) -> Any:
    swizzle_128 = 1 << 62
    fixed = T.uint64(swizzle_128 | stride << 32 | leading << 16)
    return fixed | T.Cast("uint64", (address >> T.uint32(4)) & T.uint32(0x3FFF))
