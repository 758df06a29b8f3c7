"""Sums of the blocks of a head that meet in a workspace, in a second kernel.

Blocks of no cluster find a place on any multiprocessor, so that few heads keep all of them
busy. The second kernel is launched while the first one ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.attention_meeting import joined, write
from tvmops.schedules.cuda.words import c_call, do, let_next_kernel_begin, ptx, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.attention_split import SplitKernel

_PUT = """
__forceinline__ __device__ void put_float(void* workspace, int at, float value) {
  static_cast<float*>(workspace)[at] = value;
}
"""
# Past the L1, where an earlier kernel's sums may lie still.
_GET = """
__forceinline__ __device__ float get_float(const void* workspace, int at) {
  return __ldcg(static_cast<const float*>(workspace) + at);
}
"""


class SumsApart:
    """For each head and block: a sum of values, and behind it its maximum and the sum of its weights."""

    def __init__(self, kernel: SplitKernel) -> None:
        self._splits, self._group = kernel.split.splits, kernel.group
        self._dim = kernel.sizes.head_dim
        nbytes = tirx.Var("workspace_bytes", "int64")
        self._memory = T.arg("workspace", T.buffer((nbytes,), "uint8", align=16, buffer_name="workspace"))

    def put(self, pair: Any, rank: Any, head: Any, column: Any, most: Any, total: Any, value: Any) -> None:
        begin = T.Bind(self._begin(pair * self._group + head, rank))
        self._put(begin + column, value)
        with when(column == 0):
            self._put(begin + self._dim, most)
            self._put(begin + self._dim + 1, total)

    def join(self, kernel: SplitKernel) -> None:
        """Emit the kernel that adds up: a block a head, a thread a column."""
        sizes, dim = kernel.sizes, self._dim
        T.device_entry()
        row = T.cta_id([sizes.batch * sizes.heads])
        warp, lane = T.warp_id([-(-dim // 32)]), T.lane_id([32])
        column = T.Bind(warp * 32 + lane)
        if kernel.split.chained:
            let_next_kernel_begin()
            ptx("griddepcontrol.wait")
        with when(column < dim):
            begins = [self._begin(row, rank) for rank in range(self._splits)]
            _, total, value = joined(
                [self._get(begin + dim) for begin in begins],
                [self._get(begin + dim + 1) for begin in begins],
                [self._get(begin + column) for begin in begins],
            )
            write(
                kernel.out,
                [T.truncdiv(row, sizes.heads), T.truncmod(row, sizes.heads), 0, column],
                total,
                value,
            )

    def _begin(self, row: Any, rank: Any) -> Any:
        return (row * self._splits + rank) * (self._dim + 2)

    def _put(self, at: Any, value: Any) -> None:
        do(c_call("void", "put_float", self._memory.data, at, value, source=_PUT))

    def _get(self, at: Any) -> Any:
        return c_call("float32", "get_float", self._memory.data, at, source=_GET)


def workspace_bytes(heads: Any, splits: int, head_dim: int) -> Any:
    """Return what the sums of `heads` heads, counted over the batch, take."""
    return T.Cast("int64", heads) * (splits * (head_dim + 2) * 4)
