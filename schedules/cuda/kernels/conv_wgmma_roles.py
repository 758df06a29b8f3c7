"""Who does what in the kernel of `WgmmaConv`: one thread fills the ring, warpgroups multiply, clusters add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.conv_tiles import DEPTH, ROWS
from tvmops.schedules.cuda.pairs import element_at, high_of, load_pair, low_of
from tvmops.schedules.cuda.row_memory import load_vector, store_vector, unpack
from tvmops.schedules.cuda.words import (
    PTX_TYPES,
    Position,
    Scalar,
    c_call,
    do,
    pack,
    ptx,
    shared_address,
    swizzled,
    tie,
    when,
)

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.conv_wgmma import WgmmaConvKernel

_LOAD = "cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes"
_MULTICAST = _LOAD + ".multicast::cluster"
_STORE = "cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group"
_ROW_BYTES = 2 * DEPTH
_CONSUMERS = 8  # the named barrier of all that multiply
_RUN = 8  # elements that one thread adds up: 16 bytes of the result

# All are read before the first is added, lest each waits for the one before it.
_ADD_PARTIALS = """
__forceinline__ __device__ void add_partials_{count}(float* sums, const void* mine) {{
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(mine));
  float found[8 * {count}];
#pragma unroll
  for (int rank = 0; rank < {count}; ++rank) {{
    unsigned remote;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
#pragma unroll
    for (int i = 8 * rank; i < 8 * rank + 8; i += 4)
      asm volatile("ld.shared::cluster.v4.f32 {{%0, %1, %2, %3}}, [%4];"
                   : "=f"(found[i]), "=f"(found[i + 1]), "=f"(found[i + 2]), "=f"(found[i + 3])
                   : "r"(remote + 4 * (i % 8)) : "memory");
  }}
#pragma unroll
  for (int i = 0; i < 8; ++i) {{
    sums[i] = found[i];
#pragma unroll
    for (int rank = 1; rank < {count}; ++rank) sums[i] += found[8 * rank + i];
  }}
}}
"""
_STORE_NEIGHBOURS = """
__forceinline__ __device__ void store_neighbours(void* to, float x, float y) {
  *static_cast<float2*>(to) = make_float2(x, y);
}
"""


@dataclass(frozen=True)
class Tile:
    """What a block is at: its first patch, its first output channel of the group, and the group."""

    patch: Any
    channel: Any
    group: Any


class Producer:
    """One thread: fills the ring."""

    def __init__(self, kernel: WgmmaConvKernel) -> None:
        self.kernel = kernel

    def run(self) -> None:
        kernel, s, t = self.kernel, self.kernel.shape, self.kernel.tiles
        self.at, index = Position(t.stages), Scalar(kernel.first_tile())
        nbytes = (t.all_patches * t.pixels + t.bn) * _ROW_BYTES
        with T.While(index() < kernel.tile_count):
            tile = kernel.locate(index())
            corners = [self._corner(tile.patch + i) for i in range(t.all_patches)]
            tap = Scalar(T.truncdiv(kernel.first(), kernel.chunks))
            chunk = Scalar(kernel.first() - tap() * kernel.chunks)
            row = Scalar(T.truncdiv(tap(), s.across.size))
            column = Scalar(tap() - row() * s.across.size)
            with T.serial(kernel.last() - kernel.first()):
                kernel.ring.empty.wait(self.at.stage, self.at.phase ^ 1)
                kernel.ring.full.expect(self.at.stage, nbytes)
                self._load(tile, corners, chunk() * DEPTH, tap(), row(), column())
                self.at.advance()
                self._next(chunk, tap, row, column)
            index.set(index() + (kernel.tile_count if t.split_k > 1 else t.blocks // t.cluster))

    def _corner(self, patch: Any) -> tuple[Any, Any, Any]:
        """Return where the window of a patch's first pixel begins."""
        s = self.kernel.shape
        x, y, image = self.kernel.corner(patch)
        return (
            Scalar(x * s.across.stride - s.across.before)(),
            Scalar(y * s.down.stride - s.down.before)(),
            image,
        )

    def _load(self, tile: Tile, corners: Any, channel: Any, tap: Any, row: Any, column: Any) -> None:
        kernel, s, stage = self.kernel, self.kernel.shape, self.at.stage
        full = kernel.ring.full.at(stage)
        for i, (x, y, image) in enumerate(corners):
            corner = (x + column * s.across.dilation, y + row * s.down.dilation, image)
            ptx(
                _LOAD.format(rank=kernel.rank),
                kernel.pixels.ptr_to([stage, i, 0, 0]), T.address_of(kernel.maps["x"]),
                *kernel.place(channel, tile.group, corner), full,
            )  # fmt: skip
        cluster = kernel.tiles.cluster
        own = kernel.cluster_rank * (kernel.tiles.bn // cluster) if cluster > 1 else 0
        first = tile.channel + own + (tile.group * s.co_each if kernel.grouped else 0)
        everyone = (T.uint16((1 << cluster) - 1),) if cluster > 1 else ()
        ptx(
            (_MULTICAST if cluster > 1 else _LOAD).format(rank=3),
            kernel.weights.ptr_to([stage, own, 0]), T.address_of(kernel.maps["w"]),
            channel, tap, first, full, *everyone,
        )  # fmt: skip

    def _next(self, chunk: Scalar, tap: Scalar, row: Scalar, column: Scalar) -> None:
        """Go on to the next channels, then to the next place of the kernel."""
        chunk.set(chunk() + 1)
        with when(chunk() == self.kernel.chunks):
            chunk.set(0)
            tap.set(tap() + 1)
            column.set(column() + 1)
            with when(column() == self.kernel.shape.across.size):
                column.set(0)
                row.set(row() + 1)


class Consumer:
    """One warpgroup: its patches of a tile. A thread holds parts of two rows of 8 a patch."""

    def __init__(self, kernel: WgmmaConvKernel) -> None:
        t = kernel.tiles
        self.kernel, self.at = kernel, Position(t.stages)
        self.each = t.bn // 2  # sums of a patch
        self.sums = T.alloc_local((t.patches * self.each,), "float32")
        own = 0 if t.alternate else kernel.warpgroup * t.patches
        self.a_at = Scalar(shared_address(kernel.pixels, 0, own, 0, 0), "uint32")()
        self.b_at = Scalar(shared_address(kernel.weights, 0, 0, 0), "uint32")()
        self.leads = (kernel.warp == 0) & (kernel.lane == 0)
        if t.cluster > 1:
            # warp i of each warpgroup releases stages in block i of the cluster
            self.remote = Scalar(0, "uint32")
            near = T.cuda.cvta_generic_to_shared(kernel.ring.empty.at(0))
            ptx("mapa.shared::cluster.u32", self.remote(), near, T.Cast("uint32", kernel.warp % t.cluster))
        if t.split_k == 1:
            self.packed = T.alloc_local((4,), "uint32")
            self.bias = T.alloc_local((8,), "uint32")
            self.added = T.alloc_local((4,), "uint32")
            self.round = Scalar(0)  # of the barrier that residuals complete

    def run(self) -> None:
        kernel, t = self.kernel, self.kernel.tiles
        stride, index = t.blocks // t.cluster, Scalar(kernel.first_tile())
        if t.alternate:
            index.set(index() + kernel.warpgroup * stride)
            self.at.skip(kernel.warpgroup * kernel.steps)
            turn = Scalar(tirx.Select(kernel.warpgroup == 0, 1, 0))  # the first warpgroup need not wait
        with T.While(index() < kernel.tile_count):
            tile = kernel.locate(index())
            own = tile.patch + (0 if t.alternate else kernel.warpgroup * t.patches)
            corners = [kernel.corner(own + i) for i in range(t.patches)]
            if kernel.waits_for_residual:
                self._fetch_residual(tile, corners)
            if t.alternate:
                # a stage's barrier tells one round from the next alone: none may wait for one further on
                kernel.turns.wait(kernel.warpgroup, turn())
                turn.set(turn() ^ 1)
            self._multiply()
            if t.alternate:
                with when(self.leads):
                    kernel.turns.arrive(T.truncmod(kernel.warpgroup + 1, t.consumers))
            self._store(tile, corners)
            index.set(index() + stride * (t.consumers if t.alternate else 1))
            if t.alternate:
                self.at.skip((t.consumers - 1) * kernel.steps)
        with when(self.leads):
            ptx("cp.async.bulk.wait_group", 0)

    def _multiply(self) -> None:
        """Add up all steps; each stage is released when the products after it have begun."""
        kernel, t = self.kernel, self.kernel.tiles
        before = Scalar(0)
        with T.serial(kernel.last() - kernel.first()) as step:
            kernel.ring.full.wait(self.at.stage, self.at.phase)
            ptx("wgmma.fence.sync.aligned")
            self._multiply_stage(step)
            ptx("wgmma.commit_group.sync.aligned")
            ptx("wgmma.wait_group.sync.aligned", 1)
            with when(step > 0):
                self._release(before())
            before.set(self.at.stage)
            self.at.advance()
        ptx("wgmma.wait_group.sync.aligned", 0)
        tie(self.sums, t.patches * self.each)
        self._release(before())

    def _multiply_stage(self, step: Any) -> None:
        kernel, t = self.kernel, self.kernel.tiles
        kind = PTX_TYPES[kernel.dtype]
        product = f"wgmma.mma_async.sync.aligned.m64n{t.bn}k16.f32.{kind}.{kind}"
        a_stage = T.Cast("uint32", self.at.stage * (t.all_patches * ROWS * _ROW_BYTES))
        b_stage = T.Cast("uint32", self.at.stage * (t.bn * _ROW_BYTES))
        for part in range(DEPTH // 16):
            for patch in range(t.patches):
                a_inside = T.uint32(patch * ROWS * _ROW_BYTES + part * 32)
                ptx(
                    product, *(self.sums[patch * self.each + i] for i in range(self.each)),
                    swizzled(self.a_at + a_stage + a_inside),
                    swizzled(self.b_at + b_stage + T.uint32(part * 32)),
                    step > 0 if part == 0 else tirx.const(True, "bool"), 1, 1, 0, 0,
                )  # fmt: skip

    def _release(self, stage: Any) -> None:
        kernel, cluster = self.kernel, self.kernel.tiles.cluster
        if cluster == 1:
            with when(self.leads):
                kernel.ring.empty.arrive(stage)
            return
        with when((kernel.lane == 0) & (kernel.warp < cluster)):
            ptx("mbarrier.arrive.shared::cluster.b64", self.remote() + T.Cast("uint32", stage * 8))

    # The end: through swizzled shared memory, 64 channels of a patch at a time.

    def _fetch_residual(self, tile: Tile, corners: list[tuple[Any, Any, Any]]) -> None:
        """Begin to copy the residual of the tile to where its results will lie."""
        kernel, t = self.kernel, self.kernel.tiles
        with when(self.leads):
            ptx("cp.async.bulk.wait_group.read", 0)  # the results of the last tile have left
            kernel.arrived.expect(kernel.warpgroup, t.store_buffers * t.pixels * _ROW_BYTES)
            for number in range(t.store_buffers):
                part, patch = divmod(number, t.patches)
                place = kernel.place(tile.channel + part * 64, tile.group, corners[patch])
                ptx(
                    _LOAD.format(rank=kernel.rank),
                    kernel.results.ptr_to([kernel.warpgroup, number, 0, 0]),
                    T.address_of(kernel.maps["residual"]), *place, kernel.arrived.at(kernel.warpgroup),
                )  # fmt: skip

    def _store(self, tile: Tile, corners: list[tuple[Any, Any, Any]]) -> None:
        kernel, t = self.kernel, self.kernel.tiles
        count = t.patches * (t.bn // 64)
        # Stores that may still read: none if the next tile begins with the buffer that this one ends with.
        unread = t.store_buffers - 1 if count % t.store_buffers == 0 else 0
        if kernel.waits_for_residual:
            kernel.arrived.wait(kernel.warpgroup, self.round())
            self.round.set(self.round() ^ 1)
        for part in range(t.bn // 64):
            self._load_bias(tile, part)
            for patch, corner in enumerate(corners):
                buffer = (part * t.patches + patch) % t.store_buffers
                if not kernel.waits_for_residual:
                    with when(self.leads):
                        ptx("cp.async.bulk.wait_group.read", unread)
                    do(T.cuda.warpgroup_sync(kernel.warpgroup + 1))
                self._place(part, patch, buffer)
                ptx("fence.proxy.async.shared::cta")
                do(T.cuda.warpgroup_sync(kernel.warpgroup + 1))
                with when(self.leads):
                    place = kernel.place(tile.channel + part * 64, tile.group, corner)
                    ptx(
                        _STORE.format(rank=kernel.rank), T.address_of(kernel.maps["y"]), *place,
                        kernel.results.ptr_to([kernel.warpgroup, buffer, 0, 0]),
                    )  # fmt: skip
                    ptx("cp.async.bulk.commit_group")

    def _load_bias(self, tile: Tile, part: int) -> None:
        """Read the bias of this thread's columns, two at a time."""
        kernel, s = self.kernel, self.kernel.shape
        if kernel.bias is None:
            return
        for j in range(8):
            column = tirx.min(tile.channel + part * 64 + j * 8 + kernel.lane % 4 * 2, s.co_each - 2)
            first = tile.group * s.co_each if kernel.grouped else 0
            T.buffer_store(self.bias, load_pair(element_at(kernel.bias, first + column)), [j])

    def _place(self, part: int, patch: int, buffer: int) -> None:
        """Finish 64 x 64 sums and write them to a buffer, which may hold the residual."""
        kernel, dtype = self.kernel, self.kernel.dtype
        row = kernel.warp * 16 + kernel.lane % 16
        for p in range(4):
            piece = (p * 2 + T.truncdiv(kernel.lane, 16)) ^ (kernel.lane % 8)
            place = kernel.results.ptr_to([kernel.warpgroup, buffer, row, piece * 8])
            if kernel.epilogue.residual:
                address = T.cuda.cvta_generic_to_shared(place)
                ptx("ldmatrix.sync.aligned.m8n8.x4.shared.b16", *(self.added[i] for i in range(4)), address)
            for q in range(4):
                at = patch * self.each + part * 32 + p * 8 + q * 2
                pairs = [self.added[q]] if kernel.epilogue.residual else []
                pairs += [self.bias[p * 2 + q // 2]] if kernel.bias is not None else []
                low, high = self.sums[at], self.sums[at + 1]
                for pair in pairs:
                    low, high = low + low_of(dtype, pair), high + high_of(dtype, pair)
                activation = kernel.epilogue.activation
                word = pack(dtype, activate(activation, low), activate(activation, high))
                T.buffer_store(self.packed, word, [q])
            ptx("stmatrix.sync.aligned.m8n8.x4.shared.b16", place, *(self.packed[i] for i in range(4)))

    def share(self) -> None:
        """Add up this block's steps and leave the sums where the others of the cluster find them."""
        kernel, t = self.kernel, self.kernel.tiles
        with T.If(kernel.first() < kernel.last()):
            with T.Then():
                self._multiply()
            with T.Else():
                for i in range(t.patches * self.each):
                    T.buffer_store(self.sums, T.float32(0), [i])
        # Others may still read the ring, whose place these sums take.
        ptx("bar.sync", T.uint32(_CONSUMERS), T.uint32(128 * t.consumers))
        for patch in range(t.patches):
            own = (kernel.warpgroup * t.patches + patch) * ROWS
            row = own + kernel.warp * 16 + T.truncdiv(kernel.lane, 4)
            for i in range(0, self.each, 2):
                place = kernel.partial.ptr_to([row + i // 2 % 2 * 8, i // 4 * 8 + kernel.lane % 4 * 2])
                low, high = (self.sums[patch * self.each + i + e] for e in range(2))
                do(c_call("void", "store_neighbours", place, low, high, source=_STORE_NEIGHBOURS))


class ClusterSum:
    """The threads of a cluster's consumers: each adds up runs of 8 sums, always in the same order."""

    def __init__(self, kernel: WgmmaConvKernel) -> None:
        self.kernel = kernel
        self.sums, self.more = T.alloc_local((_RUN,), "float32"), T.alloc_local((_RUN,), "float32")
        self.words = T.alloc_local((4,), "uint32")

    def run(self) -> None:
        kernel, t = self.kernel, self.kernel.tiles
        tile = kernel.locate(kernel.first_tile())
        runs, threads = t.bn // _RUN, 128 * t.consumers
        thread = kernel.warpgroup * 128 + kernel.warp * 32 + kernel.lane
        at = Scalar(kernel.cluster_rank * threads + thread)
        with T.While(at() < ROWS * t.all_patches * runs):
            row, run = Scalar(T.truncdiv(at(), runs))(), Scalar(T.truncmod(at(), runs))()
            self._finish(tile, row, run * _RUN)
            at.set(at() + t.split_k * threads)

    def _finish(self, tile: Tile, row: Any, column: Any) -> None:
        kernel, s, t = self.kernel, self.kernel.shape, self.kernel.tiles
        x, y, image = kernel.corner(tile.patch + T.truncdiv(row, ROWS))
        inside = Scalar(T.truncmod(row, ROWS))()
        x, y = x + T.truncmod(inside, t.patch_w), y + T.truncmod(T.truncdiv(inside, t.patch_w), t.patch_h)
        image = image + T.truncdiv(inside, t.patch_w * t.patch_h)
        within = (tile.channel + column < s.co_each) & (x < s.ow) & (y < s.oh) & (image < s.n)
        with when(tirx.all(inside < t.pixels, within)):
            mine, source = kernel.partial.ptr_to([row, column]), _ADD_PARTIALS.format(count=t.split_k)
            do(c_call("void", f"add_partials_{t.split_k}", T.address_of(self.sums[0]), mine, source=source))
            channel = Scalar(tile.group * s.co_each + tile.channel + column)()
            place = Scalar(((image * s.oh + y) * s.ow + x) * s.co + channel)()
            if kernel.bias is not None:
                self._add(element_at(kernel.bias, channel))
            if kernel.residual is not None:
                self._add(element_at(kernel.residual, place))
            for i in range(_RUN):
                T.buffer_store(self.sums, activate(kernel.epilogue.activation, self.sums[i]), [i])
            store_vector(element_at(kernel.y, place), self.sums, 0, kernel.dtype, _RUN)

    def _add(self, pointer: Any) -> None:
        """Add 8 elements."""
        load_vector(self.words, 0, pointer, self.kernel.dtype, _RUN, "__ldg")
        unpack(self.more, 0, self.words, 0, self.kernel.dtype, _RUN)
        for i in range(_RUN):
            T.buffer_store(self.sums, self.sums[i] + self.more[i], [i])
