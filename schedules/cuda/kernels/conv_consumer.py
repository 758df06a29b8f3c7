"""What multiplies in `conv_wgmma`: warpgroups, each its own patches of a tile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.conv_tiles import ROWS
from tvmops.schedules.cuda.words import (
    PTX_TYPES,
    Position,
    Scalar,
    c_call,
    do,
    ptx,
    shared_address,
    tie,
    when,
)

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.conv_wgmma import WgmmaConvKernel

CONSUMERS = 8  # the named barrier of all that multiply

STORE_TWO = """
__forceinline__ __device__ void store_floats_at(void* to, float x, float y) {
  *static_cast<float2*>(to) = make_float2(x, y);
}
"""


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
            self.results = kernel.results_of(self.sums)

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
                self.results.fetch_residual(tile, corners)
            if t.alternate:
                # a stage's barrier tells one round from the next alone: none may wait for one further on
                kernel.turns.wait(kernel.warpgroup, turn())
                turn.set(turn() ^ 1)
            self._multiply()
            if t.alternate:
                with when(self.leads):
                    kernel.turns.arrive(T.truncmod(kernel.warpgroup + 1, t.consumers))
            self.results.store(tile, corners)
            index.set(index() + stride * (t.consumers if t.alternate else 1))
            if t.alternate:
                self.at.skip((t.consumers - 1) * kernel.steps)
        self.results.finish()

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
        a_stage = T.Cast("uint32", self.at.stage * (t.all_patches * ROWS * t.row_bytes))
        b_stage = T.Cast("uint32", self.at.stage * (t.bn * t.row_bytes))
        for part in range(t.depth // 16):
            for patch in range(t.patches):
                a_inside = T.uint32(
                    patch * ROWS * t.row_bytes + part * (16 * t.row_bytes if t.direct else 32)
                )
                ptx(
                    product, *(self.sums[patch * self.each + i] for i in range(self.each)),
                    _swizzled(self.a_at + a_stage + a_inside, t.row_bytes),
                    _swizzled(self.b_at + b_stage + T.uint32(part * 32), t.row_bytes),
                    step > 0 if part == 0 else tirx.const(True, "bool"), 1, 1, t.direct, 0,
                )  # fmt: skip

    def _release(self, stage: Any) -> None:
        kernel, cluster = self.kernel, self.kernel.tiles.cluster
        if cluster == 1:
            with when(self.leads):
                kernel.ring.empty.arrive(stage)
            return
        with when((kernel.lane == 0) & (kernel.warp < cluster)):
            ptx("mbarrier.arrive.shared::cluster.b64", self.remote() + T.Cast("uint32", stage * 8))

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
        ptx("bar.sync", T.uint32(CONSUMERS), T.uint32(128 * t.consumers))
        for patch in range(t.patches):
            own = (kernel.warpgroup * t.patches + patch) * ROWS
            row = own + kernel.warp * 16 + T.truncdiv(kernel.lane, 4)
            for i in range(0, self.each, 2):
                place = kernel.partial.ptr_to([row + i // 2 % 2 * 8, i // 4 * 8 + kernel.lane % 4 * 2])
                low, high = (self.sums[patch * self.each + i + e] for e in range(2))
                do(c_call("void", "store_floats_at", place, low, high, source=STORE_TWO))


def _swizzled(address: Any, row_bytes: int) -> Any:
    """Return wgmma's view of rows of k, or of pixels, that are swizzled by their bytes: 128, 64 or 32."""
    swizzle, eight_rows = {128: 1, 64: 2, 32: 3}[row_bytes], 8 * row_bytes // 16
    fixed = T.uint64(swizzle << 30 | eight_rows) << T.uint64(32) | T.uint64(
        1 << 16
    )  # of 63 bits are literals
    return fixed | T.Cast("uint64", (address >> T.uint32(4)) & T.uint32(0x3FFF))
