"""How results of `conv_planes` leave: 64 channels of a patch at a time, pixels along the rows of a buffer.

A warp stores 16 channels; each lane two neighbouring pixels of the patch, in one word where they are
neighbours in memory, too. A residual comes the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.conv_tiles import ROWS
from tvmops.schedules.cuda.kernels.conv_partials import RUN, ClusterSum
from tvmops.schedules.cuda.kernels.conv_producer import Tile
from tvmops.schedules.cuda.kernels.conv_results import Results
from tvmops.schedules.cuda.pairs import float_at, store_element
from tvmops.schedules.cuda.words import Scalar, c_call, do, pack, ptx

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.conv_planes import PlanesConvKernel

_OUTSIDE = -1

_STORE_PLANES = """
__forceinline__ __device__ void store_planes(void* y, const void* buffer, int channel, int left, int plane, int first,
                                             int second, int warp, int lane) {
  asm volatile("" : "+r"(plane), "+r"(first), "+r"(second));  // what is computed of them is not kept between calls
  const char* from = static_cast<const char*>(buffer) + 2048 * warp + 4 * (lane & 3);
  unsigned short* to = static_cast<unsigned short*>(y) + static_cast<long long>(channel + 16 * warp) * plane;
#pragma unroll 1
  for (int begin = 0; begin < 16; begin += 8) {
    unsigned words[8];
#pragma unroll
    for (int i = 0; i < 8; ++i)
      words[i] = *reinterpret_cast<const unsigned*>(from + 128 * (begin + i) + ((lane >> 2 ^ i) << 4));
#pragma unroll
    for (int i = 0; i < 8; ++i, to += plane) {
      if (16 * warp + begin + i >= left) continue;
      if (first >= 0 && second == first + 1 && (reinterpret_cast<unsigned long long>(to + first) & 2) == 0) {
        *reinterpret_cast<unsigned*>(to + first) = words[i];
      } else {
        if (first >= 0) to[first] = static_cast<unsigned short>(words[i]);
        if (second >= 0) to[second] = static_cast<unsigned short>(words[i] >> 16);
      }
    }
  }
}
"""
_COPY_WORD = """
__forceinline__ __device__ void copy_word(unsigned to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(to), "l"(from) : "memory");
}
"""
_FETCH_PLANES = (
    _COPY_WORD
    + """
