"""Sums of a tile whose k the blocks of a cluster share: each block finishes a stretch of them.

The others send it theirs, register by register, to its shared memory: neighbours in a warp stay neighbours
there, and whoever sends has nothing to read. They take the place of the ring, when all have read theirs.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.gemm_tiles import STRETCH_COLUMNS, Tiles
from tvmops.schedules.cuda.kernels.attention_meeting import SEND_FOUR
from tvmops.schedules.cuda.kernels.gemm_results import Consumer
from tvmops.schedules.cuda.kernels.gemm_turned_results import TurnedResults
from tvmops.schedules.cuda.words import Barriers, c_call, do, tie, when

_SUMS = STRETCH_COLUMNS // 2  # of a thread, of as many columns of 64 rows
_ADD_FOUR = """
__forceinline__ __device__ void add_four(float* sums, const void* from) {
  const float4 x = *static_cast<const float4*>(from);
  sums[0] += x.x, sums[1] += x.y, sums[2] += x.z, sums[3] += x.w;
}
"""


class Stretches:
    """The sums of one thread: those that it finishes, and those that it sends."""

    def __init__(self, tiles: Tiles, at: Consumer, memory: Any, here: Barriers, rank: Any) -> None:
        self.tiles, self.at, self.memory, self.here, self.rank = tiles, at, memory, here, rank
        units, parts = tiles.units, tiles.split_k
        self.stretches = [range(part * units // parts, (part + 1) * units // parts) for part in range(parts)]

    def send(self) -> None:
        """Send the other blocks what they finish."""
        tie(self.at.acc, self.tiles.sums)
        for part, stretch in enumerate(self.stretches):
            with when((self.rank == part) & (self._thread == 0)):
                self.here.expect(self.at.group, (self.tiles.split_k - 1) * len(stretch) * _SUMS * 128 * 4)
        for part, stretch in enumerate(self.stretches):
            with when(self.rank != part):
                place = T.if_then_else(self.rank > part, self.rank - 1, self.rank)
                for four, first in enumerate(_fours(stretch)):
                    values = (self.at.acc[first + i] for i in range(4))
                    to = self._place(place, four), self.here.at(self.at.group)
                    do(c_call("void", "send_four", *to, part, *values, source=SEND_FOUR))

    def add(self) -> None:
        """Add what the others have sent, in their order."""
        do(T.cuda.mbarrier_wait_acquire_cluster(self.here.at(self.at.group), 0))
        for part, stretch in enumerate(self.stretches):
            with when(self.rank == part):
                for place in range(self.tiles.split_k - 1):
                    for four, first in enumerate(_fours(stretch)):
                        to = T.address_of(self.at.acc[first])
                        do(c_call("void", "add_four", to, self._place(place, four), source=_ADD_FOUR))

    def store(self, results: TurnedResults, tile: Any, view: Any) -> None:
        """Store what this block finishes."""
        for part, stretch in enumerate(self.stretches):
            with when(self.rank == part):
                results.store_stretch(tile, view, stretch)

    def _place(self, place: Any, four: int) -> Any:
        return self.memory.ptr_to([place, self.at.group, four, self._thread * 4])

    @property
    def _thread(self) -> Any:
        return self.at.warp * 32 + self.at.lane


def _fours(stretch: range) -> range:
    """Return the first of each four sums of a stretch."""
    return range(stretch.start * _SUMS, stretch.stop * _SUMS, 4)
