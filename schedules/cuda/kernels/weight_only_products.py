"""What a warpgroup multiplies of a tile of a product with integer weights: groups, each scaled by itself.

Of few rows there is room for two sets of products: one is scaled and floats are made while the other is
on its way. Of many, two warpgroups take turns: one multiplies while the other does the rest.
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
        self.group, self.place = T.truncdiv(warp, 4), T.truncmod(warp, 4)
        base = shared_address(w_stages, 0, 0)
        self.fragments = WeightFragments(product, base, tiles.panels, warp, lane)
        self.x_base = Scalar(shared_address(x_stages, 0, 0, 0, 0), "uint32")()
        self.totals = variables("totals", self.held, "float32")
        self.products = [variables("products", self.held, "float32") for _ in range(tiles.sets)]
        self.scales = [variables("scales", 2, "float32") for _ in range(tiles.sets)]
        self.before = Scalar(0)
        if self._takes_turns:
            with when(self.group == 1):
                self._pass_turn()

    def multiply(self) -> None:
        """Set `totals` to the products of a tile."""
        for registers in (self.totals, *self.products):
            for i in range(self.held):
                T.buffer_store(registers, T.float32(0), [i])
        for scales in self.scales:
            for i in range(2):
                T.buffer_store(scales, T.float32(0), [i])
        for products in self.products:
            tie(products, self.held)
        if self.tiles.sets > 1:
            self._ahead()
        else:
            self._in_turn()

    def _batches(self) -> list[tuple[int, int, int]]:
        """Return a stage's sets of fragments: their number, their group, and which they are of that."""
        each = max(1, self.product.group // (BK // 2))
        return [(number, number // each, number % each) for number in range(BK // self.product.group * each)]

    def _in_turn(self) -> None:
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

    def _ahead(self) -> None:
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
