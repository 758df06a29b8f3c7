"""The factors of a wgmma product on their way: by TMA to stages in shared memory, and from there to wgmma."""

from __future__ import annotations

import math
from typing import Any

from tvm.script import tirx as T

from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.kernels.gemm_arrays import Arrays, Form
from tvmops.schedules.cuda.words import ask_for_box, c_call, do, swizzled

PANEL, ROW_BYTES = 32, 128  # floats of a row of the 128-byte swizzle
_LOAD = "cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes"
_MULTICAST = _LOAD + ".multicast::cluster"
_SHORT = {
    "float16": "f16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "e4m3",
    "float8_e5m2": "e5m2",
    "int8": "s8",
    "uint8": "u8",
    "float32": "tf32",
}


class Operand:
    """A factor: how its tiles lie in shared memory, by columns of 64 elements, 128-byte swizzled.

    Parameters
    ----------
    by_k
        Whether its rows lie along k.
    size
        Rows of c, or columns, of a tile.
    sharers
        Blocks of a cluster, each of which loads a part of a tile for all.
    """

    def __init__(self, arrays_of: Arrays, name: str, by_k: bool, size: int, tiles: Tiles, sharers: int = 1):
        self.has_items = bool(arrays_of.items[name])
        self.by_k, self.size, self.bk, self.sharers = by_k, size, tiles.bk, sharers
        columns, rows = (self.bk // 64, size) if by_k else (-(-size // 64), self.bk)
        # This block loads whole columns, where there is one for each; else its rows of all.
        self.by_columns = not by_k and columns % sharers == 0
        self.loads = columns // sharers if self.by_columns else columns
        self.shape = (tiles.stages, columns, rows, 64)
        self.box: tuple[int, Any] = (64, rows if self.by_columns else rows // sharers)
        # Zeros take long to load: where c has fewer rows than a tile, what lies there is multiplied in vain.
        self.clips = by_k and sharers == 1 and arrays_of.form.item == 2
        if self.clips:
            self.box = (64, T.min(arrays_of.matrices[name][0], rows))

    @property
    def stage_bytes(self) -> int:
        return math.prod(self.shape[1:]) * 2

    def loaded_bytes(self, rows: Any) -> Any:
        """Return the bytes of a stage that are loaded, by this block and others, of as many rows in all."""
        return T.min(rows, self.size) * (self.bk * 2) if self.clips else self.stage_bytes

    @T.inline
    def load(self, ring, stage, view, first, k, part, item, barrier):
        """Begin to copy a tile whose first row, or column, of c is `first`: the `part`-th of the sharers'."""
        for i in T.unroll(self.loads):
            self._load(ring, *self._box_at(i, stage, first, k, part), view, item, barrier)

    @T.inline
    def ask(self, view, first, k, part, item):
        """Ask the L2 for the tile that `load` copies: where all that kernels before may still write comes by."""
        for i in T.unroll(self.loads):
            ask_for_box(view, *self._box_at(i, 0, first, k, part)[1], *([item] if self.has_items else []))

    def _box_at(self, i: Any, stage: Any, first: Any, k: Any, part: Any) -> tuple[Any, Any]:
        """Return where the `i`-th box goes to, and where in the array it begins, columns first."""
        column, row = (
            (part * self.loads + i, 0)
            if self.by_columns
            else (i, part * self.box[1] if self.sharers > 1 else 0)
        )
        along = (k + column * 64, first + row) if self.by_k else (first + column * 64, k + row)
        return (stage, column, row, 0), along

    def _load(self, ring: Any, to: Any, at: Any, view: Any, item: Any, barrier: Any) -> None:
        """Begin to copy a box."""
        ends = (barrier, (1 << self.sharers) - 1) if self.sharers > 1 else (barrier,)
        kind = _MULTICAST if self.sharers > 1 else _LOAD
        place = (*at, *([item] if self.has_items else []))
        do(T.ptx[kind.format(rank=len(place))](ring.ptr_to([*to]), T.address_of(view), *place, *ends))

    def view(self, base: Any, stage: Any, step: int, block: int = 0) -> Any:
        """Return wgmma's view of step `step` of 16 along k, of the `block`-th 64 rows."""
        inside = self._offset(step, block)
        address = base + T.Cast("uint32", stage * self.stage_bytes + inside)
        return swizzled(address, leading=1 if self.by_k else self.bk * 8)

    def _offset(self, step: int, block: int) -> int:
        """Return where, in bytes, that begins in a stage."""
        if self.by_k:
            return (step // 4) * (self.size * 128) + block * 8192 + (step % 4) * 32
        return block * (self.bk * 128) + step * 2048

    def columns_bytes(self, columns: int) -> int:
        """Return the bytes from the first of `columns` rows that lie along k to what follows the last."""
        return columns * 128

    def group_bytes(self, blocks: int) -> int:
        """Return the bytes from the first of `blocks` blocks of 64 rows to what follows the last."""
        return blocks * 8192 if self.by_k else blocks * self.bk * 128


class AcrossFloats(Operand):
    """A factor of floats whose rows lie across k: panels of 32 rows of c, a row of 128 bytes for each k."""

    def __init__(self, arrays_of: Arrays, name: str, size: int, tiles: Tiles) -> None:
        super().__init__(arrays_of, name, False, size, tiles)
        self.depth = tiles.bk // 2  # of k, of a stage
        self.loads = size // PANEL
        self.shape = (tiles.stages, self.loads, self.depth, 64)
        self.box = (64, self.depth)

    @T.inline
    def load(self, ring, stage, view, first, k, part, item, barrier):
        for i in T.serial(self.loads):  # unrolled they take more registers than the thread has
            self._load(ring, *self._box_at(i, stage, first, k, part), view, item, barrier)

    def _box_at(self, i: Any, stage: Any, first: Any, k: Any, part: Any) -> tuple[Any, Any]:
        return (stage, i, 0, 0), ((first + i * PANEL) * 2, T.truncdiv(k, 2))

    def group_bytes(self, blocks: int) -> int:
        return blocks * (64 // PANEL) * self.depth * ROW_BYTES


def multiply(form: Form, columns: int, sums: Any, first: int, a: Any, b: Any, adds: Any) -> None:
    """Begin to multiply 64 rows by `columns` columns: `sums`, from `first` on, become the product, or more of it.

    The instruction takes 32 bytes of k.
    """
    kind, count = _SHORT[form.dtype], columns // 2
    if form.dtype in ("int8", "uint8"):
        source = _integer_product(columns, kind)
        do(c_call("void", f"multiply_{kind}_{columns}", T.address_of(sums[first]), a, b, adds, source=source))
        return
    name = f"wgmma.mma_async.sync.aligned.m64n{columns}k{32 // form.item}.f32.{kind}.{kind}"
    across = (int(form.trans_a), int(not form.trans_b))  # whether rows lie across k
    ends = (1, 1, *across) if form.item == 2 else (1, 1)  # others lie along k always
    do(T.ptx[name](*(sums[first + i] for i in range(count)), a, b, adds, *ends))


def _integer_product(columns: int, kind: str) -> str:
    """Return the text of `multiply_KIND_COLUMNS`: TVM does not know wgmma of 256 columns of bytes."""
    count = columns // 2
    sums = ", ".join(f"%{i}" for i in range(count))
    operands = ", ".join(f'"+r"(d[{i}])' for i in range(count))
    return f"""
__forceinline__ __device__ void multiply_{kind}_{columns}(unsigned* d, unsigned long long a, unsigned long long b, int adds) {{
  asm volatile("{{.reg .pred p; setp.ne.b32 p, %{count + 2}, 0; "
               "wgmma.mma_async.sync.aligned.m64n{columns}k32.s32.{kind}.s8 {{{sums}}}, %{count}, %{count + 1}, p;}}"
               : {operands} : "l"(a), "l"(b), "r"(adds));
}}
"""
