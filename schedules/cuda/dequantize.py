"""Integers of 4 and 8 bits as pairs of 16-bit floats, in registers.

An integer is put in the mantissa of a float that is large enough for it to have the weight of
one unit (1024 in float16, 128 in bfloat16, 2^23 in float32); subtracting that float and the
zero point leaves the difference, exactly (Y. Kim et al., Who Says Elephants Can't Run,
arXiv 2211.10017). A word of eight nibbles k0..k7, whose low bits are k0..k3, gives the pairs
(k0, k2), (k4, k6), (k1, k3), (k5, k7); two words of four bytes give neighbours.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.words import PTX_TYPES, c_call, do, pack

FMA_PAIR = """
__forceinline__ __device__ unsigned fma_pair_{dtype}(unsigned a, unsigned b, unsigned c) {{
  unsigned d;
  asm("fma.rn.{ptx}x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}}
"""
# One instruction, which the compiler does not make of & and | with two constants.
AND_OR = """
__forceinline__ __device__ unsigned and_or(unsigned word, unsigned mask, unsigned magic) {
  unsigned d;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(word), "r"(mask), "r"(magic));
  return d;
}
"""
_NIBBLES_FLOAT16 = """
__forceinline__ __device__ void dequantize_nibbles_float16(unsigned* out, unsigned word, unsigned low,
                                                           unsigned high) {
  const unsigned one = 0x3C003C00u, sixteenth = 0x2C002C00u, magic = 0x64006400u;
  const unsigned shifted = word >> 8;
  out[0] = fma_pair_float16(and_or(word, 0x000F000Fu, magic), one, low);
  out[1] = fma_pair_float16(and_or(word, 0x00F000F0u, magic), sixteenth, high);
  out[2] = fma_pair_float16(and_or(shifted, 0x000F000Fu, magic), one, low);
  out[3] = fma_pair_float16(and_or(shifted, 0x00F000F0u, magic), sixteenth, high);
}
"""
_NIBBLES_BFLOAT16 = """
__forceinline__ __device__ void dequantize_nibbles_bfloat16(unsigned* out, unsigned word, unsigned low,
                                                            unsigned high) {
  const unsigned one = 0x3F803F80u, magic = 0x43004300u;
  out[0] = fma_pair_bfloat16(and_or(word, 0x000F000Fu, magic), one, low);
  out[1] = fma_pair_bfloat16(and_or(word >> 4, 0x000F000Fu, magic), one, high);
  out[2] = fma_pair_bfloat16(and_or(word >> 8, 0x000F000Fu, magic), one, low);
  out[3] = fma_pair_bfloat16(and_or(word >> 12, 0x000F000Fu, magic), one, high);
}
"""
_BYTES_FLOAT16 = """
__forceinline__ __device__ void dequantize_bytes_float16(unsigned* out, unsigned word, unsigned low) {
  const unsigned one = 0x3C003C00u, magic = 0x64646464u;
  out[0] = fma_pair_float16(__byte_perm(word, magic, 0x4140), one, low);
  out[1] = fma_pair_float16(__byte_perm(word, magic, 0x4342), one, low);
}
"""
_BYTES_BFLOAT16 = """
__forceinline__ __device__ unsigned rounded_pair(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__forceinline__ __device__ void dequantize_bytes_bfloat16(unsigned* out, unsigned word, float zero) {
  const unsigned magic = 0x4B000000u;
  const float a = __uint_as_float(__byte_perm(word, magic, 0x7440)) - zero;
  const float b = __uint_as_float(__byte_perm(word, magic, 0x7441)) - zero;
  const float c = __uint_as_float(__byte_perm(word, magic, 0x7442)) - zero;
  const float d = __uint_as_float(__byte_perm(word, magic, 0x7443)) - zero;
  out[0] = rounded_pair(a, b);
  out[1] = rounded_pair(c, d);
}
"""
# (k0, k1), (k2, k3), (k4, k5), (k6, k7) in the order of nibbles: see `dequantize`.
_PAIR_UP = """
__forceinline__ __device__ void pair_up(unsigned* x) {
  const unsigned a = x[0], b = x[1], c = x[2], d = x[3];
  x[0] = __byte_perm(a, b, 0x5410);
  x[1] = __byte_perm(c, d, 0x5410);
  x[2] = __byte_perm(a, b, 0x7632);
  x[3] = __byte_perm(c, d, 0x7632);
}
"""
_MAGIC = {"float16": 1024.0, "bfloat16": 128.0}


class Dequantizer:
    """Turns words of `bits`-bit integers, less a zero point, into pairs of `dtype`."""

    def __init__(self, bits: int, dtype: str) -> None:
        self.bits, self.dtype = bits, dtype

    def terms(self, zero: Any) -> list[Any]:
        """Return what `expand` adds for the zero point `zero`, a float of a whole number below 256."""
        if self.bits == 8 and self.dtype == "bfloat16":
            return [zero + T.float32(2.0**23)]
        magic = T.float32(-_MAGIC[self.dtype])
        low = pack(self.dtype, magic - zero, magic - zero)
        if self.bits == 8:
            return [low]
        high = magic / 16 - zero
        return [low, pack(self.dtype, high, high) if self.dtype == "float16" else low]

    def expand(self, out: Any, at: int, words: list[Any], terms: list[Any]) -> None:
        """Write four pairs, eight values of k, to `out[at:]`, of one word of nibbles or two of bytes."""
        if self.bits == 4:
            self._call("nibbles", T.address_of(out[at]), words[0], *terms)
            return
        for number, word in enumerate(words):
            self._call("bytes", T.address_of(out[at + 2 * number]), word, *terms)

    def _call(self, what: str, *arguments: Any) -> None:
        name = f"dequantize_{what}_{self.dtype}"
        do(c_call("void", name, *arguments, source=self._source(what)))

    def _source(self, what: str) -> str:
        text = _TEXTS[what, self.dtype]
        if what == "bytes" and self.dtype == "bfloat16":
            return text
        words = AND_OR if what == "nibbles" else ""
        return words + FMA_PAIR.format(dtype=self.dtype, ptx=PTX_TYPES[self.dtype]) + text


_TEXTS = {
    ("nibbles", "float16"): _NIBBLES_FLOAT16,
    ("nibbles", "bfloat16"): _NIBBLES_BFLOAT16,
    ("bytes", "float16"): _BYTES_FLOAT16,
    ("bytes", "bfloat16"): _BYTES_BFLOAT16,
}


def pair_up(registers: Any, at: int) -> None:
    """Put eight values of x, `registers[at:]`, in the order of nibbles."""
    do(c_call("void", "pair_up", T.address_of(registers[at]), source=_PAIR_UP))
