"""What a warpgroup multiplies of a tile of a product with integer weights: groups, each scaled by itself.

Two warpgroups take turns: one multiplies a group while the other scales its last and makes floats of the
next. A second set of products, scaled while the first is made, gained nothing.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.weight_fragments import WeightFragments, variables
from tvmops.schedules.cuda.weight_only_product import BK, WeightOnlyProduct
from tvmops.schedules.cuda.weight_only_tiles import WeightOnlyWgmmaTiles
from tvmops.schedules.cuda.words import Position, Ring, Scalar, ptx, shared_address, swizzled, tie, when

PANEL = 64  # elements: a row of the 128-byte swizzle
_TURN = 1  # the named barrier of the first warpgroup's turn; the next is of the other's


class WeightProducts:
    """The products of one thread's warpgroup.

    Parameters
    ----------
    stages
        Those of x and of packed weights, and their barriers.
    steps
        How many stages a tile has.
    """

    def __init__(
        self,
        product: WeightOnlyProduct,
        tiles: WeightOnlyWgmmaTiles,
        stages: tuple[Any, Any, Ring],
        steps: Any,
        warp: Any,
        lane: Any,
    ) -> None:
        self.product, self.tiles, self.steps, self.lane = product, tiles, steps, lane
        x_stages, w_stages, self.ring = stages
        self.at, self.held = Position(tiles.stages), tiles.rows // 2
        self.group = T.truncdiv(warp, 4)
        base = shared_address(w_stages, 0, 0)
        self.fragments = WeightFragments(product, base, tiles.panels, warp, lane, bool(tiles.rounded))
        self.x_base = Scalar(shared_address(x_stages, 0, 0, 0, 0), "uint32")()
        self.totals = variables("totals", self.held, "float32")
        if not tiles.rounded:
            self.products = variables("products", self.held, "float32")  # of a group
        self.scales = variables("scales", 2, "float32")
        self.before = Scalar(0)  # the stage that products may still read
        if self._takes_turns:
            with when(self.group == 1):
                self._pass_turn()

    def multiply(self) -> None:
        """Set `totals` to the products of a tile."""
        if self.tiles.rounded:
            self._multiply_rounded()
        else:
            self._multiply_groups()

    def _multiply_rounded(self) -> None:
        """Multiply weights that are scaled as they become floats: all of k is one sum."""
        for i in range(self.held):
            T.buffer_store(self.totals, T.float32(0), [i])
        tie(self.totals, self.held)
        each = max(1, self.product.group // (BK // 2))  # sets of fragments of a group
        with T.serial(self.steps) as step:
            self.ring.full.wait(self.at.stage, self.at.phase)
            for number in range(BK // self.product.group * each):
                group, batch = divmod(number, each)
                if batch == 0:
                    self.fragments.load_zero_points(self.at.stage, group)
                    self.fragments.load_factors(self.at.stage, group)
                self.fragments.load(self.at.stage, group, batch, number % 2)
                self.fragments.scale(number % 2)
                self._begin(number, self.totals, False)
                ptx("wgmma.wait_group.sync.aligned", 1)  # the set before is free again
                if number == 0:
                    with when(step > 0):
                        self._release()
            self.before.set(self.at.stage)
            self.at.advance()
        ptx("wgmma.wait_group.sync.aligned", 0)
        tie(self.totals, self.held)
        self._release()

    def _multiply_groups(self) -> None:
        for registers, count in ((self.totals, self.held), (self.products, self.held), (self.scales, 2)):
            for i in range(count):
                T.buffer_store(registers, T.float32(0), [i])
        tie(self.products, self.held)
        each = max(1, self.product.group // (BK // 2))  # sets of fragments of a group
        with T.serial(self.steps) as step:
            self.ring.full.wait(self.at.stage, self.at.phase)
            for group in range(BK // self.product.group):
                self.fragments.load_zero_points(self.at.stage, group)
                for batch in range(each):
                    number = group * each + batch
                    self.fragments.load(self.at.stage, group, batch, number % 2)
                    if batch == 0:
                        self._scale()
                        self.fragments.load_scales(self.scales, self.at.stage, group)
                        if group == 0:
                            with when(step > 0):
                                self._release()
                        self._await_turn()
                    self._begin(number, self.products, batch == 0)
                    if batch == each - 1:
                        self._pass_turn()
                    if batch > 0:  # the set before is free again
                        ptx("wgmma.wait_group.sync.aligned", 1)
            self.before.set(self.at.stage)
            self.at.advance()
        self._scale()
        self._release()

    def _begin(self, number: int, sums: Any, begins: bool) -> None:
        """Begin to multiply the `number`-th set of a stage."""
        ptx("wgmma.fence.sync.aligned")
        first = number * self.fragments.steps
        views = [self._view(self.at.stage, first + i) for i in range(self.fragments.steps)]
        self.fragments.multiply(number % 2, sums, self.tiles.rows, views, begins)
        ptx("wgmma.commit_group.sync.aligned")

    @property
    def _takes_turns(self) -> bool:
        return self.tiles.groups == 2 and not self.tiles.rounded

    def _await_turn(self) -> None:
        """Wait until the other warpgroup has begun to multiply, so that one multiplies while one does not."""
        if self._takes_turns:
            ptx("bar.sync", T.Cast("uint32", _TURN + self.group), T.uint32(256))

    def _pass_turn(self) -> None:
        if self._takes_turns:
            ptx("bar.arrive", T.Cast("uint32", _TURN + 1 - self.group), T.uint32(256))

    def _scale(self) -> None:
        """Wait for a group's products; add them, scaled, to what there is."""
        ptx("wgmma.wait_group.sync.aligned", 0)
        tie(self.products, self.held)
        for i in range(self.held):
            scaled = self.scales[i // 2 % 2] * self.products[i]
            T.buffer_store(self.totals, self.totals[i] + scaled, [i])

    def _release(self) -> None:
        """Release a stage; each warp does so, for each has read its own weights there."""
        with when(self.lane == 0):
            self.ring.empty.arrive(self.before())

    def _view(self, stage: Any, step: int) -> Any:
        """Return wgmma's view of 16 values of k of x."""
        inside = step // 4 * (self.tiles.rows * PANEL * 2) + step % 4 * 32
        return swizzled(self.x_base + T.Cast("uint32", stage * self.tiles.x_bytes + inside))
