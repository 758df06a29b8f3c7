"""The kernel of `WeightOnlyMma`: few rows of x times integer weights with scales, on mma.sync.

Weights stay as `WeightGroups` packs them, 16 columns by so many values of k in rows of 64 bytes.
Each thread copies to shared memory, by cp.async, just the pieces that it will itself multiply:
no thread waits for another's weights, and as many bytes are in flight as the ring has room
for. Four columns in a piece, eight values of k each, are what a thread holds of two products
m16n8k16 with weights as their rows and x as their columns, if k is walked in the order of the
nibbles; x is put in that order as it is read from a tile that the threads share. The integers
become 16-bit floats less their zero point, exactly; a group's sum, in float32, is scaled and
added up. Warps of a block split columns, and k, whose parts meet in shared memory at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import ceildiv
from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.dequantize import Dequantizer, pair_up
from tvmops.schedules.cuda.kernels.column_sums import (
    LANES,
    ROWS,
    ColumnSums,
    Piece,
    Place,
    SumsShape,
    load_piece,
    multiply,
    zeros,
)
from tvmops.schedules.cuda.pieces import PIECE, copy_piece, fetch_piece, place_piece
from tvmops.schedules.cuda.weight_only_product import BK, STEP, WeightOnlyProduct
from tvmops.schedules.cuda.words import Scalar, do, ptx, when

PANELS = 2  # of 16 columns, which a warp takes side by side
COLUMNS = 16 * PANELS
_ROW_BYTES = 64  # of packed weights
_X_PIECES = BK // PIECE  # of a row of x in a stage


@dataclass(frozen=True)
class WeightOnlyTiles:
    rows: int  # of x, in units of `ROWS`, that a block multiplies
    pairs: int  # of panels, that a warp takes
    warps_n: int
    warps_k: int
    stages: int
    vector: int  # elements that every row of x begins at a multiple of: 8, or 1

    @property
    def warps(self) -> int:
        return self.warps_n * self.warps_k

    @property
    def bm(self) -> int:
        return self.rows * ROWS

    @property
    def bn(self) -> int:
        return COLUMNS * self.pairs * self.warps_n

    @property
    def x_bytes(self) -> int:
        """Bytes of a stage's part of x, for one stretch of k."""
        return self.bm * BK * 2

    @property
    def sums(self) -> SumsShape:
        return SumsShape(self.bm, self.pairs, 4, self.warps_n, self.warps_k)

    @property
    def registers(self) -> int:
        """Registers of a thread for sums, totals and a step's operands."""
        return 16 * self.pairs * self.rows + 4 * self.rows + 12


def shared_bytes(product: WeightOnlyProduct, tiles: WeightOnlyTiles) -> int:
    stage = tiles.warps * tiles.pairs * product.slots * LANES + tiles.warps_k * tiles.x_bytes
    return max(tiles.stages * stage, tiles.sums.warp_bytes)


