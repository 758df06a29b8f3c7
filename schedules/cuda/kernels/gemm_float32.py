"""The kernel of `Float32Gemm`: products of float32 on CUDA cores, for GPUs from compute capability 8.0 on.

It is that of `kernels.gemm_simt`, but tiles come to a ring of stages in shared memory by cp.async,
16 bytes at a time where rows allow it: no register holds what is on its way, and several tiles are.
What lies along k in an array does so in shared memory too, where a thread reads four k at a time
of rows that are as far apart as there are threads beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.kernels.gemm_simt import FOUR, Factor, SimtKernel, SimtTiles, read_four
from tvmops.schedules.cuda.kernels.product import Product
from tvmops.schedules.cuda.words import Scalar, c_call, do, ptx, when

_COPY = """
__forceinline__ __device__ void copy_floats_{vector}(unsigned to, const void* from, int row, int pitch,
                                                     int column, int valid) {{
  const float* at = static_cast<const float*>(from);
  if (valid > 0) at += static_cast<long long>(row) * pitch + column;
  asm volatile("cp.async.{cache}.shared.global [%0], [%1], {nbytes}, %2;" ::
               "r"(to), "l"(at), "r"(4 * min(max(valid, 0), {vector})) : "memory");
}}
"""


@dataclass(frozen=True)
class Float32Tiles(SimtTiles):
    stages: int
    a_vector: int  # elements of a copy
    b_vector: int
    beside: int  # blocks that share a multiprocessor

    @property
    def shared_bytes(self) -> int:
        """The most that tiles take, whichever way the arrays lie."""
        a, b = (max(self.bk * (size + FOUR), size * (self.bk + FOUR)) for size in (self.bm, self.bn))
        return 4 * self.stages * (a + b)

    @property
    def registers(self) -> int:
        """Registers of a thread for sums, and for factors of this step and of the next."""
        return self.tm * self.tn + 2 * (self.tm + self.tn)


class _Streamed(Factor):
    """A factor whose tiles come by cp.async."""

    def __init__(
        self, array: Any, extent: Extent, k: Extent, k_inner: bool, block: int, own: int, vector: int
    ) -> None:
        super().__init__(array, "float32", extent, k, k_inner, block, own)
        self.vector = vector
        self.depth = FOUR if k_inner else 1  # k that are read at once

    def begin(self, pool: Any, thread: Any, tiles: Float32Tiles) -> None:  # type: ignore[override]
        outer, inner = (self.block, tiles.bk) if self.k_inner else (tiles.bk, self.block)
        self.tile = pool.alloc((tiles.stages, outer, inner + FOUR), "float32", align=16)
        self.thread, self.threads, self.bk = thread, tiles.threads, tiles.bk
        self.values = T.alloc_local((self.own * self.depth,), "float32")

    def place_of(self, thread: Any, index: int) -> Any:
        return thread + index * (self.block // self.own) if self.k_inner else super().place_of(thread, index)

    def read(self, half: Any, k: int, thread: Any) -> None:
        if not self.k_inner:
            super().read(half, k, thread)
        elif k % FOUR == 0:
            for index in range(self.own):
                memory = self.tile.ptr_to([half, self.place_of(thread, index), k])
                read_four(self.values, index * FOUR, memory)

    def value(self, k: int, index: int) -> Any:
        return self.values[index * self.depth + k % self.depth]

    def copy(self, stage: Any, origin: Any, k_origin: Any) -> None:
        """Begin to copy a tile; what lies beyond the array becomes 0."""
        name, nbytes = f"copy_floats_{self.vector}", 4 * self.vector
        source = _COPY.format(vector=self.vector, nbytes=nbytes, cache="cg" if self.vector == 4 else "ca")

        def piece(own: Any, k: Any) -> None:
            at, below = origin + own, k_origin + k
            place = [stage, own, k] if self.k_inner else [stage, k, own]
            to = T.cuda.cvta_generic_to_shared(self.tile.ptr_to(place))
            row, column = (at, below) if self.k_inner else (below, at)
            rows, columns = (self.extent, self.k) if self.k_inner else (self.k, self.extent)
            valid = tirx.Select(row < rows, columns - column, 0)
            do(c_call("void", name, to, self.slice, row, self.row_length, column, valid, source=source))

        self._each_piece(piece)

    def _each_piece(self, do_piece: Any) -> None:
        """Do something for each piece of this thread: its place among the block's own, its k."""
        inner = (self.bk if self.k_inner else self.block) // self.vector
        count = self.block * self.bk // self.vector
        for first in range(0, count, self.threads):
            at = first + self.thread
            outer, rest = T.truncdiv(at, inner), T.truncmod(at, inner) * self.vector
            place = (outer, rest) if self.k_inner else (rest, outer)
            if first + self.threads <= count:
                do_piece(*place)
                continue
            with when(at < count):
                do_piece(*place)


class Float32Kernel(SimtKernel):
    """`main(a, b, [bias], [residual], c)`."""

    tiles: Float32Tiles
    a: _Streamed
    b: _Streamed

    def __init__(self, product: Product, tiles: Float32Tiles) -> None:
        super().__init__(product, tiles, "float32", "float32")
        self.align, self.beside = 16 if max(tiles.a_vector, tiles.b_vector) == 4 else 4, tiles.beside

    def factors(self, a: Any, b: Any) -> tuple[_Streamed, _Streamed]:
        p, t = self.product, self.tiles
        return (
            _Streamed(a, p.m, p.k, not p.trans_a, t.bm, t.tm, t.a_vector),
            _Streamed(b, p.n, p.k, p.trans_b, t.bn, t.tn, t.b_vector),
        )

    def _multiply_all(self) -> None:
        t = self.tiles
        steps = T.truncdiv(Scalar(self.product.k)() + (t.bk - 1), t.bk)
        factors = ((self.a, self.row), (self.b, self.column))
        for stage in range(t.stages - 1):
            with when(stage < steps):
                for each, origin in factors:
                    each.copy(stage, origin, stage * t.bk)
            ptx("cp.async.commit_group")
        use, fill = Scalar(0), Scalar(t.stages - 1)
        with T.serial(steps) as step:
            ptx("cp.async.wait_group", t.stages - 2)
            do(T.cuda.cta_sync())
            ahead = step + (t.stages - 1)
            with when(ahead < steps):
                for each, origin in factors:
                    each.copy(fill(), origin, ahead * t.bk)
            ptx("cp.async.commit_group")
            for k in range(t.bk):
                self.a.read(use(), k, self.ty)
                self.b.read(use(), k, self.tx)
                self._multiply(k)
            for at in (use, fill):
                at.set(tirx.Select(at() == t.stages - 1, 0, at() + 1))
        ptx("cp.async.wait_group", 0)
