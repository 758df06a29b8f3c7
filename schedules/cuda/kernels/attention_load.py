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
