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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.kernels.gemm_simt import FOUR, Factor, SimtKernel, SimtTiles, read_four
from tvmops.schedules.cuda.kernels.product import Product
from tvmops.schedules.cuda.words import Scalar, c_call, do, ptx, when

_ANY = (1 << 31) - 1  # a last row, where all are there
_OCTAVE = 8  # values of k whose fours lie in different banks
_GRIDS = ((8, 4), (4, 8), (16, 2), (2, 16))  # of lanes
_ADDRESS = """
__forceinline__ __device__ unsigned long long address_in(const void* array, int row, int pitch, int column) {
  return reinterpret_cast<unsigned long long>(static_cast<const float*>(array) + static_cast<long long>(row) * pitch + column);
}
"""
# In one piece, lest the compiler keeps the place of each row in registers: row `row + more`, or the last.
_COPY = """
__forceinline__ __device__ void copy_floats_{vector}(unsigned to, unsigned long long from, int row, int more, int last,
                                                     int pitch) {{
  asm volatile("{{.reg .s32 at; .reg .s64 there;"
               "add.s32 at, %2, %3; min.s32 at, at, %4; mul.lo.s32 at, at, %5; mad.wide.s32 there, at, 4, %1;"
               "cp.async.{cache}.shared.global [%0], [there], {nbytes};}}" ::
               "r"(to), "l"(from), "r"(row), "r"(more), "r"(last), "r"(pitch) : "memory");
}}
"""
_COPY_PRESENT = """
__forceinline__ __device__ void copy_present_floats_{vector}(unsigned to, unsigned long long from, int row, int more,
                                                             int last, int pitch, int present) {{
  const unsigned long long at = from + (present ? 4ll * (min(row + more, last) * pitch) : 0);
  asm volatile("cp.async.{cache}.shared.global [%0], [%1], {nbytes}, %2;" ::
               "r"(to), "l"(at), "r"(present ? {nbytes} : 0) : "memory");
}}
"""
_FETCH_FOUR = """
__forceinline__ __device__ void fetch_four_floats(float* to, unsigned long long from, int row, int more, int last, int pitch,
                                                  int behind) {
  asm volatile("{.reg .s32 at; .reg .s64 there;"
               "add.s32 at, %5, %6; min.s32 at, at, %7; mad.lo.s32 at, at, %8, %9; mad.wide.s32 there, at, 4, %4;"
               "ld.global.nc.v4.f32 {%0, %1, %2, %3}, [there];}"
               : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3])
               : "l"(from), "r"(row), "r"(more), "r"(last), "r"(pitch), "r"(behind) : "memory");
}
"""
_ADD_FOUR = """
__forceinline__ __device__ void add_four_floats(float* sums, const void* from) {
  const float4 four = *static_cast<const float4*>(from);
  sums[0] += four.x;
  sums[1] += four.y;
  sums[2] += four.z;
  sums[3] += four.w;
}
"""
_STORE_FOUR = """
__forceinline__ __device__ void store_four_floats(void* to, const float* sums) {
  *static_cast<float4*>(to) = make_float4(sums[0], sums[1], sums[2], sums[3]);
}
"""


