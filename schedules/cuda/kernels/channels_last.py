"""Copies of NCHW images and OIHW weights with channels last, each pixel's a multiple of 16 bytes.

A block turns 64 channels of 64 pixels at a time in shared memory: a thread brings two pixels of
two channels, and neighbours write what is neighbours then. Weights are small, and gathered: those
of 8 channels by one thread, and places of the kernel by neighbours, which the cache has by then;
four threads write 64 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.words import c_call, do, wait_for_kernels_before

_VECTOR = 8  # elements: 16 bytes
_WARPS = 8
_TILE_WORDS = 64 * 32
BESIDE = 5  # blocks of a multiprocessor

_TURN_IMAGES = """
__forceinline__ __device__ void turn_images(void* to, const void* from, unsigned* tile, int images, int channels,
                                            int pitch, int h, int w, int oh, int ow, int down, int across,
                                            int block, int blocks, int thread) {
  const int pixels = oh * ow, plane = h * w, rows = (pixels + 63) / 64, deep = (pitch + 63) / 64;
  const int lane = thread & 31, warp = thread >> 5;
  const int own = 16 * (warp & 3) + 2 * (lane & 7), pair = 16 * (warp >> 2) + (lane >> 3);
  const bool whole = down == 1 && across == 1 && plane % 2 == 0;
  for (int at = block; at < images * rows * deep; at += blocks) {
    const int rest = at / deep, image = rest / rows, channel = 64 * (at - rest * deep);
    const int first = 64 * (rest - image * rows), p = first + own;
    const int y = p / ow, z = p + 1 < pixels ? (p + 1) / ow : y;
    const int place = y * down * w + (p - y * ow) * across, next = z * down * w + (p + 1 - z * ow) * across;
    const unsigned short* planes = static_cast<const unsigned short*>(from) + static_cast<long long>(image) * channels * plane;
    unsigned found[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int c = channel + 2 * pair + 8 * (i / 2) + i % 2;
      const unsigned short* seen = planes + static_cast<long long>(c) * plane;
      found[i] = 0;
      if (c < channels && p < pixels) {
        if (whole) {
          found[i] = __ldg(reinterpret_cast<const unsigned*>(seen + place));
        } else {
          found[i] = __ldg(seen + place);
          if (p + 1 < pixels) found[i] |= static_cast<unsigned>(__ldg(seen + next)) << 16;
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const int word = pair + 2 * i, piece = (word / 4 ^ (lane & 7)) * 4 + word % 4;
      tile[32 * own + piece] = __byte_perm(found[i], found[i + 1], 0x5410);
      tile[32 * own + 32 + piece] = __byte_perm(found[i], found[i + 1], 0x7632);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 64; i += 32) {
      const int pixel = i + 4 * warp + (lane >> 3), c = channel + 8 * (lane & 7);
      if (first + pixel < pixels && c < pitch) {
        const unsigned* row = tile + 32 * pixel + 4 * ((lane & 7) ^ (pixel / 2 & 7));
        const long long index = (static_cast<long long>(image) * pixels + first + pixel) * pitch + c;
        *reinterpret_cast<uint4*>(static_cast<unsigned short*>(to) + index) = *reinterpret_cast<const uint4*>(row);
      }
    }
  }
}
"""
_TURN_WEIGHTS = """
__forceinline__ __device__ void turn_weights(void* to, const void* from, int rows, int channels, int pitch, int taps,
                                             int thread, int threads) {
  const int pieces = pitch / 8, fours = (pieces + 3) / 4;
  for (int at = thread; at < rows * fours * taps * 4; at += threads) {
    const int tap = at / 4 % taps, rest = at / 4 / taps, row = rest / fours, piece = 4 * (rest - row * fours) + at % 4;
    const int c = 8 * piece;
    if (piece >= pieces) continue;
    const unsigned short* seen = static_cast<const unsigned short*>(from) + (static_cast<long long>(row) * channels + c) * taps + tap;
    unsigned short e[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) e[i] = c + i < channels ? __ldg(seen + i * taps) : 0;
    uint4 v;
    v.x = e[0] | e[1] << 16, v.y = e[2] | e[3] << 16, v.z = e[4] | e[5] << 16, v.w = e[6] | e[7] << 16;
    const long long index = (static_cast<long long>(row) * taps + tap) * pitch + c;
    *reinterpret_cast<uint4*>(static_cast<unsigned short*>(to) + index) = v;
  }
}
"""


@dataclass(frozen=True)
class Place:
    """An array as the copy engine needs it: where it begins."""

    data: Any


@dataclass(frozen=True)
class Turned:
    """A copy in a workspace, with channels last: of images, or of weights, each output channel's one image."""

    images: Extent
    channels: Extent
    h: Extent
    w: Extent
    oh: Extent  # rows that are taken
    ow: Extent
    down: int = 1  # from one that is taken to the next
    across: int = 1
    offset: Any = 0  # bytes

    @property
    def pitch(self) -> Any:
        """Elements of a pixel: channels, and zeros."""
        return whole_vectors(self.channels)

    def place(self, workspace: Any) -> Place:
        return Place(T.address_of(workspace[self.offset]))

    @property
    def end(self) -> Any:
        """The byte behind it."""
        pixels = T.Cast("int64", self.images) * T.Cast("int64", self.oh * self.ow)
        return self.offset + pixels * T.Cast("int64", self.pitch * 2)


def whole_vectors(channels: Extent) -> Any:
    """Round up to whole vectors."""
    if isinstance(channels, int):
        return -(-channels // _VECTOR) * _VECTOR
    return T.truncdiv(channels + (_VECTOR - 1), _VECTOR) * _VECTOR


def turn(workspace: Any, image: tuple[Any, Turned], weights: tuple[Any, Turned] | None, blocks: int) -> None:
    """Emit a kernel of `blocks` blocks that copies arrays, each with its `Turned`."""
    with T.attr(0, "tirx.device_entry", True), T.attr({"tirx.launch_bounds_min_blocks_per_sm": BESIDE}):
        block = T.cta_id([blocks])
        warp, lane = T.warp_id([_WARPS]), T.lane_id([32])
        thread = T.Bind(warp * 32 + lane)
        pool = SMEMPool()
        tile = pool.alloc((_TILE_WORDS,), "uint32", align=16)
        pool.commit()
        wait_for_kernels_before()
        if weights is not None:
            array, copy = weights
            do(
                c_call(
                    "void", "turn_weights", copy.place(workspace).data, array.data, copy.images,
                    copy.channels, copy.pitch, copy.h * copy.w, block * (_WARPS * 32) + thread,
                    blocks * _WARPS * 32, source=_TURN_WEIGHTS,
                )
            )  # fmt: skip
        array, copy = image
        do(
            c_call(
                "void", "turn_images", copy.place(workspace).data, array.data, tile.ptr_to([0]),
                copy.images, copy.channels, copy.pitch, copy.h, copy.w, copy.oh, copy.ow, copy.down, copy.across,
                block, blocks, thread, source=_TURN_IMAGES,
            )
        )  # fmt: skip
