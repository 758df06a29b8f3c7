"""What a wgmma product of 8-bit integers has of its own: its arguments, zero points, and its end.

With zero points c = (a - z)(b - y) is ab, less z times the sums of b's columns, less y times the
sums of a's rows, and k z y. wgmma sees a and b in shared memory alone, so three warps of the
producer's warpgroup, which have nothing else to do, add up each stage there (dp4a), row by row as
they lie, and leave the sums of a tile to those that multiply. Where z is 0 and b has no zero points
they leave at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx.script.builder import ir as builder

from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.kernels.gemm_arrays import Arrays, Form
from tvmops.schedules.cuda.kernels.gemm_int8 import LIMITS, quantize
from tvmops.schedules.cuda.kernels.gemm_results import Consumer, Results
from tvmops.schedules.cuda.words import Barriers, Scalar, c_call, do, ptx, tie, when

_SUMMERS = 96  # threads
# Two sums, lest each addition waits for the one before it.
_ADD_ROW = """
__forceinline__ __device__ int add_row_{dtype}(const void* row, int turn, int sum) {{
  const uint4* pieces = static_cast<const uint4*>(row);
  const {kind} ones = 0x01010101;
  {kind} even = sum, odd = 0;
#pragma unroll 4
  for (int i = 0; i < 8; ++i) {{
    const uint4 four = pieces[i ^ turn];
    even = __dp4a(static_cast<{kind}>(four.x), ones, even);
    odd = __dp4a(static_cast<{kind}>(four.y), ones, odd);
    even = __dp4a(static_cast<{kind}>(four.z), ones, even);
    odd = __dp4a(static_cast<{kind}>(four.w), ones, odd);
  }}
  return even + odd;
}}
"""
_KINDS = {"int8": "int", "uint8": "unsigned"}
_STORE_WORDS = """
__forceinline__ __device__ void store_words(void* array, int row, int pitch, int column, unsigned x, unsigned y) {
  unsigned* at = static_cast<unsigned*>(array) + static_cast<long long>(row) * pitch + column;
  *reinterpret_cast<uint2*>(at) = make_uint2(x, y);
}
"""
_STORE_BYTES = """
__forceinline__ __device__ void store_bytes(void* array, int row, int pitch, int column, unsigned x, unsigned y) {
  unsigned char* at = static_cast<unsigned char*>(array) + static_cast<long long>(row) * pitch + column;
  *reinterpret_cast<unsigned short*>(at) = static_cast<unsigned short>((x & 0xFF) | (y & 0xFF) << 8);
}
"""


@dataclass(frozen=True)
class Int8Form(Form):
    b_zero_points: str = "none"
    by_channel: bool = False  # whether each column has a scale of its own

    @property
    def finishes(self) -> bool:
        return self.b_zero_points != "none" or self.result != "int32"


class IntegerArrays(Arrays):
    """a of uint8 or int8, b of int8, (n, k); sums of int32, which PTX in TVM calls uint32."""

    form: Int8Form
    sums = "uint32"

    def declare(self, workspace: bool) -> dict[str, Any]:
        form, n = self.form, self.n
        arrays: dict[str, Any] = {"a": (form.dtype, (self.m, self.k)), "b": ("int8", (n, self.k))}
        arrays |= {"b_zero_points": ("int32", (n,))} if form.b_zero_points == "channel" else {}
        arrays |= {"b_scales": ("float32", (n,))} if form.by_channel else {}
        arrays |= {"bias": ("float32", (n,))} if form.bias else {}
        given = {name: self._declare(name, *of) for name, of in arrays.items()}
        scalars = ["a_zero_point"]
        scalars += ["b_zero_point"] if form.b_zero_points == "tensor" else []
        scalars += ["scale"] if form.result != "int32" else []
        scalars += ["out_scale", "out_zero_point"] if form.result in LIMITS else []
        given |= {name: builder.arg(name, builder.float32()) for name in scalars}
        return given | {"c": self._declare("c", form.result, (self.m, n))}

    def _declare(self, name: str, dtype: str, shape: tuple[Any, ...]) -> Any:
        align = 16 if name in "abc" else 4
        return builder.arg(name, builder.buffer(shape, dtype, align=align, buffer_name=name))


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


class IntegerResults(Results):
    """Zero points, scales, a bias, an activation, results quantised again."""

    form: Int8Form

    def __init__(
        self, arrays_of: IntegerArrays, arrays: dict[str, Any], tiles: Tiles, at: Consumer, zeros: ZeroPoints
    ) -> None:
        super().__init__(arrays_of, arrays, tiles, at)
        self.zeros, self.k = zeros, arrays_of.k

    def put_right(self) -> None:
        """Take the sums that zero points ask for off the products."""
        zeros, at = self.zeros, self.at
        zeros.receive()
        tie(at.acc, self.blocks * self.sums, "r")
        of_a = builder.Bind(zeros.of_a)
        for j in range(self.bn // 8):
            tie(at.acc, 0, "r")
            for e in range(2):
                inside = at.lane % 4 * 2 + (j * 8 + e)
                of_column = builder.Bind(of_a * zeros.of_columns[inside])
                of_b = self._of_b(tirx.min(at.tn * self.bn + inside, self.n - 1))
                of_b = builder.Bind(of_b) if of_b is not None else None
                for w in range(self.blocks):
                    for half in range(2):
                        where = w * self.sums + j * 4 + half * 2 + e
                        value = T.Cast("int32", at.acc[where]) - of_column
                        if of_b is not None:
                            value = value - of_b * zeros.of_rows[self._row_in_tile(w, half)]
                        builder.buffer_store(at.acc, T.Cast("uint32", value), [where])
        zeros.release()

    def finish(self, sums: Any, at: Any, row: Any, column: Any) -> None:
        """Replace one sum by the bits of its result."""
        builder.buffer_store(sums, self._result(T.Cast("int32", sums[at]), *self._terms(column)), [at])

    def finish_all(self) -> None:
        """Store all sums of a tile as what they are to become."""
        at = self.at
        for j in range(self.bn // 8):
            tie(at.acc, 0, "r")
            column = builder.Bind(at.tn * self.bn + at.lane % 4 * 2 + j * 8)
            with when(column < self.n):
                terms = [[builder.Bind(term) for term in self._terms(column + e)] for e in range(2)]
                for w in range(self.blocks):
                    for half in range(2):
                        row = at.tm * self.bm + self._row_in_tile(w, half)
                        first = w * self.sums + j * 4 + half * 2
                        with when(row < self.m):
                            two = [
                                self._result(T.Cast("int32", at.acc[first + e]), *terms[e]) for e in range(2)
                            ]
                            self.store_two(row, column, *two)

    def store_two(self, row: Any, column: Any, x: Any, y: Any) -> None:
        of_bytes = self.form.result in LIMITS
        name, source = ("store_bytes", _STORE_BYTES) if of_bytes else ("store_words", _STORE_WORDS)
        do(c_call("void", name, self.c.data, row, self.n, column, x, y, source=source))

    def _row_in_tile(self, block: int, half: int) -> Any:
        at = self.at
        inside = at.warp * 16 + T.truncdiv(at.lane, 4) + (block * 64 + half * 8)
        return at.group * (64 * self.blocks) + inside

    def _of_b(self, column: Any) -> Any:
        """Return the zero point of a column of b, or None."""
        if self.form.b_zero_points == "channel":
            return self.arrays["b_zero_points"][column]
        if self.form.b_zero_points == "tensor":
            return T.Cast("int32", self.arrays["b_zero_point"])
        return None

    def _terms(self, column: Any) -> list[Any]:
        """Return what the results of a column have in common: what is added, a scale, a bias."""
        form, arrays, of_b = self.form, self.arrays, self._of_b(column)
        terms = [self.k * self.zeros.of_a * of_b if of_b is not None else tirx.const(0, "int32")]
        if form.result != "int32":
            terms.append(arrays["b_scales"][column] if form.by_channel else T.float32(1))
            terms.append(arrays["bias"][column] if form.bias else T.float32(0))
        return terms

    def _result(self, sums: Any, constant: Any, scale: Any = None, bias: Any = None) -> Any:
        form, arrays = self.form, self.arrays
        sums = sums + constant
        if form.result == "int32":
            return T.Cast("uint32", sums)
        value = T.Cast("float32", sums) * arrays["scale"]
        value = value * scale if form.by_channel else value
        value = value + bias if form.bias else value
        value = activate(form.activation, value)
        if form.result == "float32":
            return tirx.reinterpret("uint32", value)
        return T.Cast("uint32", quantize(form.result, value, arrays["out_scale"], arrays["out_zero_point"]))
