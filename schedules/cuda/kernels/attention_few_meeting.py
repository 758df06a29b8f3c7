"""How the blocks of a cluster add what they have of a tile of rows: each finishes some of its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.attention_meeting import (
    SEND_TWO,
    await_all_here,
    joined,
    say_here,
)
from tvmops.schedules.cuda.kernels.attention_parts import store_share
from tvmops.schedules.cuda.kernels.attention_shares import PAD
from tvmops.schedules.cuda.kernels.attention_softmax import Registers
from tvmops.schedules.cuda.kernels.attention_tiles import ROWS
from tvmops.schedules.cuda.kernels.neighbours import FOUR
from tvmops.schedules.cuda.words import Barriers, c_call, do, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.attention_few import FewKernel, ShareWalk


class RowsMeeting:
    """What comes to a block takes the place of queries and keys, once no block needs any more."""

    def __init__(self, kernel: FewKernel, pool: Any) -> None:
        self.kernel, splits = kernel, kernel.splits
        self.most = -(-kernel.tiles.bm // splits)  # rows that a block finishes
        head_dim = kernel.sizes.head_dim
        self.sums = pool.alloc((splits, self.most, head_dim + PAD), "float32", align=16)
        self.scales = pool.alloc((splits, self.most, 2), "float32", align=8)  # maximum and total
        pool.move_base_to(0)

    def barrier(self, pool: Any) -> Barriers:
        """Return the barrier that counts the bytes which come."""
        self.all_here = Barriers(pool, 1, 1)
        return self.all_here

    def meet(self) -> None:
        """Wait until all blocks have used what is in their shared memory; each thread does."""
        say_here()
        await_all_here()

    def join(self, held: Registers, walk: ShareWalk) -> None:
        kernel, splits = self.kernel, self.kernel.splits
        self.meet()
        rows = tirx.min(kernel.sizes.q_len - walk.first_row, kernel.tiles.bm)
        self.finishes = T.Bind(T.truncdiv(rows - walk.part + (splits - 1), splits))
        with when((kernel.group == 0) & (kernel.warp == 0) & (kernel.lane == 0)):
            nbytes = splits * 4 * (kernel.sizes.head_dim + 2)  # of a row
            self.all_here.expect(0, T.Cast("uint32", self.finishes * nbytes))
        for row in range(2):
            own = T.Bind(kernel.group * ROWS + kernel.warp * 16 + T.truncdiv(kernel.lane, 4) + row * 8)
            with when(own < rows):
                self._send(held, walk, own, row)
        do(T.cuda.mbarrier_wait_acquire_cluster(self.all_here.at(0), 0))
        self._finish(walk)

    def _send(self, held: Registers, walk: ShareWalk, own: Any, row: int) -> None:
        """Send this thread's part of a row to the block that finishes it."""
        kernel, splits = self.kernel, self.kernel.splits
        owner, place = T.Bind(T.truncmod(own, splits)), T.Bind(T.truncdiv(own, splits))
        barrier = self.all_here.at(0)
        for block in range(kernel.sizes.head_dim // 8):
            to = self.sums.ptr_to([walk.part, place, block * 8 + kernel.lane % 4 * 2])
            two = (held.out[block * 4 + row * 2 + i] for i in range(2))
            do(c_call("void", "send_two", to, barrier, owner, *two, source=SEND_TWO))
        with when(kernel.lane % 4 == 0):
            to = self.scales.ptr_to([walk.part, place, 0])
            scale = held.most[row], held.total[row]
            do(c_call("void", "send_two", to, barrier, owner, *scale, source=SEND_TWO))

    def _finish(self, walk: ShareWalk) -> None:
        """Add up what all blocks have sent, four columns of a row at a time."""
        kernel, ranks = self.kernel, range(self.kernel.splits)
        s, threads = kernel.sizes, 128 * kernel.tiles.consumers
        fours = s.head_dim // FOUR
        with T.serial(-(-self.most * fours // threads)) as step:
            at = T.Bind(step * threads + kernel.group * 128 + kernel.warp * 32 + kernel.lane)
            with when(at < self.finishes * fours):
                place, column = T.Bind(T.truncdiv(at, fours)), T.Bind(T.truncmod(at, fours) * FOUR)
                _, total, values = joined(
                    [self.scales[rank, place, 0] for rank in ranks],
                    [self.scales[rank, place, 1] for rank in ranks],
                    [self.sums.ptr_to([rank, place, column]) for rank in ranks],
                )
                row = walk.pair * s.q_len + walk.first_row + place * kernel.splits + walk.part
                to = kernel.arrays["out"].ptr_to([0, 0, 0, row * s.head_dim + column])
                store_share(s.dtype, to, total, values)
