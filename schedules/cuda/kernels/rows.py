"""The kernels of `rows`: softmax, layer_norm and rms_norm, one read and one write of each element.

A row lies in the registers of `threads` threads, as floats, from its only read to its only write;
a block takes `rows` rows side by side. Sums and maxima go through shuffles within a warp, and
through shared memory between the warps of a row. Blocks may stay and take row after row: they
then fetch the next while they work on one, and may keep weight and bias in shared memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, ceildiv
from tvmops.schedules.cuda.kernels.row_ops import layer_norm, rms_norm, softmax
from tvmops.schedules.cuda.kernels.row_values import WARP, Meeting, RowValues
from tvmops.schedules.cuda.row_memory import load_vector, parts_of, store_vector, unpack, vector_width
from tvmops.schedules.cuda.words import Scalar, do, when


@dataclass(frozen=True)
class RowShape:
    op: str
    rows: Extent
    cols: Extent
    dtype: str
    weight: bool = False
    bias: bool = False
    residual: bool = False  # is added first; the sum is a second output
    log: bool = False
    scaled: bool = False
    mask_rows: Extent = 0  # of what is added to softmax's x; 0: nothing is


@dataclass(frozen=True)
class RowTiles:
    threads: int  # a row
    rows: int  # a block
    stream: bool  # writes pass the caches
    resident: int  # blocks that stay on a multiprocessor and take row after row; 0: none stays
    keep: bool  # weight and bias are kept in shared memory
    multiprocessors: int

    @property
    def block(self) -> int:
        return self.threads * self.rows

    @property
    def stays(self) -> bool:
        return self.resident > 0

    @property
    def blocks(self) -> int:
        return self.resident * self.multiprocessors


class RowKernel:
    def __init__(self, shape: RowShape, tiles: RowTiles) -> None:
        assert isinstance(shape.cols, int), "a row's registers must be counted"
        self.shape, self.tiles, self.cols = shape, tiles, shape.cols
        self.width = vector_width(shape.dtype, self.cols)
        self.parts = parts_of(shape.dtype, self.width)  # registers of a vector as it lies in memory

    def module(self) -> IRModule:
        shape = self.shape
        with IRBuilder() as builder, T.prim_func():
            T.func_name("main")
            self._arguments()
            T.device_entry()
            with T.attr({"tirx.launch_bounds_min_blocks_per_sm": max(self.tiles.resident, 1)}):
                self._body()
        return IRModule({"main": builder.get().with_attr("global_symbol", "main")})

    def _arguments(self) -> None:
        shape, whole = self.shape, (self.shape.rows, self.cols)
        inputs: dict[str, tuple[Extent, ...]] = {"x": whole}
        inputs |= {name: (self.cols,) for name in ("weight", "bias") if getattr(shape, name)}
        if shape.residual:
            inputs["residual"] = whole
        if self.has_mask:
            inputs["mask"] = (shape.mask_rows, self.cols)
        self.arrays = {name: self._array(name, size) for name, size in inputs.items()}
        norms = shape.op != "softmax"
        if norms or shape.scaled:
            self.scalar = T.arg("eps" if norms else "scale", T.float32())
        self.out = self._array("out", whole)
        self.sum = self._array("sum", whole) if shape.residual else None

    @property
    def has_mask(self) -> bool:
        return not (isinstance(self.shape.mask_rows, int) and self.shape.mask_rows == 0)

    def _array(self, name: str, shape: tuple[Extent, ...]) -> Any:
        return T.arg(name, T.buffer(shape, self.shape.dtype, align=16, buffer_name=name))

    def _body(self) -> None:
        tiles = self.tiles
        groups = ceildiv(self.shape.rows, tiles.rows)
        block = T.cta_id([tiles.blocks if tiles.stays else groups])
        self.warp, self.lane = T.warp_id([tiles.block // WARP]), T.lane_id([WARP])
        self.thread = self.warp * WARP + self.lane
        column = self.thread % tiles.threads
        self._shared_memory()
        self.row = RowValues(self.cols, self.width, tiles.threads, column)
        length = self.row.steps * self.parts
        self.raw = {name: T.alloc_local((length,), "uint32") for name in self._read_once()}
        self.group, self.parity = Scalar(block), Scalar(0)
        if not tiles.stays:
            self._fetch(self.group())
            self._unpack()
            self._finish()
            return
        self._keep_factors()
        with when(self.group() < groups):
            self._fetch(self.group())
        with T.While(self.group() < groups):
            self._unpack()
            with when(self.group() + tiles.blocks < groups):
                self._fetch(self.group() + tiles.blocks)
            self._finish()
            self.group.set(self.group() + tiles.blocks)
            self.parity.set(self.parity() ^ 1)

    def _shared_memory(self) -> None:
        pool = SMEMPool()
        self.partial = pool.alloc((2, 2, max(self.tiles.block // WARP, 1)), "float32", align=16)
        self.kept: dict[str, Any] = {}
        if self.tiles.stays and self.tiles.keep:
            for name in self._factors():
                self.kept[name] = pool.alloc((self.cols,), self.shape.dtype, align=16)
        pool.commit()

    def _read_once(self) -> list[str]:
        return [name for name in self.arrays if name not in ("weight", "bias")]

    def _factors(self) -> list[str]:
        return [name for name in self.arrays if name in ("weight", "bias")]

    def _finish(self) -> None:
        shape, tiles = self.shape, self.tiles
        if self.sum is not None:
            self._write(self.sum)
        meeting = Meeting(tiles.threads, self.warp, self.lane, self.partial, self.parity())
        if shape.op == "softmax":
            softmax(self.row, meeting, shape.log)
        else:
            norm = {"layer_norm": layer_norm, "rms_norm": rms_norm}[shape.op]
            norm(self.row, meeting, self.scalar)
        self._write(self.out)

    def _write(self, array: Any) -> None:
        """Write the registers to this row of `array`, `out` times weight, plus bias."""
        if self._rows_divide():
            self._write_row(array)
            return
        with when(self._index(self.group()) < self.shape.rows):
            self._write_row(array)

    def _rows_divide(self) -> bool:
        rows = self.shape.rows
        return self.tiles.rows == 1 or (isinstance(rows, int) and rows % self.tiles.rows == 0)

    def _index(self, group: Any) -> Any:
        return group * self.tiles.rows + T.truncdiv(self.thread, self.tiles.threads)

    def _fetch(self, group: Any) -> None:
        """Begin to read the rows of `group`."""
        row = self._index(group)
        if not self._rows_divide():
            row = tirx.min(row, self.shape.rows - 1)

        def load(step: int, column: Any) -> None:
            for name, raw in self.raw.items():
                own = T.truncmod(row, self.shape.mask_rows) if name == "mask" else row
                pointer = self.arrays[name].ptr_to([T.Cast("int64", own), column])
                load_vector(raw, step * self.parts, pointer, self.shape.dtype, self.width)

        self.row.each(load)

    def _unpack(self) -> None:
        dtype, width, row = self.shape.dtype, self.width, self.row
        empty = -math.inf if self.shape.op == "softmax" else 0.0
        added = next((name for name in self.raw if name != "x"), None)
        more = T.alloc_local((width,), "float32")

        def convert(step: int, column: Any) -> None:
            unpack(row.floats, step * width, self.raw["x"], step * self.parts, dtype, width)
            own = row.of_step(step)
            for i in own if self.shape.scaled else ():
                row[i] = row[i] * self.scalar
            if added is not None:
                unpack(more, 0, self.raw[added], step * self.parts, dtype, width)
                for i in own:
                    row[i] = row[i] + more[i - step * width]

        def fill(step: int) -> None:
            for i in row.of_step(step):
                row[i] = tirx.const(empty, "float32")

        self.row.each(convert, fill)

    def _keep_factors(self) -> None:
        """Copy weight and bias to shared memory: they serve all rows of this block."""
        if not self.kept:
            return
        with T.serial(ceildiv(self.cols, self.tiles.block)) as step:
            at = step * self.tiles.block + self.thread
            with when(at < self.cols):
                for name, kept in self.kept.items():
                    T.buffer_store(kept, self.arrays[name][at], [at])
        do(T.cuda.cta_sync())

    def _write_row(self, array: Any) -> None:
        dtype, width, row = self.shape.dtype, self.width, self.row
        raw = T.alloc_local((self.parts,), "uint32")
        names = self._factors() if array is self.out else []
        factors = {name: T.alloc_local((width,), "float32") for name in names}

        def write(step: int, column: Any) -> None:
            for name, factor in factors.items():
                source = self.kept.get(name, self.arrays[name])
                load_vector(raw, 0, source.ptr_to([column]), dtype, width, "*" if self.kept else "__ldg")
                unpack(factor, 0, raw, 0, dtype, width)
            for i, own in enumerate(row.of_step(step) if factors else ()):
                value = row[own]
                if "weight" in factors:
                    value = value * factors["weight"][i]
                if "bias" in factors:
                    value = value + factors["bias"][i]
                row[own] = value
            out = array.ptr_to([T.Cast("int64", self._index(self.group())), column])
            store_vector(out, row.floats, step * width, dtype, width, self.tiles.stream)

        self.row.each(write)