class WeightOnlyKernel:
    """`main(x, w, [bias], c)`."""

    def __init__(self, product: WeightOnlyProduct, tiles: WeightOnlyTiles) -> None:
        self.product, self.tiles = product, tiles
        self.dequantizer = Dequantizer(product.groups.bits, product.dtype)

    def module(self) -> IRModule:
        p = self.product
        panels, rows = ceildiv(p.n, 16), ceildiv(p.k, p.groups.group) * p.groups.rows
        with IRBuilder() as builder, T.prim_func():
            T.func_name("main")
            self.x = T.arg("x", T.buffer((p.m, p.k), p.dtype, align=16, buffer_name="x"))
            self.w = T.arg("w", T.buffer((panels, rows, _ROW_BYTES), "uint8", align=16, buffer_name="w"))
            bias = T.buffer((p.n,), p.dtype, align=2, buffer_name="bias") if p.bias else None
            self.bias = T.arg("bias", bias) if bias is not None else None
            self.c = T.arg("c", T.buffer((p.m, p.n), p.dtype, align=16, buffer_name="c"))
            T.device_entry()
            with T.attr({"tirx.launch_bounds_min_blocks_per_sm": 1}):
                self._body()
        return IRModule({"main": builder.get().with_attr("global_symbol", "main")})

    def _body(self) -> None:
        p, t = self.product, self.tiles
        block = T.cta_id([ceildiv(p.m, t.bm) * ceildiv(p.n, t.bn)])
        self.warp, self.lane = T.warp_id([t.warps]), T.lane_id([32])
        # Through variables, lest what the launch computes becomes arguments of the kernel.
        bands = T.Bind(T.truncdiv(Scalar(p.m)() + (t.bm - 1), t.bm))
        groups = T.truncdiv(Scalar(p.k)() + (p.groups.group - 1), p.groups.group)
        self.pitch = T.Bind(groups * (p.groups.rows * _ROW_BYTES // 2))  # of a panel, in units of two bytes
        self.row = T.Bind(T.truncmod(block, bands) * t.bm)
        self.part, self.place = T.truncdiv(self.warp, t.warps_n), T.truncmod(self.warp, t.warps_n)
        self.column = T.Bind(T.truncdiv(block, bands) * t.bn + self.place * (t.pairs * COLUMNS))
        pool = SMEMPool()
        ring = pool.alloc((shared_bytes(p, t),), "uint8", align=128)
        pool.commit()
        self.base = Scalar(T.cuda.cvta_generic_to_shared(ring.ptr_to([0])), "uint32")()
        column = T.Bind(self.column + T.truncdiv(self.lane, 4) * 4)
        place = Place(self.lane, self.warp, self.part, self.place, 0, self.row, column)
        self.sums = ColumnSums(t.sums, place, self.base, self.base)
        self.group_sums = zeros(t.sums.registers)
        self.xs = T.alloc_local((4 * t.rows,), "uint32")
        self.words = T.alloc_local((4 * p.words,), "uint32")
        self.factors = T.alloc_local((4,), "uint32")  # a piece of scales or of zero points
        self.pairs = T.alloc_local((16,), "uint32")  # of weights: four columns of eight values of k
        self.raw = T.alloc_local((8,), "uint32") if t.vector == 1 else None
        self._multiply_all()
        self.sums.add_up(self._finish)

    # The ring: for each warp its pieces of weights, for each stretch of k its tile of x.

    def _weights_at(self, stage: Any, pair: int, slot: int) -> Any:
        t, p = self.tiles, self.product
        first = (stage * t.warps + self.warp) * (t.pairs * p.slots * LANES)
        return self.base + T.Cast("uint32", first + (pair * p.slots + slot) * LANES + self.lane * 16)

    def _x_at(self, stage: Any, row: Any, piece: Any) -> Any:
        """Return where a piece of x lies; those of two neighbouring rows lie in different banks."""
        t = self.tiles
        begin = t.stages * t.warps * t.pairs * self.product.slots * LANES
        tile = begin + (stage * t.warps_k + self.part) * t.x_bytes
        turned = piece ^ (row % 2 * 4)
        return self.base + T.Cast("uint32", tile + (row * _X_PIECES + turned) * 16)

    def _copy(self, stage: Any, k: Any) -> None:
        """Begin to copy this warp's weights from `k` on, and its share of x."""
        with when(k < self.product.k):
            self._copy_weights(stage, k)
            self._copy_x(stage, k)

    def _copy_weights(self, stage: Any, k: Any) -> None:
        p, lane = self.product, self.lane
        layout = p.groups
        across, down = T.truncdiv(lane, 4) % 4 * 16, T.truncmod(lane, 4)
        for pair in range(self.tiles.pairs):
            panel = T.truncdiv(self.column, 16) + pair * PANELS + T.truncdiv(lane, 16)
            inside = panel * 16 < p.n
            slot = 0
            for begin in range(0, BK, p.group):
                there = tirx.Select(tirx.And(inside, k + begin < p.k), PIECE, 0)
                group = T.truncdiv(k + begin, layout.group)
                first = group * layout.rows
                rows = [first + head for head in range(p.heads)]
                skipped = T.truncdiv(T.truncmod(k + begin, layout.group), layout.step)
                for step in range(p.group // STEP):
                    at = first + p.heads + skipped + step * (STEP // layout.step) + down * p.words
                    rows += [at + word for word in range(p.words)]
                for row in rows:
                    to = self._weights_at(stage, pair, slot)
                    column = T.truncdiv(row * _ROW_BYTES + across, 2)
                    do(copy_piece(PIECE, to, self.w.data, panel, self.pitch, column, there))
                    slot += 1

    def _copy_x(self, stage: Any, k: Any) -> None:
        p, t = self.product, self.tiles
        threads = 32 * t.warps_n  # that share this stretch of k
        thread = self.place * 32 + self.lane
        for first in range(0, t.bm * _X_PIECES, threads):
            at = first + thread
            row, piece = T.truncdiv(at, _X_PIECES), T.truncmod(at, _X_PIECES)
            with when(tirx.And(self.row + row < p.m, at < t.bm * _X_PIECES)):
                column = k + piece * PIECE
                found = (self.x.data, self.row + row, p.k, column, p.k - column)
                to = self._x_at(stage, row, piece)
                if self.raw is None:
                    do(copy_piece(t.vector, to, *found))
                else:
                    raw = T.address_of(self.raw[0])
                    do(fetch_piece(raw, *found))
                    do(place_piece(to, raw))

    def _meet(self) -> None:
        """Wait for the threads that share a tile of x."""
        do(T.cuda.warp_sync() if self.tiles.warps_n == 1 else T.cuda.cta_sync())

    def _multiply_all(self) -> None:
        t = self.tiles
        stride = t.warps_k * BK
        steps = T.truncdiv(Scalar(self.product.k)() + (stride - 1), stride)
        own = self.part * BK
        for stage in range(t.stages - 1):
            self._copy(stage, own + stage * stride)
            ptx("cp.async.commit_group")
        use, fill = Scalar(0), Scalar(t.stages - 1)
        with T.serial(steps) as step:
            ptx("cp.async.wait_group", t.stages - 2)
            self._meet()
            self._copy(fill(), own + (step + (t.stages - 1)) * stride)
            ptx("cp.async.commit_group")
            with when(step * stride + own < self.product.k):
                self._multiply(use())
            for at in (use, fill):
                at.set(tirx.Select(at() == t.stages - 1, 0, at() + 1))
        ptx("cp.async.wait_group", 0)

    def _multiply(self, stage: Any) -> None:
        """Multiply a stage, group by group."""
        p = self.product
        groups = BK // p.group
        for group in range(groups):
            slot = group * (p.heads + p.group // STEP * p.words)
            terms = [self._terms(stage, pair, slot) for pair in range(self.tiles.pairs)]
            for step in range(p.group // STEP):
                self._load_x(stage, group * (p.group // STEP) + step)
                for pair in range(self.tiles.pairs):
                    at = slot + p.heads + step * p.words
                    self._load_weights(stage, pair, at, terms[pair])
                    self._multiply_pair(pair, begins=step == 0)
            for pair in range(self.tiles.pairs):
                self._scale(stage, pair, slot)

    def _terms(self, stage: Any, pair: int, slot: int) -> list[list[Any]]:
        """Return for each of four columns what makes floats of its integers."""
        p = self.product
        if not p.groups.has_zero_points:
            return [self.dequantizer.terms(T.float32(p.groups.zero))] * 4
        load_piece(self.factors, 0, self._weights_at(stage, pair, slot + 1))
        terms = []
        for column in range(4):
            zero = tirx.reinterpret("float32", self.factors[column])
            dtype = "float32" if p.groups.bits == 8 and p.dtype == "bfloat16" else "uint32"
            terms.append([Scalar(term, dtype)() for term in self.dequantizer.terms(zero)])
        return terms

    def _load_x(self, stage: Any, step: int) -> None:
        """Load eight values of k of each of this thread's rows."""
        for part in range(self.tiles.rows):
            row, piece = part * ROWS + T.truncdiv(self.lane, 4), step * 4 + T.truncmod(self.lane, 4)
            load_piece(self.xs, part * 4, self._x_at(stage, row, piece))
            if self.product.groups.bits == 4:
                pair_up(self.xs, part * 4)

    def _load_weights(self, stage: Any, pair: int, slot: int, terms: list[list[Any]]) -> None:
        words = self.product.words
        for word in range(words):
            load_piece(self.words, word * 4, self._weights_at(stage, pair, slot + word))
        for column in range(4):
            own = [self.words[word * 4 + column] for word in range(words)]
            self.dequantizer.expand(self.pairs, column * 4, own, terms[column])

    def _multiply_pair(self, pair: int, begins: bool) -> None:
        dtype, shape = self.product.dtype, self.tiles.sums
        for half in range(2):  # of the eight values of k
            for tile in range(2):  # of columns: 0 and 1, 2 and 3 of each piece
                left, right = tile * 8 + half * 2, tile * 8 + 4 + half * 2
                columns = [self.pairs[at] for at in (left, right, left + 1, right + 1)]
                for part in range(self.tiles.rows):
                    rows = [self.xs[part * 4 + half * 2 + i] for i in range(2)]
                    at = shape.at(pair, tile, part)
                    multiply(dtype, self.group_sums, at, columns, rows, begins and half == 0)

    def _scale(self, stage: Any, pair: int, slot: int) -> None:
        """Add a group's sums to the totals."""
        load_piece(self.factors, 0, self._weights_at(stage, pair, slot))
        totals = self.sums.totals
        for part in range(self.tiles.rows):
            for tile in range(2):
                for i in range(4):
                    at = self.tiles.sums.at(pair, tile, part) + i
                    scale = tirx.reinterpret("float32", self.factors[tile * 2 + i // 2])
                    T.buffer_store(totals, totals[at] + scale * self.group_sums[at], [at])

    def _finish(self, piece: Piece, values: list[Any]) -> None:
        self.sums.store(self.c, self.product.m, self.product.n, piece, values, self._finished)

    def _finished(self, value: Any, row: Any, column: Any) -> Any:
        if self.bias is not None:
            value = value + T.Cast("float32", self.bias[column])
        return activate(self.product.activation, value)
