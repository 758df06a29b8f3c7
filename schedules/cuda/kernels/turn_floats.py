"""Copies of matrices of floats whose rows lie across k, with rows along it: wgmma takes no others from memory.

A warp turns 32 x 32 floats at a time in shared memory: it reads and writes whole lines of 128 bytes.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as script
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.kernels.pad_rows import Padded
from tvmops.schedules.cuda.words import c_call, do, wait_for_kernels_before

_WARPS = 8
_PITCH = 33  # floats of a row in shared memory: a warp meets each bank once, along rows and across them
_TURN = """
__forceinline__ __device__ void turn_floats(void* to, const void* from, int items, int n, int k, int warp, int warps,
                                            int lane, float* tile) {
  const int across = (n + 31) / 32, along = (k + 31) / 32;
  for (int at = warp; at < items * along * across; at += warps) {
    const int item = at / (along * across), rest = at % (along * across);
    const int first = rest / across * 32, left = rest % across * 32;
    const float* read = static_cast<const float*>(from) + (static_cast<long long>(item) * k + first) * n + left + lane;
    float* write = static_cast<float*>(to) + (static_cast<long long>(item) * n + left) * along * 32 + first + lane;
    float x[32];
#pragma unroll
    for (int i = 0; i < 32; ++i)
      x[i] = left + lane < n && first + i < k ? __ldg(read + static_cast<long long>(i) * n) : 0.0f;
#pragma unroll
    for (int i = 0; i < 32; ++i) tile[i * 33 + lane] = x[i];
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 32; ++i)
      if (left + i < n) write[static_cast<long long>(i) * along * 32] = tile[lane * 33 + i];
    __syncwarp();
  }
}
"""


def turn_floats(
    workspace: Any, array: Any, copy: Padded, sizes: tuple[Extent, Extent, Extent], blocks: int, chained: bool
) -> None:
    """Emit a kernel of `blocks` blocks that turns matrices of (k, n); `sizes` are their number, n and k."""
    with T.attr(0, "tirx.device_entry", True):
        block = T.cta_id([blocks])
        warp, lane = T.warp_id([_WARPS]), T.lane_id([32])
        pool = script.SMEMPool()
        tiles = pool.alloc((_WARPS, 32 * _PITCH), "float32", align=16)
        pool.commit()
        if chained:
            wait_for_kernels_before()
        to = T.address_of(workspace[copy.offset])
        number, tile = block * _WARPS + warp, tiles.ptr_to([warp, 0])
        do(
            c_call(
                "void",
                "turn_floats",
                to,
                array.data,
                *sizes,
                number,
                blocks * _WARPS,
                lane,
                tile,
                source=_TURN,
            )
        )
