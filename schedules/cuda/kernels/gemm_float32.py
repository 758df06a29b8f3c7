"""The kernel of `Float32Gemm`: products of float32 on CUDA cores, for GPUs from compute capability 8.0 on.

Tiles come to a ring of stages in shared memory by cp.async, which takes no registers: 16 bytes at a
time where rows lie across k, else float by float to their places, for in shared memory both factors
lie across k. Threads multiply as those of `kernels.gemm_simt` do, warp by warp: the lanes of a warp
are a grid (A. Kerr et al., CUTLASS: Fast Linear Algebra in CUDA C++, 2017), such that neighbours
read one address together and a read of four takes half of the cycles. What the next k needs is read
while this one is multiplied, and that of the next stage, too.

What lies beyond the rows of an array is copied from its last: nobody stores such results. The first
step takes of k what the others leave, and zeros: no other need look for an end.
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

_GRIDS = ((8, 4), (4, 8), (16, 2), (2, 16))  # of lanes
_RUN = 8  # neighbours along k that a warp copies of a row: no bank is met twice
_ADDRESS = """
__forceinline__ __device__ unsigned long long address_of(const void* array) {
  return reinterpret_cast<unsigned long long>(array);
}
"""
_COPY = """
__forceinline__ __device__ void copy_floats_{vector}(unsigned to, unsigned long long from, int at) {{
  asm volatile("cp.async.{cache}.shared.global [%0], [%1], {nbytes};" :: "r"(to), "l"(from + 4ll * at) : "memory");
}}
"""
_COPY_PRESENT = """
__forceinline__ __device__ void copy_present_floats_{vector}(unsigned to, unsigned long long from, int at, int present) {{
  asm volatile("cp.async.{cache}.shared.global [%0], [%1], {nbytes}, %2;" ::
               "r"(to), "l"(present ? from + 4ll * at : from), "r"(present ? {nbytes} : 0) : "memory");
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
        return 4 * self.stages * self.bk * (self.bm + self.bn + 2 * FOUR)

    @property
    def registers(self) -> int:
        """Registers of a thread for sums, and for factors of this k and of the next."""
        return self.tm * self.tn + 2 * (self.tm + self.tn)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Lanes of a warp, one above the other and side by side: the squarest tile of a warp that fits."""
        fitting = [
            (down, across)
            for down, across in _GRIDS
            if self.bm % (self.tm * down) == 0 and self.bn % (self.tn * across) == 0
        ]
        return min(fitting, key=lambda grid: abs(self.tm * grid[0] - self.tn * grid[1]), default=None)


class _Streamed(Factor):
    """A factor whose tiles come by cp.async; `lanes` of a warp have different ones."""

    def __init__(
        self, array: Any, extent: Extent, k: Extent, k_inner: bool, block: int, own: int, lanes: int, vector: int
    ) -> None:
        super().__init__(array, "float32", extent, k, k_inner, block, own)
        self.lanes, self.vector = lanes, 1 if k_inner else vector

    def begin(self, pool: Any, thread: Any, tiles: Float32Tiles) -> None:  # type: ignore[override]
        self.hold(pool, thread, tiles, tiles.stages)
        self.values = T.alloc_local((2 * self.own,), "float32")

    def place_of(self, thread: Any, index: int) -> Any:
        return thread + index // FOUR * (self.lanes * FOUR) + index % FOUR

    def read(self, stage: Any, k: int, thread: Any) -> None:
        for index in range(0, self.own, FOUR):
            memory = self.tile.ptr_to([stage, k, self.place_of(thread, index)])
            read_four(self.values, k % 2 * self.own + index, memory)

    def value(self, k: int, index: int) -> Any:
        return self.values[k % 2 * self.own + index]

    def aim(self, origin: Any) -> None:
        """Find where this thread's pieces of a tile lie in the first: those that differ across k."""
        self.source = Scalar(c_call("uint64", "address_of", self.slice, source=_ADDRESS), "uint64")
        self.places = T.alloc_local((self._apart,), "int32")
        last = self.extent - self.vector
        for i in range(self._apart):
            own, k = self._piece(i)
            outer, inner = tirx.min(origin + own, last), k
            row, column = (outer, inner) if self.k_inner else (inner, outer)
            T.buffer_store(self.places, row * self.row_length + column, [i])

    @property
    def _line(self) -> int:
        """Pieces beside one another that threads take in turn: along k, or all of a row."""
        return _RUN if self.k_inner else self.block // self.vector

    @property
    def _apart(self) -> int:
        """Pieces of a thread, one by one, until the next lies in the same row or column as the first."""
        across_k = self.block * _RUN if self.k_inner else self.block // self.vector
        return max(1, across_k // self.threads)

    def _piece(self, number: int) -> tuple[Any, Any]:
        """Return where a piece begins, of the tile: its place among the block's own, its k."""
        each, turn = number % self._apart, number // self._apart
        line, rest = T.truncmod(self.thread, self._line), T.truncdiv(self.thread, self._line)
        lines = self.threads // self._line  # that threads take at a time
        if self.k_inner:
            own = T.truncmod(rest, self.block) + each * lines
            return own, (T.truncdiv(rest, self.block) + turn * max(1, lines // self.block)) * _RUN + line
        return (line + each * self.threads) * self.vector, rest + turn * max(1, lines)

    def _source_of(self, number: int) -> Any:
        """Return where a piece lies in the array, of floats behind the tile's beginning."""
        lines, turn = self.threads // self._line, number // self._apart
        k = turn * (max(1, lines // self.block) * _RUN if self.k_inner else max(1, lines))
        return self.places[number % self._apart] + (k if self.k_inner else k * self.row_length)

    def copy(self, stage: Any, left: Any = None) -> None:
        """Begin to copy the next tile, of which there are `left` values of k, or all."""
        nbytes, cache = 4 * self.vector, "cg" if self.vector == FOUR else "ca"
        fields = {"vector": self.vector, "nbytes": nbytes, "cache": cache}
        count = self.block * self.bk // self.vector
        for i in range(-(-count // self.threads)):
            own, k = self._piece(i)
            to = T.cuda.cvta_generic_to_shared(self.tile.ptr_to([stage, k, own]))
            present = () if left is None else (T.Cast("int32", k < left),)
            name, source = ("copy_present_floats", _COPY_PRESENT) if present else ("copy_floats", _COPY)
            copy = c_call(
                "void", f"{name}_{self.vector}", to, self.source(), self._source_of(i), *present,
                source=source.format(**fields),
            )  # fmt: skip
            if (i + 1) * self.threads <= count:
                do(copy)
                continue
            with when(i * self.threads + self.thread < count):
                do(copy)

    def advance(self, by: Any) -> None:
        """Go on to what lies `by` values of k behind."""
        floats = by if self.k_inner else T.Cast("int64", self.row_length) * by
        self.source.set(self.source() + T.Cast("uint64", floats * 4))


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
        assert t.grid is not None
        down, across = t.grid
        return (
            _Streamed(a, p.m, p.k, not p.trans_a, t.bm, t.tm, down, t.a_vector),
            _Streamed(b, p.n, p.k, p.trans_b, t.bn, t.tn, across, t.b_vector),
        )

    def place(self, warp: Any, lane: Any) -> tuple[Any, Any]:
        """Return a thread's first row and column. Lanes beside one another share one or the other."""
        t = self.tiles
        assert t.grid is not None
        sizes, places = dict(zip("mn", t.grid)), {"m": 0, "n": 0}
        weights = {"m": 1, "n": 1}
        for bit in range(5):
            name = "mn"[bit % 2]
            name = name if weights[name] < sizes[name] else "nm"[bit % 2]
            places[name] = places[name] + (lane >> bit & 1) * weights[name]
            weights[name] *= 2
        across = t.bn // (t.tn * sizes["n"])
        row = T.truncdiv(warp, across) * (t.tm * sizes["m"]) + places["m"] * FOUR
        return row, T.truncmod(warp, across) * (t.tn * sizes["n"]) + places["n"] * FOUR

    def _multiply_all(self) -> None:
        t = self.tiles
        k = Scalar(self.product.k)()
        steps = T.Bind(T.truncdiv(k + (t.bk - 1), t.bk))
        for each, origin in ((self.a, self.row), (self.b, self.column)):
            each.aim(origin)
        for stage in range(t.stages - 1):
            with when(stage < steps):
                self._copy(stage, None if stage else k - (steps - 1) * t.bk)
            ptx("cp.async.commit_group")
        self._await()
        use, fill = Scalar(0), Scalar(t.stages - 1)
        self._read(use(), 0)
        with T.serial(steps) as step:
            for k in range(t.bk):
                if k == t.bk - 1:
                    self._await()
                    use.set(tirx.Select(use() == t.stages - 1, 0, use() + 1))
                self._read(use(), (k + 1) % t.bk)
                if k == 0:
                    with when(step + (t.stages - 1) < steps):
                        self._copy(fill())
                    ptx("cp.async.commit_group")
                    fill.set(tirx.Select(fill() == t.stages - 1, 0, fill() + 1))
                self._multiply(k)
        ptx("cp.async.wait_group", 0)

    def _await(self) -> None:
        """Wait until the next stage is there for all threads."""
        ptx("cp.async.wait_group", self.tiles.stages - 2)
        do(T.cuda.cta_sync())

    def _read(self, stage: Any, k: int) -> None:
        self.a.read(stage, k, self.ty)
        self.b.read(stage, k, self.tx)

    def _copy(self, stage: Any, left: Any = None) -> None:
        """Begin to copy the next tiles, of all values of k or of so many as the others leave."""
        for each in (self.a, self.b):
            each.copy(stage, left)
            each.advance(self.tiles.bk if left is None else left)
