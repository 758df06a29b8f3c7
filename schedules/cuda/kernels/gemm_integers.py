"""What a wgmma product of 8-bit integers has of its own: its arguments and its end.

What the results of a column have in common, zero point, scale and bias, is in shared memory when the
tile has been multiplied; `gemm_zero_points` adds up what zero points ask for.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx.script.builder import ir as builder

from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.kernels.gemm_arrays import Arrays, Int8Form
from tvmops.schedules.cuda.kernels.gemm_int8 import LIMITS, quantize
from tvmops.schedules.cuda.kernels.gemm_results import Consumer, Results
from tvmops.schedules.cuda.kernels.gemm_zero_points import ZeroPoints
from tvmops.schedules.cuda.words import c_call, do, tie, when

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


class Columns:
    """What the results of a column have in common, in shared memory, for each warpgroup that multiplies.

    It is asked for before a tile is multiplied, and has come when that is done.
    """

    def __init__(self, form: Int8Form, arrays: dict[str, Any], tiles: Tiles, pool: Any) -> None:
        given = {
            "b_zero_points": form.b_zero_points == "channel",
            "b_scales": form.by_channel,
            "bias": bool(form.bias),
        }
        self.arrays = {name: arrays[name] for name, is_there in given.items() if is_there}
        self.size, self.counts = tiles.bn, range(-(-tiles.bn // 128))
        self.memory = {
            name: pool.alloc((tiles.consumers, tiles.bn), array.dtype, align=16)
            for name, array in self.arrays.items()
        }

    def fetch(self, at: Consumer, n: Any) -> None:
        self.own = {
            name: builder.alloc_local((len(self.counts),), array.dtype) for name, array in self.arrays.items()
        }
        for i in self.counts:
            column = builder.Bind(tirx.min(at.left + self._thread(at, i), n - 1))
            for name, array in self.arrays.items():
                builder.buffer_store(self.own[name], array[column], [i])

    def place(self, at: Consumer) -> None:
        if not self.arrays:
            return
        do(T.cuda.warpgroup_sync(at.group + 1))  # those of the tile before have been read
        for i in self.counts:
            inside = self._thread(at, i)
            with when(inside < self.size):
                for name, memory in self.memory.items():
                    builder.buffer_store(memory, self.own[name][i], [at.group, inside])
        do(T.cuda.warpgroup_sync(at.group + 1))

    def _thread(self, at: Consumer, index: int) -> Any:
        return at.warp * 32 + at.lane + index * 128


class IntegerResults(Results):
    """Zero points, scales, a bias, an activation, results quantised again."""

    form: Int8Form

    def __init__(
        self,
        arrays_of: IntegerArrays,
        arrays: dict[str, Any],
        tiles: Tiles,
        at: Consumer,
        zeros: ZeroPoints,
        columns: Columns,
    ) -> None:
        super().__init__(arrays_of.form, arrays_of, arrays, tiles, at)
        self.zeros, self.columns, self.k = zeros, columns, arrays_of.k

    def begin(self) -> None:
        """Do this before a tile is multiplied."""
        self.columns.fetch(self.at, self.n)

    def put_right(self) -> None:
        """Take the sums that zero points ask for off the products."""
        zeros, at = self.zeros, self.at
        self.columns.place(at)
        zeros.receive()
        tie(at.acc, self.blocks * self.sums, "r")
        of_a = builder.Bind(zeros.of_a)
        for j in range(self.bn // 8):
            tie(at.acc, 0, "r")
            for e in range(2):
                inside = at.lane % 4 * 2 + (j * 8 + e)
                of_column = builder.Bind(of_a * zeros.of_columns[inside])
                of_b = self._of_b(self._staged("b_zero_points", inside))
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
        given = {name: array[column] for name, array in self.columns.arrays.items()}
        builder.buffer_store(sums, self._result(T.Cast("int32", sums[at]), *self._terms(given)), [at])

    def finish_all(self) -> None:
        """Store all sums of a tile as what they are to become."""
        at = self.at
        for j in range(self.bn // 8):
            tie(at.acc, 0, "r")
            inside = at.lane % 4 * 2 + j * 8
            column = builder.Bind(at.left + inside)
            with when(column < self.n):
                given = [
                    {name: self._staged(name, inside + e) for name in self.columns.arrays} for e in range(2)
                ]
                terms = [[builder.Bind(term) for term in self._terms(each)] for each in given]
                for w in range(self.blocks):
                    for half in range(2):
                        row = at.top + self._row_in_tile(w, half)
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

    def _staged(self, name: str, inside: Any) -> Any:
        """Return what `Columns` has of a column of the tile, or None."""
        memory = self.columns.memory.get(name)
        return memory[self.at.group, inside] if memory is not None else None

    def _of_b(self, of_column: Any) -> Any:
        """Return the zero point of a column of b, whose own is `of_column`; or None."""
        if self.form.b_zero_points == "tensor":
            return T.Cast("int32", self.arrays["b_zero_point"])
        return of_column

    def _terms(self, given: dict[str, Any]) -> list[Any]:
        """Return what is added to the sums of a column, their scale and bias, of what is given of it."""
        of_b = self._of_b(given.get("b_zero_points"))
        constant = self.k * self.zeros.of_a * of_b if of_b is not None else tirx.const(0, "int32")
        return [constant, given.get("b_scales", T.float32(1)), given.get("bias", T.float32(0))]

    def _result(self, sums: Any, constant: Any, scale: Any, bias: Any) -> Any:
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
