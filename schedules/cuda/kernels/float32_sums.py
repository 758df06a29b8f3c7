"""The end of a product of floats: groups of warps, and blocks of a cluster, add up what they have.

Sums that meet go by fours, which lie in neighbouring registers. Each is where its neighbour would be: a
register of the other bank than that of the factor of its column, lest both are read from one bank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.column_sums import add_four
from tvmops.schedules.cuda.kernels.gemm_simt import FOUR
from tvmops.schedules.cuda.words import c_call, do, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.gemm_float32 import Float32Tiles

_ADD_FOUR = """
__forceinline__ __device__ void add_crossed_four(float* sums, const void* from) {
  const float4 four = *static_cast<const float4*>(from);
  sums[1] += four.x;
  sums[0] += four.y;
  sums[3] += four.z;
  sums[2] += four.w;
}
"""
_LEAVE_FOUR = """
__forceinline__ __device__ void leave_crossed_four(void* to, const float* sums) {
  *static_cast<float4*>(to) = make_float4(sums[1], sums[0], sums[3], sums[2]);
}
"""


class MeetingSums:
    """The place of fours of sums in shared memory: that of the factors, when they have been read."""

    def __init__(self, tiles: Float32Tiles, pool: Any) -> None:
        self.tiles = tiles
        pool.move_base_to(0)
        self.memory = pool.alloc((tiles.fours, tiles.threads_of_slice, FOUR), "float32", align=16)

    def meet(self, sums: Any, part: Any, rank: Any, thread: Any, store: Callable[[int], None]) -> None:
        """Add up the `sums` of all parts of k; `store` is called where those of a four are whole."""
        t = self.tiles
        thread = T.Bind(T.truncmod(thread, t.threads_of_slice))
        self.sums, self.own = sums, [self.memory.ptr_to([i, thread, 0]) for i in range(t.fours)]
        self._add_slices(part)
        if t.splits == 1:
            with when(part == 0):
                for i in range(t.fours):
                    store(i)
            return
        do(T.cuda.cta_sync())
        with when(part == 0):
            self._leave()
        do(T.cuda.cluster_sync())
        with when(part == 0):
            for each in range(t.splits):
                with when(rank == each):
                    for i in range(each, t.fours, t.splits):
                        self._add_blocks(i)
                        store(i)
        do(T.cuda.cluster_sync())  # no block leaves while its memory is read

    def _add_slices(self, part: Any) -> None:
        for each in range(1, self.tiles.slices):
            do(T.cuda.cta_sync())  # others may still read what this takes the place of
            with when(part == each):
                self._leave()
            do(T.cuda.cta_sync())
            with when(part == 0):
                for i, memory in enumerate(self.own):
                    do(c_call("void", "add_crossed_four", self._four(i), memory, source=_ADD_FOUR))

    def _leave(self) -> None:
        for i, memory in enumerate(self.own):
            do(c_call("void", "leave_crossed_four", memory, self._four(i), source=_LEAVE_FOUR))

    def _add_blocks(self, four: int) -> None:
        """Add up four sums of all blocks of the cluster."""
        address = T.Bind(T.cuda.cvta_generic_to_shared(self.own[four]))
        sums = add_four([(address, rank) for rank in range(self.tiles.splits)])
        for i, value in enumerate(sums):
            T.buffer_store(self.sums, value, [four * FOUR + (i ^ 1)])

    def _four(self, number: int) -> Any:
        return T.address_of(self.sums[number * FOUR])
