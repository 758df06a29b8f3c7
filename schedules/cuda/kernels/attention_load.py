"""The warpgroup that loads: queries, keys and values to shared memory, through the copy engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.attention_tiles import COLUMNS, ROWS
from tvmops.schedules.cuda.kernels.attention_walk import Walk
from tvmops.schedules.cuda.words import Position, Scalar, ptx

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.attention_flash import FlashKernel


class Producer:
    """One thread: fills the rings, in the order in which consumers need what is in them."""

    def __init__(self, kernel: FlashKernel, walk: Walk) -> None:
        self.kernel, self.walk = kernel, walk
        self.k, self.v = Position(kernel.tiles.stages), Position(kernel.tiles.stages)
        self.q_phase = Scalar(0)

    def run(self) -> None:
        walk = self.walk
        with T.While(walk.more()):
            walk.locate()
            self._locate_keys()
            self._load("k", self.k, walk.count - 1)
            self._load_q()
            with T.serial(walk.count - 1) as step:
                self._load("k", self.k, walk.count - 2 - step)
                self._load("v", self.v, walk.count - 1 - step)
            self._load("v", self.v, 0)
            walk.advance()

    def _locate_keys(self) -> None:
        walk, sizes = self.walk, self.kernel.sizes
        if sizes.heads is sizes.kv_heads or sizes.heads == sizes.kv_heads:
            self.kv_pair = walk.pair
        else:
            batch, head = T.truncdiv(walk.pair, sizes.heads), T.truncmod(walk.pair, sizes.heads)
            group = T.truncdiv(sizes.heads, sizes.kv_heads)
            self.kv_pair = T.Bind(batch * sizes.kv_heads + T.truncdiv(head, group))

    def _keys(self, row: Any) -> tuple[Any, ...]:
        """Return where the keys, or values, from `row` on lie to the copy engine."""
        return row, self.kv_pair

    def _load(self, name: str, at: Position, tile: Any) -> None:
        kernel = self.kernel
        ring, memory = (kernel.k_ring, kernel.k) if name == "k" else (kernel.v_ring, kernel.v)
        ring.empty.wait(at.stage, at.phase ^ 1)
        ring.full.expect(at.stage, kernel.tiles.bn * kernel.blocks_of_columns * 2 * COLUMNS)
        row = tile * kernel.tiles.bn
        self.copy(name, memory, at.stage, self._keys(row), ring.full.at(at.stage))
        at.advance()

    def _load_q(self) -> None:
        kernel = self.kernel
        for group in range(kernel.tiles.consumers):
            self._await_place(group)
            kernel.q_full.expect(group, ROWS * kernel.blocks_of_columns * 2 * COLUMNS)
            row = self.walk.first_row + group * ROWS
            self.copy("q", kernel.q, group, self.walk.queries(row), kernel.q_full.at(group))
        self.q_phase.set(self.q_phase() ^ 1)

    def _await_place(self, group: int) -> None:
        """Wait until there is a place for the next queries of a warpgroup."""
        self.kernel.q_empty.wait(group, self.q_phase() ^ 1)

    def copy(
        self, name: str, memory: Any, stage: Any, place: tuple[Any, ...], barrier: Any, first: Any = 0
    ) -> None:
        rank = 1 + len(place)
        for block in range(self.kernel.blocks_of_columns):
            ptx(
                f"cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes",
                memory.ptr_to([stage, block, first, 0]), T.address_of(self.kernel.maps[name]),
                block * COLUMNS, *place, barrier,
            )  # fmt: skip
