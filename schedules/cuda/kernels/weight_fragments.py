"""Packed integer weights on their way to wgmma, as its first factor, through registers.

A thread of a warp has two rows of a wgmma, here two neighbouring columns of the weights, and of 16
values of k the pairs 2 t, 2 t + 1 and 8 + 2 t, 9 + 2 t, if t is its place among four. It reads the
words that hold them, of both columns at once, picks its bytes, and makes floats of their integers less
their zero point, exactly (see `dequantize`). Four threads read the same words of nibbles and take a
quarter each: that costs reads of shared memory, which are few, and leaves x in the order that it has.
Fragments come in two sets: one is made while products of the other are.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.dequantize import AND_OR, FMA_PAIR
from tvmops.schedules.cuda.kernels.gemm_fragments import LOAD_TWO
from tvmops.schedules.cuda.weight_only_product import BK, WeightOnlyProduct
from tvmops.schedules.cuda.words import PTX_TYPES, Scalar, c_call, do, pack

ROW_BYTES = 64  # of packed weights, of a panel
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
__forceinline__ __device__ void fragment_bytes_bfloat16(unsigned* out, unsigned low, unsigned high, unsigned pick,
                                                        float zero) {
  const unsigned magic = 0x4B000000u;
  out[0] = pack_bfloat16(__uint_as_float(__byte_perm(low, magic, pick)) - zero,
                         __uint_as_float(__byte_perm(low, magic, pick + 1)) - zero);
  out[2] = pack_bfloat16(__uint_as_float(__byte_perm(high, magic, pick)) - zero,
                         __uint_as_float(__byte_perm(high, magic, pick + 1)) - zero);
}
"""
_TEXTS = {
    ("nibbles", "float16"): _NIBBLES_FLOAT16,
    ("nibbles", "bfloat16"): _NIBBLES_BFLOAT16,
    ("bytes", "float16"): _BYTES_FLOAT16,
    ("bytes", "bfloat16"): _BYTES_BFLOAT16,
}


class WeightFragments:
    """What a thread multiplies of its warp's panel of weights.

    Parameters
    ----------
    base
        The shared-memory address of the panel in the first stage, as it is packed: group after group.
    """

    def __init__(self, product: WeightOnlyProduct, base: Any, stage_bytes: int, lane: Any) -> None:
        self.product, self.stage_bytes = product, stage_bytes
        self.steps = min(product.group, BK // 2) // STEP  # of a set
        self.words = variables("words", 2 * self.steps * 4, "uint32")
        self.raw = variables("raw", 4, "uint32")
        self.factors = variables("factors", 2, "uint32")
        self.lane, self.bits, self.dtype = lane, product.groups.bits, product.dtype
        place = T.truncmod(lane, 4)
        self.odd, self.upper = T.truncmod(place, 2), T.truncdiv(place, 2)
        own = T.truncdiv(lane, 4) * 8
        self.heads = Scalar(base + T.Cast("uint32", own), "uint32")()
        rows = self.upper * ROW_BYTES if self.bits == 8 else 0
        self.places = Scalar(base + T.Cast("uint32", own + rows), "uint32")()
        self._constants()

    @property
    def group_bytes(self) -> int:
        """Bytes of a panel's group, as far as a stage has it."""
        return group_rows(self.product) * ROW_BYTES

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
        self._load_two(self.factors, 0, self.heads, stage, group * self.group_bytes + row * ROW_BYTES)
        return [tirx.reinterpret("float32", self.factors[i]) for i in range(2)]

    def load_zero_points(self, stage: Any, group: int) -> None:
        if self.product.heads > 1:
            for term, zero in zip(self.terms, self._head(stage, group, 1)):
                term.set(self._term(zero))

    def load_scales(self, scales: Any, stage: Any, group: int) -> None:
        for i, scale in enumerate(self._head(stage, group, 0)):
            T.buffer_store(scales, scale, [i])

    def _at(self, half: int, step: int) -> int:
        return (half * self.steps + step) * 4

    def load(self, stage: Any, group: int, batch: int, half: int) -> None:
        """Make the `half`-th set of the `batch`-th steps of a stage's group."""
        apart = 16 // self.product.groups.step // 2  # rows from the first eight values of k to the others
        for step in range(self.steps):
            row = self.product.heads + (batch * self.steps + step) * 2 * apart
            for i in range(2):
                inside = group * self.group_bytes + (row + i * apart) * ROW_BYTES
                self._load_two(self.raw, 2 * i, self.places, stage, inside)
            for column in range(2):
                out = T.address_of(self.words[self._at(half, step) + column])
                own = self.raw[column], self.raw[2 + column]
                term = self.terms[column % len(self.terms)]()
                self._expand(out, *own, self.pick, *self.before, term)

    def _load_two(self, to: Any, at: int, place: Any, stage: Any, inside: int) -> None:
        address = place + T.Cast("uint32", stage * self.stage_bytes + inside)
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


def group_rows(product: WeightOnlyProduct) -> int:
    """Return how many rows of a panel's group a stage has."""
    return product.heads + product.group // product.groups.step


def variables(name: str, count: int, dtype: str) -> Any:
    """Return registers of a thread."""
    registers = T.alloc_local((count,), dtype)
    IRBuilder.name(name, registers)
    return registers
