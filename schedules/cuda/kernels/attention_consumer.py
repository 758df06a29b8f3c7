"""A warpgroup that computes: 64 rows of a tile of queries, step by step along its keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.attention_products import Products
from tvmops.schedules.cuda.kernels.attention_softmax import Registers, Softmax
from tvmops.schedules.cuda.kernels.attention_store import write_out
from tvmops.schedules.cuda.kernels.attention_walk import Walk
from tvmops.schedules.cuda.words import Barriers, Position, Scalar, ptx, tie, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.attention_flash import FlashKernel

_TURN = 4  # the first of the named barriers by which warpgroups take turns


class Consumer:
    """One warpgroup. A thread holds parts of two rows."""

    def __init__(self, kernel: FlashKernel, walk: Walk) -> None:
        self.kernel, self.walk = kernel, walk
        self.k, self.v = Position(kernel.tiles.stages), Position(kernel.tiles.stages)
        self.q_phase = Scalar(0)
        self.held = Registers(kernel)
        self.products = Products(kernel, self.held)
        self.softmax = Softmax(kernel, self.held, self.walk)

    def run(self) -> None:
        tiles, walk = self.kernel.tiles, self.walk
        if tiles.take_turns:
            with when(self.kernel.group == 0):
                self._pass_turn(tiles.consumers - 1)
        with T.While(walk.more()):
            walk.locate()
            self._begin()
            if self.may_mask_more:
                more = T.Bind(tirx.max(walk.count - 1 - tirx.min(walk.whole(), walk.count - 1), 0))
                with T.serial(more) as step:
                    self._step(walk.count - 2 - step, masked=True)
                with T.serial(walk.count - 1 - more) as step:
                    self._step(walk.count - 2 - more - step, masked=False)
            else:
                with T.serial(walk.count - 1) as step:
                    self._step(walk.count - 2 - step, masked=False)
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

    # The steps of a walk.

    def _begin(self) -> None:
        kernel = self.kernel
        self.softmax.clear()
        kernel.q_full.wait(kernel.group, self.q_phase())
        self.products.turn_sign()
        kernel.k_ring.full.wait(self.k.stage, self.k.phase)
        ptx("wgmma.fence.sync.aligned")
        self.products.multiply_q_k(self.k.stage)
        ptx("wgmma.wait_group.sync.aligned", 0)
        tie(self.held.scores, kernel.tiles.bn // 2)
        self._release(kernel.k_ring.empty, self.k)
        if kernel.sizes.mask:
            self.softmax.apply_mask(self.walk.count - 1)
        if kernel.sizes.causal or not self._divides():
            self.softmax.mask(self.walk.count - 1)
        self.softmax.raise_maximum()
        self.softmax.exponentiate()
        self.softmax.pack_weights()

    def _step(self, tile: Any, masked: bool) -> None:
        """Scores of the next tile, and out += weights v of the last."""
        kernel = self.kernel
        kernel.k_ring.full.wait(self.k.stage, self.k.phase)
        if kernel.tiles.take_turns:
            self._await_turn()
        ptx("wgmma.fence.sync.aligned")
        self.products.multiply_q_k(self.k.stage)
        kernel.v_ring.full.wait(self.v.stage, self.v.phase)
        ptx("wgmma.fence.sync.aligned")
        self.products.multiply_weights_v(self.v.stage)
        if kernel.tiles.take_turns:
            self._pass_turn(kernel.group)
        ptx("wgmma.wait_group.sync.aligned", 1)
        tie(self.held.scores, kernel.tiles.bn // 2)
        self._release(kernel.k_ring.empty, self.k)
        if kernel.sizes.mask:
            self.softmax.apply_mask(tile)
        if masked:
            self.softmax.mask(tile)
        self.softmax.raise_maximum()
        self.softmax.exponentiate()
        tie(self.held.scores, kernel.tiles.bn // 2)
        ptx("wgmma.wait_group.sync.aligned", 0)
        tie(self.held.out, kernel.depth // 2)
        self._release(kernel.v_ring.empty, self.v)
        self.softmax.pack_weights()
        self.softmax.shrink_out()

    def _end(self) -> None:
        """The last product; out is divided by the sums and leaves."""
        kernel = self.kernel
        if kernel.tiles.own_out:
            self._release_q()
        kernel.v_ring.full.wait(self.v.stage, self.v.phase)
        ptx("wgmma.fence.sync.aligned")
        self.products.multiply_weights_v(self.v.stage)
        self._add_totals()
        ptx("wgmma.wait_group.sync.aligned", 0)
        tie(self.held.out, kernel.depth // 2)
        self._release(kernel.v_ring.empty, self.v)
        self._leave()
        self.q_phase.set(self.q_phase() ^ 1)

    def _add_totals(self) -> None:
        self.softmax.invert_totals()

    def _leave(self) -> None:
        write_out(self.kernel, self.held, self.walk)

    def _divides(self) -> bool:
        sizes = self.kernel.sizes
        return (
            not sizes.lengths and isinstance(sizes.kv_len, int) and sizes.kv_len % self.kernel.tiles.bn == 0
        )

    # Where consumers meet the producer and each other.

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