__forceinline__ __device__ void fetch_planes(void* buffer, unsigned address, const void* residual, int channel,
                                             int left, int plane, int first, int second, int warp, int lane) {
  asm volatile("" : "+r"(plane), "+r"(first), "+r"(second));
  const unsigned short* from = static_cast<const unsigned short*>(residual) + static_cast<long long>(channel + 16 * warp) * plane;
  const int begin = 2048 * warp + 4 * (lane & 3);
#pragma unroll 4
  for (int i = 0; i < 16; ++i, from += plane) {
    const int place = begin + 128 * i + ((lane >> 2 ^ (i & 7)) << 4);
    if (16 * warp + i >= left) continue;
    if (first >= 0 && second == first + 1 && (reinterpret_cast<unsigned long long>(from + first) & 2) == 0) {
      copy_word(address + place, from + first);
    } else {
      const unsigned low = first >= 0 ? __ldg(from + first) : 0, high = second >= 0 ? __ldg(from + second) : 0;
      *reinterpret_cast<unsigned*>(static_cast<char*>(buffer) + place) = low | high << 16;
    }
  }
}
"""
)


class PlaneResults(Results):
    """The results of one warpgroup: wgmma's rows are pixels, those of the buffers channels."""

    kernel: PlanesConvKernel
    matrices = "sync.aligned.m8n8.x4.trans.shared.b16"

    def fetch_residual(self, tile: Tile, corners: list[tuple[Any, Any, Any]]) -> None:
        kernel, t = self.kernel, self.kernel.tiles
        assert kernel.residual is not None
        for number in range(t.store_buffers):
            part, patch = divmod(number, t.patches)
            buffer = kernel.results.ptr_to([kernel.warpgroup, number, 0, 0])
            do(
                c_call(
                    "void", "fetch_planes", buffer, T.cuda.cvta_generic_to_shared(buffer), kernel.residual.data,
                    *self._run(tile, part, corners[patch]), source=_FETCH_PLANES,
                )
            )  # fmt: skip
        ptx("cp.async.commit_group")

    def finish(self) -> None:
        """Nothing is under way."""

    def store(self, tile: Tile, corners: list[tuple[Any, Any, Any]]) -> None:
        kernel, t = self.kernel, self.kernel.tiles
        assert kernel.y is not None
        count = t.patches * (t.bn // 64)
        if kernel.waits_for_residual:
            ptx("cp.async.wait_group", 0)
            self._meet()
        for part in range(t.bn // 64):
            self._load_bias(tile, part)
            for patch, corner in enumerate(corners):
                number = part * t.patches + patch
                buffer = number % t.store_buffers
                # Another warp may still store from the buffer, if none has been filled since.
                again = t.store_buffers == 1 or (number == 0 and count % t.store_buffers != 0)
                if again and not kernel.waits_for_residual:
                    self._meet()
                self._place(part, patch, buffer)
                self._meet()
                source = kernel.results.ptr_to([kernel.warpgroup, buffer, 0, 0])
                run = self._run(tile, part, corner)
                do(c_call("void", "store_planes", kernel.y.data, source, *run, source=_STORE_PLANES))

    def _meet(self) -> None:
        do(T.cuda.warpgroup_sync(self.kernel.warpgroup + 1))

    def _row_of(self, p: int) -> tuple[Any, Any]:
        lane = self.kernel.lane
        row = p * 16 + T.truncdiv(lane, 16) * 8 + lane % 8
        return row, self.kernel.warp * 2 + T.truncdiv(lane, 8) % 2

    def _run(self, tile: Tile, part: int, corner: tuple[Any, Any, Any]) -> tuple[Any, ...]:
        """Return the first channel, how many are left, and this lane's two pixels of a plane."""
        kernel, s = self.kernel, self.kernel.given
        inside = tile.channel + part * 64
        channel = tile.group * s.co_each + inside if kernel.grouped else inside
        pixels = [self._place_of(corner, kernel.lane * 2 + i) for i in range(2)]
        return (channel, s.co_each - inside, s.oh * s.ow, *pixels, kernel.warp, kernel.lane)

    def _place_of(self, corner: tuple[Any, Any, Any], pixel: Any) -> Any:
        """Return the place of a pixel of a patch among those of y's first channel."""
        kernel, s, t = self.kernel, self.kernel.shape, self.kernel.tiles
        x, y, image = kernel.moved(corner, pixel)
        within = tirx.all(pixel < t.pixels, x < s.ow, y < s.oh, image < s.n)
        return Scalar(tirx.Select(within, kernel.index_of(x, y, image), _OUTSIDE))()


class PlaneClusterSum(ClusterSum):
    """Neighbouring threads add up neighbouring pixels, each 8 channels."""

    kernel: PlanesConvKernel

    def _place_of(self, number: Any, runs: int) -> tuple[Any, Any]:
        rows = ROWS * self.kernel.tiles.all_patches
        return Scalar(T.truncmod(number, rows))(), Scalar(T.truncdiv(number, rows))()

    def _end(self, x: Any, y: Any, image: Any, channel: Any) -> None:
        kernel, s = self.kernel, self.kernel.given
        plane = Scalar(s.oh * s.ow)()
        first = Scalar(kernel.index_of(x, y, image) + channel * plane)()
        self._add_bias(channel)
        for i in range(RUN):
            value = self.sums[i]
            if kernel.residual is not None:
                value = value + float_at(kernel.dtype, kernel.residual, first + i * plane)
            value = activate(kernel.epilogue.activation, value)
            store_element(kernel.y, first + i * plane, pack(kernel.dtype, value, value))
