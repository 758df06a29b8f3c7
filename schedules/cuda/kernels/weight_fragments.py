"""Packed integer weights on their way to wgmma, as its first factor, through registers.

A thread of a warp has two rows of a wgmma, here two neighbouring columns of the weights, and of 16
values of k the pairs 2 t, 2 t + 1 and 8 + 2 t, 9 + 2 t, if t is its place among four. It reads the
words that hold them, of both columns at once, picks its bytes, and makes floats of their integers less
their zero point, exactly (see `dequantize`). Four threads read the same words of nibbles and take a
quarter each: that costs reads of shared memory, which are few, and leaves x in the order that it has.
Fragments come in two sets: one is made while products of the other are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.dequantize import AND_OR, FMA_PAIR
from tvmops.schedules.cuda.kernels.gemm_fragments import LOAD_TWO
from tvmops.schedules.cuda.weight_only_product import BK, WeightOnlyProduct
from tvmops.schedules.cuda.words import PTX_TYPES, Scalar, c_call, do, pack

ROW_BYTES = 64  # of packed weights, of a panel
ELEMENTS = 8  # of a row, as the copy engine sees it
_BOX_ROWS = 32  # at most: a box is as many as 256 elements long
COLUMNS = 16  # of a panel: those of a warp
STEP = 16  # of k, of a wgmma
# Bytes are picked for two results at once, and those of the second lie above those of the first.
_NIBBLES_FLOAT16 = """
__forceinline__ __device__ void fragment_nibbles_float16(unsigned* out, unsigned low, unsigned high, unsigned pick,
                                                         unsigned mask, unsigned unit, unsigned term) {
  const unsigned word = __byte_perm(low, high, pick);
  out[0] = fma_pair_float16(and_or(word, mask, 0x64006400u), unit, term);
  out[2] = fma_pair_float16(and_or(word >> 8, mask, 0x64006400u), unit, term);
}
"""
_NIBBLES_BFLOAT16 = """
__forceinline__ __device__ void fragment_nibbles_bfloat16(unsigned* out, unsigned low, unsigned high, unsigned pick,
                                                          unsigned shift, unsigned unit, unsigned term) {
  const unsigned word = __byte_perm(low, high, pick) >> shift;
  out[0] = fma_pair_bfloat16(and_or(word, 0x000F000Fu, 0x43004300u), unit, term);
  out[2] = fma_pair_bfloat16(and_or(word >> 8, 0x000F000Fu, 0x43004300u), unit, term);
}
"""
_BYTES_FLOAT16 = """
__forceinline__ __device__ void fragment_bytes_float16(unsigned* out, unsigned low, unsigned high, unsigned pick,
                                                       unsigned unit, unsigned term) {
  out[0] = fma_pair_float16(__byte_perm(low, 0x64646464u, pick), unit, term);
  out[2] = fma_pair_float16(__byte_perm(high, 0x64646464u, pick), unit, term);
}
"""
_BYTES_BFLOAT16 = """
__forceinline__ __device__ unsigned rounded_pair(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__forceinline__ __device__ void fragment_bytes_bfloat16(unsigned* out, unsigned low, unsigned high, unsigned pick,
                                                        float zero) {
  const unsigned magic = 0x4B000000u;
  out[0] = rounded_pair(__uint_as_float(__byte_perm(low, magic, pick)) - zero,
                        __uint_as_float(__byte_perm(low, magic, pick + 1)) - zero);
  out[2] = rounded_pair(__uint_as_float(__byte_perm(high, magic, pick)) - zero,
                        __uint_as_float(__byte_perm(high, magic, pick + 1)) - zero);
}
"""
_SCALED_PAIR = """
__forceinline__ __device__ unsigned scaled_pair_{dtype}(unsigned pair, unsigned scales) {{
  unsigned d;
  asm("mul.rn.{ptx}x2 %0, %1, %2;" : "=r"(d) : "r"(pair), "r"(scales));
  return d;
}}
"""
_TEXTS = {
    ("nibbles", "float16"): _NIBBLES_FLOAT16,
    ("nibbles", "bfloat16"): _NIBBLES_BFLOAT16,
    ("bytes", "float16"): _BYTES_FLOAT16,
    ("bytes", "bfloat16"): _BYTES_BFLOAT16,
}


@dataclass(frozen=True)
class PackedStage:
    """How the rows of 64 bytes of a panel lie in a stage: box after box, each of all panels.

    A box holds whole groups; or heads, scales and zero points, lie apart from a box of integers, for
    which a group may be larger than a stage, or too large for a box.
    """

    heads: int  # of a group
    group_rows: int  # of what a stage has of it
    groups: int
    boxes: int

    @classmethod
    def of(cls, product: WeightOnlyProduct) -> PackedStage:
        heads, groups = product.heads, BK // product.group
        rows = heads + product.group // product.groups.step
        whole = product.groups.group <= BK and rows <= _BOX_ROWS
        boxes = -(-groups * rows // _BOX_ROWS) if whole else 0
        return cls(heads, rows, groups, boxes)

    @property
    def apart(self) -> bool:
        return self.boxes == 0

    @property
    def rows(self) -> int:
        return self.groups * self.group_rows

    @property
    def box_rows(self) -> int:
        return self.rows - self.heads if self.apart else self.rows // self.boxes

    def place(self, group: int, row: int, panels: int) -> tuple[int, int]:
        """Return where a group's row lies, in rows, of the first of the panels; and the way to the next panel."""
        at = group * self.group_rows + row
        if not self.apart:
            box, inside = divmod(at, self.box_rows)
            return box * self.box_rows * panels + inside, self.box_rows
        if at < self.heads:
            return at, self.heads
        return self.heads * panels + at - self.heads, self.box_rows


def packed_map(array: Any, pitch: Any, panels: Any, rows: int, count: int) -> Any:
    """Describe packed weights to the copy engine, for boxes of `rows` rows of `count` panels, not swizzled."""
    view = T.Bind(T.tvm_stack_alloca("tensormap", 1), T.handle("tensormap"))
    interleave, swizzle, l2_256, zeros = 0, 0, 3, 0
    do(
        T.call_packed(
            "runtime.cuTensorMapEncodeTiled", view, "int64", 2, array.data, pitch, panels, pitch * 8,
            rows * ELEMENTS, count, 1, 1, interleave, swizzle, l2_256, zeros,
        )
    )  # fmt: skip
    return view


class WeightFragments:
    """What a thread multiplies of its warp's panel of weights.

    Parameters
    ----------
    base
        The shared-memory address of the first stage.
    """

    def __init__(
        self, product: WeightOnlyProduct, base: Any, panels: int, warp: Any, lane: Any, rounded: bool = False
    ) -> None:
        self.packed = packed = PackedStage.of(product)
        self.product, self.panels = product, panels
        self.stage_bytes = panels * packed.rows * ROW_BYTES
        self.steps = min(product.group, BK // 2) // STEP  # of a set
        self.words = variables("words", 2 * self.steps * 4, "uint32")
        self.raw = variables("raw", 4, "uint32")
        self.factors = variables("factors", 2, "uint32")
        self.pairs = (
            [Scalar(T.uint32(0), "uint32") for _ in range(2)] if rounded else []
        )  # scales, twice each
        self.lane, self.bits, self.dtype = lane, product.groups.bits, product.dtype
        place = T.truncmod(lane, 4)
        self.odd, self.upper = T.truncmod(place, 2), T.truncdiv(place, 2)
        rows = self.upper * ROW_BYTES if self.bits == 8 else 0
        own = T.truncdiv(lane, 4) * 8
        self.heads = self._first(base, warp, own, 0)
        self.places = self._first(base, warp, own + rows, packed.heads)
        self._constants()

    def _first(self, base: Any, warp: Any, own: Any, row: int) -> Any:
        """Return the address of this thread's part of its warp's panel, of rows such as `row`."""
        _, apart = self.packed.place(0, row, self.panels)
        return Scalar(base + T.Cast("uint32", warp * (apart * ROW_BYTES) + own), "uint32")()

    def _constants(self) -> None:
        """Set what differs between the threads: which bytes are theirs, and which bits of them."""
        nibbles, float16 = self.bits == 4, self.dtype == "float16"
        self.before: list[Any] = []  # what the function takes before the term of the zero point
        if nibbles:
            self.pick = self._either(self.odd, 0x7362, 0x5140)
            if float16:
                self.before.append(self._either(self.upper, 0x00F000F0, 0x000F000F))
                self.before.append(self._either(self.upper, 0x2C002C00, 0x3C003C00))
            else:
                self.before.append(self._either(self.upper, 4, 0))
                self.before.append(T.uint32(0x3F803F80))
        elif float16:
            self.pick = self._either(self.odd, 0x4342, 0x4140)
            self.before.append(T.uint32(0x3C003C00))
        else:
            self.pick = self._either(self.odd, 0x7442, 0x7440)
        upper_base, base = {
            (4, "float16"): (-64.0, -1024.0),
            (8, "float16"): (-1024.0, -1024.0),
            (4, "bfloat16"): (-128.0, -128.0),
            (8, "bfloat16"): (2.0**23, 2.0**23),
        }[self.bits, self.dtype]
        same = upper_base == base
        self.base = T.float32(base) if same else self._either(self.upper, upper_base, base, "float32")
        zero = T.float32(self.product.groups.zero)
        kind = "float32" if self._by_float else "uint32"
        self.terms = [Scalar(self._term(zero), kind) for _ in range(2 if self.product.heads > 1 else 1)]

    @property
    def _by_float(self) -> bool:
        """Whether integers become floats of 32 bits first, for want of digits."""
        return self.bits == 8 and self.dtype == "bfloat16"

    def _either(self, condition: Any, yes: float, no: float, dtype: str = "uint32") -> Any:
        return Scalar(tirx.Select(condition > 0, tirx.const(yes, dtype), tirx.const(no, dtype)), dtype)()

    def _term(self, zero: Any) -> Any:
        """Return what is added to floats of integers, or taken from them, for the zero point `zero`."""
        if self._by_float:
            return self.base + zero
        return pack(self.dtype, self.base - zero, self.base - zero)

    def _head(self, stage: Any, group: int, row: int) -> list[Any]:
        """Return this thread's two numbers of a row of scales or of zero points."""
        self._load_two(self.factors, 0, self.heads, stage, group, row)
        return [tirx.reinterpret("float32", self.factors[i]) for i in range(2)]

    def load_zero_points(self, stage: Any, group: int) -> None:
        if self.product.heads > 1:
            for term, zero in zip(self.terms, self._head(stage, group, 1)):
                term.set(self._term(zero))

    def load_scales(self, scales: Any, stage: Any, group: int) -> None:
        for i, scale in enumerate(self._head(stage, group, 0)):
            T.buffer_store(scales, scale, [i])

    def load_factors(self, stage: Any, group: int) -> None:
        """Read the scales of this thread's columns, for `scale`."""
        for factor, scale in zip(self.pairs, self._head(stage, group, 0)):
            factor.set(pack(self.dtype, scale, scale))

    def scale(self, half: int) -> None:
        """Scale a set that was made, which rounds it."""
        name = f"scaled_pair_{self.dtype}"
        source = _SCALED_PAIR.format(dtype=self.dtype, ptx=PTX_TYPES[self.dtype])
        for step in range(self.steps):
            for i in range(4):
                at = self._at(half, step) + i
                scaled = c_call("uint32", name, self.words[at], self.pairs[i % 2](), source=source)
                T.buffer_store(self.words, scaled, [at])

    def _at(self, half: int, step: int) -> int:
        return (half * self.steps + step) * 4

    def load(self, stage: Any, group: int, batch: int, half: int) -> None:
        """Make the `half`-th set of the `batch`-th steps of a stage's group."""
        apart = 16 // self.product.groups.step // 2  # rows from the first eight values of k to the others
        for step in range(self.steps):
            row = self.product.heads + (batch * self.steps + step) * 2 * apart
            for i in range(2):
                self._load_two(self.raw, 2 * i, self.places, stage, group, row + i * apart)
            for column in range(2):
                out = T.address_of(self.words[self._at(half, step) + column])
                own = self.raw[column], self.raw[2 + column]
                term = self.terms[column % len(self.terms)]()
                self._expand(out, *own, self.pick, *self.before, term)

    def _load_two(self, to: Any, at: int, place: Any, stage: Any, group: int, row: int) -> None:
        inside, _ = self.packed.place(group, row, self.panels)
        address = place + T.Cast("uint32", stage * self.stage_bytes + inside * ROW_BYTES)
        do(c_call("void", "load_two_words", T.address_of(to[at]), address, source=LOAD_TWO))

    def _expand(self, *arguments: Any) -> None:
        what = "nibbles" if self.bits == 4 else "bytes"
        source = _TEXTS[what, self.dtype]
        if not self._by_float:
            source = FMA_PAIR.format(dtype=self.dtype, ptx=PTX_TYPES[self.dtype]) + source
        if what == "nibbles":
            source = AND_OR + source
        do(c_call("void", f"fragment_{what}_{self.dtype}", *arguments, source=source))

    def multiply(self, half: int, sums: Any, rows: int, views: list[Any], begins: bool) -> None:
        """Begin to multiply a set by `rows` rows of x, a view for each step; if it `begins`, sums do so there."""
        kind = PTX_TYPES[self.dtype]
        name = f"wgmma.mma_async.sync.aligned.m64n{rows}k16.f32.{kind}.{kind}"
        own = [sums[i] for i in range(rows // 2)]
        for step, view in enumerate(views):
            words = [self.words[self._at(half, step) + i] for i in range(4)]
            do(T.ptx[name](*own, *words, view, tirx.const(step > 0 or not begins, "bool"), 1, 1, 0))


def variables(name: str, count: int, dtype: str) -> Any:
    """Return registers of a thread."""
    registers = T.alloc_local((count,), dtype)
    IRBuilder.name(name, registers)
    return registers
