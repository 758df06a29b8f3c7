"""What zero points ask for in a wgmma product of 8-bit integers: sums of b's columns and of a's rows.

With zero points c = (a - z)(b - y) is ab, less z times the sums of b's columns, less y times the
sums of a's rows, and k z y. wgmma sees a and b in shared memory alone, so three warps of the
producer's warpgroup, which have nothing else to do, add up each stage there (dp4a), row by row as
they lie, and leave the sums of a tile to those that multiply. Where z is 0 and b has no zero points
they leave at once.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx.script.builder import ir as builder

from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.kernels.gemm_arrays import Int8Form
from tvmops.schedules.cuda.words import Barriers, Scalar, c_call, do, ptx, when

_SUMMERS = 96  # threads
_ADD_ROW = """
__forceinline__ __device__ int add_row_{dtype}(const void* row, int turn, int sum) {{
  const uint4* pieces = static_cast<const uint4*>(row);
  const {kind} ones = 0x01010101;
  {kind} total = sum;
#pragma unroll
  for (int i = 0; i < 8; ++i) {{
    const uint4 four = pieces[i ^ turn];
    total = __dp4a(static_cast<{kind}>(four.x), ones, total);
    total = __dp4a(static_cast<{kind}>(four.y), ones, total);
    total = __dp4a(static_cast<{kind}>(four.z), ones, total);
    total = __dp4a(static_cast<{kind}>(four.w), ones, total);
  }}
  return total;
}}
"""
_KINDS = {"int8": "int", "uint8": "unsigned"}


class ZeroPoints:
    """Sums of b's columns, and of a's rows where b has zero points, of one tile at a time."""

    def __init__(self, form: Int8Form, arrays: dict[str, Any], tiles: Tiles, pool: Any) -> None:
        self.form, self.arrays, self.tiles = form, arrays, tiles
        self.sizes = (tiles.bn, tiles.bm) if form.b_zero_points != "none" else (tiles.bn,)  # columns, rows
        self.of_columns = pool.alloc((tiles.bn,), "int32", align=16)
        self.of_rows = pool.alloc((tiles.bm,), "int32", align=16)
        self.made = Barriers(pool, 1, _SUMMERS)
        self.read = Barriers(pool, 1, 128 * tiles.consumers)

    @property
    def of_a(self) -> Any:
        return T.Cast("int32", self.arrays["a_zero_point"])

    @property
    def needed(self) -> Any:
        return tirx.const(True, "bool") if self.form.b_zero_points != "none" else self.of_a != 0

    def arrivals(self, others: int) -> Any:
        """Return how often a stage is released, `others` times of those by warps that multiply."""
        warps = T.uint32(_SUMMERS // 32 * self.tiles.cluster)
        return T.uint32(others) + tirx.Select(self.needed, warps, T.uint32(0))

    def init(self) -> None:
        """One thread does this, before all threads meet."""
        self.made.init()
        self.read.init()

    def begin(self, thread: Any) -> None:
        self.thread = thread
        self.turn = builder.alloc_local((1,), "int32")
        builder.buffer_store(self.turn, 0, [0])

    def clear(self) -> None:
        """Begin the sums of a tile."""
        counts = [-(-size // _SUMMERS) for size in self.sizes]
        self.sums = [builder.alloc_local((count,), "int32") for count in counts]
        for sums, count in zip(self.sums, counts):
            for i in range(count):
                builder.buffer_store(sums, 0, [i])

    def add(self, a_tiles: Any, b_tiles: Any, stage: Any) -> None:
        """Add up what lies in a stage."""
        factors = ((b_tiles, "int8"), (a_tiles, self.form.dtype))
        for size, sums, (tile, dtype) in zip(self.sizes, self.sums, factors):
            source = _ADD_ROW.format(dtype=dtype, kind=_KINDS[dtype])
            for i, row in self._own(size):
                for panel in range(self.tiles.bk // 64):
                    memory = tile.ptr_to([stage, panel, row, 0])
                    total = c_call("int32", f"add_row_{dtype}", memory, row % 8, sums[i], source=source)
                    builder.buffer_store(sums, total, [i])

    def leave(self, empty: Any, stage: Any, lane: Any) -> None:
        """Release a stage in all blocks of the cluster, which loaded parts of it."""
        if self.tiles.cluster == 1:
            do(T.cuda.warp_sync())
            with when(lane == 0):
                ptx("mbarrier.arrive.shared.b64", empty.ptr_to([stage]), T.uint32(1))
            return
        remote = Scalar(0, "uint32")
        do(T.cuda.warp_sync())
        with when(lane < self.tiles.cluster):
            near = T.cuda.cvta_generic_to_shared(empty.ptr_to([stage]))
            ptx("mapa.shared::cluster.u32", remote(), near, T.Cast("uint32", lane))
            ptx("mbarrier.arrive.shared::cluster.b64", remote())

    def _own(self, size: int) -> Any:
        """Go through the rows of this thread, of `size`, and their numbers."""
        for i in range(-(-size // _SUMMERS)):
            row = self.thread + i * _SUMMERS
            if (i + 1) * _SUMMERS <= size:
                yield i, row
                continue
            with when(row < size):
                yield i, row

    def publish(self) -> None:
        """Leave the sums to those that multiply, when they have read those of the tile before."""
        self.read.wait(0, self.turn[0] ^ 1)
        for size, sums, memory in zip(self.sizes, self.sums, (self.of_columns, self.of_rows)):
            for i, row in self._own(size):
                builder.buffer_store(memory, sums[i], [row])
        self.made.arrive(0)
        self._go_on()

    def receive(self) -> None:
        with when(self.needed):
            self.made.wait(0, self.turn[0])

    def release(self) -> None:
        """All of a thread's have been read."""
        with when(self.needed):
            self.read.arrive(0)
        self._go_on()

    def _go_on(self) -> None:
        builder.buffer_store(self.turn, self.turn[0] ^ 1, [0])
