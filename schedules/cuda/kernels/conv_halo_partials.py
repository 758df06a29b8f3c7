"""How the blocks of a cluster add up what each of them summed of a tile in `conv_halo_streamed`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.halo_tiles import ROWS
from tvmops.schedules.cuda.kernels.conv_consumer import CONSUMERS, STORE_TWO
from tvmops.schedules.cuda.kernels.conv_halo_results import pixel_of
from tvmops.schedules.cuda.kernels.conv_partials import RUN, ClusterSum, add_partials
from tvmops.schedules.cuda.words import Scalar, c_call, do, ptx, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.conv_halo_streamed import StreamedKernel


def leave_sums(kernel: StreamedKernel, sums: Any, first_patch: Any) -> None:
    """Leave a warpgroup's sums where the others of the cluster find them."""
    t, layout = kernel.tiles, kernel.layout
    # Others may still read the rings, whose place these sums take.
    ptx("bar.sync", T.uint32(CONSUMERS), T.uint32(128 * t.consumers))
    for patch in range(layout.patches):
        row = (first_patch + patch) * ROWS + kernel.warp * 16 + T.truncdiv(kernel.lane, 4)
        for i in range(0, t.bn // 2, 2):
            place = kernel.partial.ptr_to([row + i // 2 % 2 * 8, i // 4 * 8 + kernel.lane % 4 * 2])
            low, high = (sums[patch * (t.bn // 2) + i + e] for e in range(2))
            do(c_call("void", "store_floats_at", place, low, high, source=STORE_TWO))


class HaloSum(ClusterSum):
    """The threads of a cluster's consumers: each adds up runs of 8 sums, always in the same order."""

    kernel: StreamedKernel  # type: ignore[assignment]

    def __init__(self, kernel: StreamedKernel) -> None:
        super().__init__(kernel)  # type: ignore[arg-type]

    def run(self) -> None:
        kernel, t, layout = self.kernel, self.kernel.tiles, self.kernel.layout
        corner, group, channel = kernel.tile(kernel.first_tile())
        runs, threads = t.bn // RUN, 128 * t.consumers
        thread = kernel.warpgroup * 128 + kernel.warp * 32 + kernel.lane
        at = Scalar(kernel.cluster_rank * threads + thread)
        with T.While(at() < ROWS * layout.all_patches * runs):
            row = Scalar(T.truncdiv(at(), runs))()
            column = Scalar(T.truncmod(at(), runs) * RUN)()
            self._finish_run(corner, group, channel, row, column)
            at.set(at() + t.split_k * threads)

    def _finish_run(self, corner: Any, group: Any, channel: Any, row: Any, column: Any) -> None:
        kernel, s, t = self.kernel, self.kernel.shape, self.kernel.tiles
        x, y, image = corner
        down, across = pixel_of(
            t, kernel.layout, Scalar(T.truncdiv(row, ROWS))(), Scalar(T.truncmod(row, ROWS))()
        )
        own = (y + down < s.oh, down < t.tile_h, x + across < s.ow, across < t.tile_w)
        with when(tirx.all(*own, channel + column < s.co_each)):
            add_partials(self.sums, kernel.partial.ptr_to([row, column]), t.split_k)
            first = Scalar(group * s.co_each + channel + column)()
            self._end(x + across, y + down, image, first)