@dataclass(frozen=True)
class Float32Tiles(SimtTiles):
    stages: int
    a_vector: int  # elements of a copy
    b_vector: int
    beside: int  # blocks that share a multiprocessor
    slices: int = 1  # of each step's k, that groups of warps sum apart

    @property
    def threads(self) -> int:
        return self.slices * self.threads_of_slice

    @property
    def threads_of_slice(self) -> int:
        return super().threads

    @property
    def shared_bytes(self) -> int:
        ring = self.stages * self.bk * (self.bm + self.bn + 2 * FOUR)
        return 4 * max(ring, self.bm * self.bn if self.slices > 1 else 0)

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
    """A factor whose tiles come by cp.async; `lanes` of a warp have different rows of it.

    What lies along k is stored across it, rows changing places in their four by the k: so a warp that
    copies neighbours along k meets no bank twice.
    """

    def __init__(
        self, array: Any, extent: Extent, k: Extent, k_inner: bool, block: int, own: int, lanes: int, vector: int
    ) -> None:
        super().__init__(array, "float32", extent, k, k_inner, block, own)
        self.lanes, self.vector, self.fetches = lanes, 1 if k_inner else vector, k_inner and vector == FOUR

    def begin(self, pool: Any, thread: Any, tiles: Float32Tiles) -> None:  # type: ignore[override]
        self.hold(pool, thread, tiles, tiles.stages)
        self.values = T.alloc_local((2 * self.own,), "float32")
        self.slices = tiles.slices
        line = self.bk if self.k_inner else self.block // self.vector  # pieces that are neighbours
        self.place, rest = T.truncmod(thread, line), T.truncdiv(thread, line)
        self.lines = tiles.threads // line  # that are copied at a time; none, if not a whole one
        self.line = self._spread(rest) if self.k_inner else rest
        self.count = -(-self.block * self.bk // (self.vector * tiles.threads))  # pieces of a thread

    def _spread(self, line: Any) -> Any:
        """Return the row of a line: where a warp copies two, one is in the other half of its four."""
        if self.bk != 2 * _OCTAVE or self.lines % FOUR:
            return line
        return (line & -4) + (line & 1) * 2 + (line >> 1 & 1)

    def place_of(self, thread: Any, index: int) -> Any:
        return thread + index // FOUR * (self.lanes * FOUR) + index % FOUR

    def read(self, stage: Any, k: int, thread: Any) -> None:
        """Read what a thread multiplies, of the `k`-th of its slice: slices take turns."""
        for index in range(0, self.own, FOUR):
            at = k * self.slices + self.slice_of_k
            memory = self.tile.ptr_to([stage, at, self.place_of(thread, index)])
            read_four(self.values, k % 2 * self.own + index, memory)

    def value(self, k: int, index: int) -> Any:
        turned = k * self.slices // _OCTAVE % FOUR if self.k_inner else 0
        return self.values[k % 2 * self.own + (index ^ turned)]

    def aim(self, origin: Any) -> None:
        """Find where this thread's pieces of the first tile begin."""
        last = self.extent - self.vector
        self.pitch = T.Bind(Scalar(self.row_length)())
        row, column = 0, 0
        if self.k_inner:
            row, column, self.last = origin, self.place, T.Bind(last - origin)
        elif self.lines:
            column = tirx.min(origin + self.place * self.vector, last)
        else:
            self.origin, self.last = origin, last
        address = c_call("uint64", "address_in", self.slice, row, self.pitch, column, source=_ADDRESS)
        self.source = Scalar(address, "uint64")

    def _piece(self, number: int) -> tuple[Any, Any]:
        """Return a piece's place among the block's own, and its k."""
        more = number * self.lines
        if self.k_inner:
            return (self.line ^ T.truncdiv(self.place, _OCTAVE) % FOUR) + more, self.place
        if self.lines:
            return self.place * self.vector, self.line + more
        passes = self.block // (self.vector * self.threads)  # of a line
        return (self.place + number % passes * self.threads) * self.vector, number // passes

    def copy(self, stage: Any, left: Any = None) -> None:
        """Begin to copy the next tile, of which there are `left` values of k, or all."""
        nbytes, cache = 4 * self.vector, "cg" if self.vector == FOUR else "ca"
        fields = {"vector": self.vector, "nbytes": nbytes, "cache": cache}
        count = self.block * self.bk // self.vector
        for i in range(self.count):
            own, k = self._piece(i)
            source, rows = self.source(), (self.line, i * self.lines, self.last if self.k_inner else _ANY)
            if not self.lines:
                column = tirx.min(self.origin + own, self.last)
                source, rows = source + T.Cast("uint64", column * 4), (k, 0, _ANY)
            to = T.cuda.cvta_generic_to_shared(self.tile.ptr_to([stage, k, own]))
            present = () if left is None else (T.Cast("int32", k < left),)
            name, text = ("copy_present_floats", _COPY_PRESENT) if present else ("copy_floats", _COPY)
            copy = c_call(
                "void", f"{name}_{self.vector}", to, source, *rows, self.pitch, *present,
                source=text.format(**fields),
            )  # fmt: skip
            if (i + 1) * self.threads <= count:
                do(copy)
                continue
            with when(i * self.threads + self.thread < count):
                do(copy)

    # Fours along k come through registers, and go from there to their places.

    def begin_fetching(self) -> None:
        self.pair = T.truncmod(self.thread, 2)  # of fours, that neighbours take
        rest, lines = T.truncdiv(self.thread, 2), self.threads // 2
        self.fetch_row, self.run = T.truncmod(rest, self.block), T.truncdiv(rest, self.block)
        self.rows_apart, self.runs_apart = max(1, self.block // lines), max(1, lines // self.block)
        self.fours = -(-self.block * self.bk // (FOUR * self.threads))
        self.fetched = T.alloc_local((self.fours * FOUR,), "float32")

    def _four(self, number: int) -> tuple[int, Any]:
        """Return how many rows a four lies below the thread's first, and its run of 8 along k."""
        more = number % self.rows_apart * (self.threads // 2)
        return more, self.run + number // self.rows_apart * self.runs_apart

    def _each_four(self, use: Callable[[int], None]) -> None:
        count = self.block * self.bk // FOUR
        for i in range(self.fours):
            if (i + 1) * self.threads <= count:
                use(i)
                continue
            with when(i * self.threads + self.thread < count):
                use(i)

    def fetch(self) -> None:  # type: ignore[override]
        """Begin to read the next tile to registers."""

        def one(i: int) -> None:
            more, run = self._four(i)
            behind = run * _OCTAVE + self.pair * FOUR - self.place
            to = T.address_of(self.fetched[i * FOUR])
            do(
                c_call(
                    "void", "fetch_four_floats", to, self.source(), self.fetch_row, more, self.last, self.pitch,
                    behind, source=_FETCH_FOUR,
                )
            )  # fmt: skip

        self._each_four(one)

    def put(self, stage: Any) -> None:
        """Write what was read to a stage."""

        def one(i: int) -> None:
            more, run = self._four(i)
            own = (self.fetch_row ^ run % FOUR) + more
            for e in range(FOUR):
                T.buffer_store(self.tile, self.fetched[i * FOUR + e], [stage, run * _OCTAVE + self.pair * FOUR + e, own])

        self._each_four(one)

    def advance(self, by: Any) -> None:
        """Go on to what lies `by` values of k behind."""
        floats = by if self.k_inner else T.Cast("int64", self.pitch) * by
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

    def reserve(self, pool: Any) -> None:
        if self.tiles.slices > 1:  # in place of the factors, when they have been read
            pool.move_base_to(0)
            threads = self.tiles.threads_of_slice
            fours = self.tiles.tm * self.tiles.tn // FOUR
            self.meeting = pool.alloc((fours, threads, FOUR), "float32", align=16)

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
        across, warps = t.bn // (t.tn * sizes["n"]), t.threads_of_slice // 32
        self.part = T.Bind(T.truncdiv(warp, warps)) if t.slices > 1 else 0
        warp = T.truncmod(warp, warps) if t.slices > 1 else warp
        self.a.slice_of_k = self.b.slice_of_k = self.part
        row = T.truncdiv(warp, across) * (t.tm * sizes["m"]) + places["m"] * FOUR
        return row, T.truncmod(warp, across) * (t.tn * sizes["n"]) + places["n"] * FOUR

    def _multiply_all(self) -> None:
        t = self.tiles
        k = Scalar(self.product.k)()
        steps = T.Bind(T.truncdiv(k + (t.bk - 1), t.bk))
        for each, origin in ((self.a, self.row), (self.b, self.column)):
            each.aim(origin)
            if each.fetches:
                each.begin_fetching()
        for stage in range(t.stages - 1):
            with when(stage < steps):
                self._copy(stage, None if stage else k - (steps - 1) * t.bk)
            ptx("cp.async.commit_group")
        self._await()
        use, fill = Scalar(0), Scalar(t.stages - 1)
        self._read(use(), 0)
        count = t.bk // t.slices
        with T.serial(steps) as step:
            for k in range(count):
                if k == count - 1:
                    self._await()
                    use.set(tirx.Select(use() == t.stages - 1, 0, use() + 1))
                self._read(use(), (k + 1) % count)
                if k == 0:
                    ahead = T.Bind(step + (t.stages - 1) < steps)
                    with when(ahead):
                        self._copy(fill(), fetches=True)
                    ptx("cp.async.commit_group")
                if k == max(count - 2, 0):
                    with when(ahead):
                        self._put(fill())
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

    def _copy(self, stage: Any, left: Any = None, fetches: bool = False) -> None:
        """Begin to copy the next tiles, of all values of k or of so many as the others leave."""
        for each in (self.a, self.b):
            if fetches and each.fetches:
                each.fetch()
            else:
                each.copy(stage, left)
            each.advance(self.tiles.bk if left is None else left)

    def _put(self, stage: Any) -> None:
        """Write to a stage what came through registers."""
        for each in (self.a, self.b):
            if each.fetches:
                each.put(stage)

    def _store(self) -> None:
        if self.tiles.slices == 1:
            super()._store()
            return
        for part in range(1, self.tiles.slices):
            do(T.cuda.cta_sync())  # others may still read what this takes the place of
            with when(self.part == part):
                self._each_four(lambda at, memory: do(c_call("void", "store_four_floats", memory, at, source=_STORE_FOUR)))
            do(T.cuda.cta_sync())
            with when(self.part == 0):
                self._each_four(lambda at, memory: do(c_call("void", "add_four_floats", at, memory, source=_ADD_FOUR)))
        with when(self.part == 0):
            super()._store()

    def _each_four(self, use: Callable[[Any, Any], None]) -> None:
        """Do something with four sums at a time, and with their place in shared memory."""
        t = self.tiles
        thread = T.Bind(T.truncmod(self.a.thread, t.threads_of_slice))
        for i in range(0, t.tm * t.tn, FOUR):
            memory = self.meeting.ptr_to([i // FOUR, thread, 0])
            use(T.address_of(self.sums[i]), memory)
