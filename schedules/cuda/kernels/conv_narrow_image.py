"""What `conv_narrow` brings to shared memory: the weights, and what a tile sees of the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.words import c_call, do

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.conv_narrow import NarrowKernel

# A thread's share of what a tile sees, in two steps: to registers, and from there.
_FETCH = """
__forceinline__ __device__ void fetch_image_{steps}(unsigned* raw, const void* x, int first, int top, int left,
                                                    int h, int width, int rows, int columns, int thread,
                                                    int threads) {{
  const unsigned short* from = static_cast<const unsigned short*>(x);
#pragma unroll
  for (int step = 0; step < {steps}; ++step) {{
    const int i = step * threads + thread, row = i / columns, column = i - row * columns;
    const int y = top + row, z = left + column;
    const bool inside = row < rows && y >= 0 && y < h && z >= 0 && z < width;
    raw[step] = inside ? __ldg(from + static_cast<long long>(first + y) * width + z) : 0;
  }}
}}
"""
_PLACE = """
__forceinline__ __device__ void place_image_{copies}_{steps}(void* to, const unsigned* raw, int rows, int columns,
                                                             int pitch, int copy, int thread, int threads) {{
  unsigned short* at = static_cast<unsigned short*>(to);
#pragma unroll
  for (int step = 0; step < {steps}; ++step) {{
    const int i = step * threads + thread, row = i / columns, column = i - row * columns;
    if (row < rows) {{
      at[row * pitch + column] = static_cast<unsigned short>(raw[step]);
      if ({copies} > 1) at[copy + row * pitch + column + 1] = static_cast<unsigned short>(raw[step]);
    }}
  }}
}}
"""
_STAGE_WEIGHTS = """
__forceinline__ __device__ void stage_weights(void* to, const void* w, int first, int channels, int rows, int run,
                                              int padded, int depth, int count, int thread, int threads) {
  unsigned short* at = static_cast<unsigned short*>(to);
  const unsigned short* from = static_cast<const unsigned short*>(w);
  for (int i = thread; i < count * depth; i += threads) {
    const int n = i / depth, k = i - n * depth, r = k / padded, j = k - r * padded;
    const bool inside = first + n < channels && r < rows && j < run;
    at[n * (depth + 8) + k] = inside ? __ldg(from + ((first + n) * rows + r) * run + j) : 0;
  }
}
"""
# The same of NCHW images: neighbouring threads read neighbouring pixels of a channel.
_FETCH_PLANES = """
__forceinline__ __device__ void fetch_planes_{steps}(unsigned* raw, const void* x, int first, int channels, int top,
                                                     int left, int h, int width, int rows, int columns, int thread,
                                                     int threads) {{
  const unsigned short* from = static_cast<const unsigned short*>(x);
#pragma unroll
  for (int step = 0; step < {steps}; ++step) {{
    const int i = step * threads + thread, line = i / columns, row = line / channels, c = line - row * channels;
    const int y = top + row, z = left + i - line * columns;
    const bool inside = row < rows && y >= 0 && y < h && z >= 0 && z < width;
    raw[step] = inside ? __ldg(from + (static_cast<long long>(first + c) * h + y) * width + z) : 0;
  }}
}}
"""
_PLACE_PLANES = """
__forceinline__ __device__ void place_planes_{copies}_{steps}(void* to, const unsigned* raw, int rows, int columns,
                                                              int channels, int pitch, int copy, int thread,
                                                              int threads) {{
  unsigned short* at = static_cast<unsigned short*>(to);
#pragma unroll
  for (int step = 0; step < {steps}; ++step) {{
    const int i = step * threads + thread, line = i / columns, row = line / channels;
    const int place = row * pitch + (i - line * columns) * channels + line - row * channels;
    if (row < rows) {{
      at[place] = static_cast<unsigned short>(raw[step]);
      if ({copies} > 1) at[copy + place + 1] = static_cast<unsigned short>(raw[step]);
    }}
  }}
}}
"""
_STAGE_PLANES = """
__forceinline__ __device__ void stage_planes(void* to, const void* w, int first, int outputs, int rows, int columns,
                                             int channels, int padded, int depth, int count, int thread, int threads) {
  unsigned short* at = static_cast<unsigned short*>(to);
  const unsigned short* from = static_cast<const unsigned short*>(w);
  for (int i = thread; i < count * depth; i += threads) {
    const int n = i / depth, k = i - n * depth, r = k / padded, j = k - r * padded, s = j / channels;
    const bool inside = first + n < outputs && r < rows && s < columns;
    const int plane = (first + n) * channels + j - s * channels;
    at[n * (depth + 8) + k] = inside ? __ldg(from + (plane * rows + r) * columns + s) : 0;
  }
}
"""


class Image:
    """NHWC images: a row of a tile is a run of neighbours."""

    def __init__(self, kernel: NarrowKernel) -> None:
        self.kernel = kernel

    def stage_weights(self, column: Any) -> None:
        """Bring the weights of the output channels from `column` on."""
        kernel, s, t, layout = self.kernel, self.kernel.shape, self.kernel.tiles, self.kernel.layout
        do(
            c_call(
                "void", "stage_weights", kernel.weights.ptr_to([0]), kernel.arrays["w"].data, column, s.co, s.down.size,
                layout.run, layout.padded, layout.depth, t.bn, kernel.thread, t.warps * 32, source=_STAGE_WEIGHTS,
            )
        )  # fmt: skip

    def fetch(self, image: Any, y: Any, x: Any) -> None:
        """Begin to read what the tile at row `y` and column `x` sees."""
        kernel, s, t, layout = self.kernel, self.kernel.shape, self.kernel.tiles, self.kernel.layout
        do(
            c_call(
                "void", f"fetch_image_{layout.steps}", T.address_of(kernel.raw[0]), kernel.arrays["x"].data, image * s.h,
                y * s.down.stride - s.down.before, (x * s.across.stride - s.across.before) * s.ci, s.h,
                s.w * s.ci, layout.rows, layout.width, kernel.thread, t.warps * 32,
                source=_FETCH.format(steps=layout.steps),
            )
        )  # fmt: skip

    def stage(self) -> None:
        """Write it to shared memory."""
        kernel, t, layout = self.kernel, self.kernel.tiles, self.kernel.layout
        name, source = (
            f"place_image_{layout.copies}_{layout.steps}",
            {"copies": layout.copies, "steps": layout.steps},
        )
        do(
            c_call(
                "void", name, kernel.image.ptr_to([0]), T.address_of(kernel.raw[0]), layout.rows, layout.width,
                layout.pitch, layout.copy, kernel.thread, t.warps * 32, source=_PLACE.format(**source),
            )
        )  # fmt: skip


class PlanesImage(Image):
    """NCHW images: channels of a pixel become neighbours."""

    def stage_weights(self, column: Any) -> None:
        kernel, s, t, layout = self.kernel, self.kernel.shape, self.kernel.tiles, self.kernel.layout
        do(
            c_call(
                "void", "stage_planes", kernel.weights.ptr_to([0]), kernel.arrays["w"].data, column, s.co, s.down.size,
                s.across.size, s.ci, layout.padded, layout.depth, t.bn, kernel.thread, t.warps * 32,
                source=_STAGE_PLANES,
            )
        )  # fmt: skip

    def fetch(self, image: Any, y: Any, x: Any) -> None:
        kernel, s, t, layout = self.kernel, self.kernel.shape, self.kernel.tiles, self.kernel.layout
        do(
            c_call(
                "void", f"fetch_planes_{layout.steps}", T.address_of(kernel.raw[0]), kernel.arrays["x"].data,
                image * s.ci, s.ci, y * s.down.stride - s.down.before, x * s.across.stride - s.across.before,
                s.h, s.w, layout.rows, layout.width // s.ci, kernel.thread, t.warps * 32,
                source=_FETCH_PLANES.format(steps=layout.steps),
            )
        )  # fmt: skip

    def stage(self) -> None:
        kernel, s, t, layout = self.kernel, self.kernel.shape, self.kernel.tiles, self.kernel.layout
        source = _PLACE_PLANES.format(copies=layout.copies, steps=layout.steps)
        do(
            c_call(
                "void", f"place_planes_{layout.copies}_{layout.steps}", kernel.image.ptr_to([0]),
                T.address_of(kernel.raw[0]), layout.rows, layout.width // s.ci, s.ci, layout.pitch, layout.copy,
                kernel.thread, t.warps * 32, source=source,
            )
        )  # fmt: skip
