"""How the blocks of a cluster add up what each of them summed of a tile in `conv_wgmma`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.conv_tiles import ROWS
from tvmops.schedules.cuda.kernels.conv_producer import Tile
from tvmops.schedules.cuda.pairs import element_at
from tvmops.schedules.cuda.row_memory import load_vector, store_vector, unpack
from tvmops.schedules.cuda.words import Scalar, c_call, do, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.conv_wgmma import WgmmaConvKernel

RUN = 8  # elements that one thread adds up: 16 bytes of the result

# All are read before the first is added, lest each waits for the one before it.
_ADD_PARTIALS = """
__forceinline__ __device__ void add_partials_{count}(float* sums, const void* mine) {{
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(mine));
  float found[8 * {count}];
#pragma unroll
  for (int rank = 0; rank < {count}; ++rank) {{
    unsigned remote;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
#pragma unroll
    for (int i = 8 * rank; i < 8 * rank + 8; i += 4)
      asm volatile("ld.shared::cluster.v4.f32 {{%0, %1, %2, %3}}, [%4];"
                   : "=f"(found[i]), "=f"(found[i + 1]), "=f"(found[i + 2]), "=f"(found[i + 3])
                   : "r"(remote + 4 * (i % 8)) : "memory");
  }}
#pragma unroll
  for (int i = 0; i < 8; ++i) {{
    sums[i] = found[i];
#pragma unroll
    for (int rank = 1; rank < {count}; ++rank) sums[i] += found[8 * rank + i];
  }}
}}
"""


def add_partials(sums: Any, mine: Any, count: int) -> None:
    """Add up 8 sums, each of which `count` blocks hold a part of at the same place."""
    source = _ADD_PARTIALS.format(count=count)
    do(c_call("void", f"add_partials_{count}", T.address_of(sums[0]), mine, source=source))


class ClusterSum:
    """The threads of a cluster's consumers: each adds up runs of 8 sums, always in the same order."""

    def __init__(self, kernel: WgmmaConvKernel) -> None:
        self.kernel = kernel
        self.sums, self.more = T.alloc_local((RUN,), "float32"), T.alloc_local((RUN,), "float32")
        self.words = T.alloc_local((4,), "uint32")

    def run(self) -> None:
        kernel, t = self.kernel, self.kernel.tiles
        tile = kernel.locate(kernel.first_tile())
        runs, threads = t.bn // RUN, 128 * t.consumers
        thread = kernel.warpgroup * 128 + kernel.warp * 32 + kernel.lane
        at = Scalar(kernel.cluster_rank * threads + thread)
        with T.While(at() < ROWS * t.all_patches * runs):
            row, run = self._place_of(at(), runs)
            self._finish(tile, row, run * RUN)
            at.set(at() + t.split_k * threads)

    def _finish(self, tile: Tile, row: Any, column: Any) -> None:
        kernel, s, t = self.kernel, self.kernel.shape, self.kernel.tiles
        corner = kernel.corner(tile.patch + T.truncdiv(row, ROWS))
        inside = Scalar(T.truncmod(row, ROWS))()
        x, y, image = kernel.moved(corner, inside)
        within = (tile.channel + column < s.co_each) & (x < s.ow) & (y < s.oh) & (image < s.n)
        with when(tirx.all(inside < t.pixels, within)):
            add_partials(self.sums, kernel.partial.ptr_to([row, column]), t.split_k)
            channel = Scalar(tile.group * s.co_each + tile.channel + column)()
            self._end(x, y, image, channel)

    def _place_of(self, number: Any, runs: int) -> tuple[Any, Any]:
        """Return the row of the `number`-th run of the tile, and the run's number in that row."""
        return Scalar(T.truncdiv(number, runs))(), Scalar(T.truncmod(number, runs))()

    def _end(self, x: Any, y: Any, image: Any, channel: Any) -> None:
        """Finish the sums of a pixel, from `channel` on."""
        kernel, s = self.kernel, self.kernel.shape
        place = Scalar(((image * s.oh + y) * s.ow + x) * s.co + channel)()
        self._add_bias(channel)
        if kernel.residual is not None:
            self._add(element_at(kernel.residual, place))
        for i in range(RUN):
            T.buffer_store(self.sums, activate(kernel.epilogue.activation, self.sums[i]), [i])
        store_vector(element_at(kernel.y, place), self.sums, 0, kernel.dtype, RUN)

    def _add_bias(self, channel: Any) -> None:
        if self.kernel.bias is not None:
            self._add(element_at(self.kernel.bias, channel))

    def _add(self, pointer: Any) -> None:
        """Add 8 elements."""
        load_vector(self.words, 0, pointer, self.kernel.dtype, RUN, "__ldg")
        unpack(self.more, 0, self.words, 0, self.kernel.dtype, RUN)
        for i in range(RUN):
            T.buffer_store(self.sums, self.sums[i] + self.more[i], [i])
