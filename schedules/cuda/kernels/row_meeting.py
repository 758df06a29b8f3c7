"""How the warps of a block, and the blocks of a cluster, learn at once what all know of a row."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.attention_meeting import SEND_FOUR, await_all_here, say_here
from tvmops.schedules.cuda.kernels.row_stats import RowStats
from tvmops.schedules.cuda.kernels.row_values import WARP
from tvmops.schedules.cuda.words import Barriers, Scalar, c_call, do, ptx, when

_SLOT = 4  # floats of a share, at most


class RowMeeting:
    """Each warp sends its share to a slot of its own in every block; rows in turn use two sets of slots."""

    def __init__(self, pool: Any, warps: int, cluster: int, rank: Any, warp: Any, lane: Any) -> None:
        self.warps, self.cluster = warps, cluster
        self.warp, self.lane, self.place = warp, lane, rank * warps + warp
        self.slots = pool.alloc((2, self.count, _SLOT), "float32", align=16)
        self.all_here = Barriers(pool, 1, 1)

    @property
    def count(self) -> int:
        return self.warps * self.cluster

    def begin(self) -> None:
        """Begin when the block does, once shared memory is there: to send to a block, one must know that it has."""
        if self.cluster == 1:
            return
        with when(tirx.all(self.warp == 0, self.lane == 0)):
            self.all_here.init()
            ptx("fence.mbarrier_init.release.cluster")
        do(T.cuda.warp_sync())
        say_here()

    def meet(self, stats: RowStats, parity: Any) -> None:
        """Make the statistics of this thread those of the row; rows that follow each other differ in `parity`."""
        stats.join([[each() for each in stats.of]], WARP)
        if self.count > 1:
            self._send(stats, parity)
            lanes = min(1 << (self.count - 1).bit_length(), WARP)
            places = [self.lane % lanes + i for i in range(0, self.count, WARP)]
            stats.join([self._share(stats, parity, place) for place in places], lanes)
        stats.finish()

    def _share(self, stats: RowStats, parity: Any, place: Any) -> list[Any]:
        """Return what a warp has sent, of places beyond the last nothing."""
        if self.count & (self.count - 1) == 0:
            return [Scalar(self.slots[parity, place, i], "float32")() for i in range(stats.floats)]
        there = T.Bind(tirx.min(place, self.count - 1))
        return [
            Scalar(
                tirx.Select(place < self.count, self.slots[parity, there, i], T.float32(none)), "float32"
            )()
            for i, none in enumerate(stats.nothing())
        ]

    def _send(self, stats: RowStats, parity: Any) -> None:
        own = [each() for each in stats.of]
        if self.cluster == 1:
            with when(self.lane == 0):
                for i, value in enumerate(own):
                    T.buffer_store(self.slots, value, [parity, self.place, i])
            do(T.cuda.cta_sync())
            return
        await_all_here()  # memory of a block that has not begun is no place
        with when(tirx.all(self.warp == 0, self.lane == 0)):
            self.all_here.expect(0, self.count * _SLOT * 4)
        with when(self.lane < self.cluster):
            four = own + [T.float32(0)] * (_SLOT - len(own))
            to, barrier = self.slots.ptr_to([parity, self.place, 0]), self.all_here.at(0)
            do(c_call("void", "send_four", to, barrier, self.lane, *four, source=SEND_FOUR))
        do(T.cuda.mbarrier_wait_acquire_cluster(self.all_here.at(0), 0))
