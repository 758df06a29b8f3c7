"""Dot products of words on x86."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.dot import Dot, Value, constant, dtype_of, lanes_of
from tvmops.schedules.cpu.emit import broadcast


class Vnni(Dot):
    """Four products a lane by one instruction (AVX-512 VNNI)."""

    name = "vpdpbusd"
    dtype = "int32"

    def add(self, total: Value, left: Value, right: Value) -> Value:
        width = lanes_of(total)
        name = f"llvm.x86.avx512.vpdpbusd.{32 * width}"
        a, b = (T.reinterpret(f"int8x{4 * width}", word) for word in (left, right))
        return T.call_llvm_pure_intrin(dtype_of(total), name, total, a, b)


class Pairs(Dot):
    """Two products a lane, of the even and then of the odd values, by `vpmaddwd` (AVX2, AVX-512)."""

    name = "vpmaddwd"
    parts = 2
    dtype = "int32"

    def left(self, word: Value, part: int) -> Value:
        return (word >> constant(8 * part, word)) & constant(0x00FF00FF, word)

    def right(self, word: Value, part: int) -> Value:
        width = lanes_of(word)
        halves = T.reinterpret(f"int16x{2 * width}", word)
        eight = broadcast(tirx.const(8, "int16"), 2 * width)
        low = halves if part else halves << eight
        return T.reinterpret(dtype_of(word), low >> eight)

    def add(self, total: Value, left: Value, right: Value) -> Value:
        width = lanes_of(total)
        name = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[width]
        a, b = (T.reinterpret(f"int16x{2 * width}", word) for word in (left, right))
        return total + T.call_llvm_pure_intrin(dtype_of(total), name, a, b)


class Bfloat16(Dot):
    """Two products a lane by `vdpbf16ps`.

    It takes denormals for zeros, and rounds the odd products' sum before the even ones'. TVM's
    own types have no bfloat16 for LLVM, hence a function in LLVM's language, which is inlined.
    """

    name = "vdpbf16ps"
    dtype = "float32"
    llvm = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define linkonce_odr hidden <16 x float> @tvmops_dpbf16ps(<16 x float> %c, <16 x i32> %a, <16 x i32> %b)
    alwaysinline nounwind {
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %d = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(
    <16 x float> %c, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %d
}
"""

    def add(self, total: Value, left: Value, right: Value) -> Value:
        return tirx.call_pure_extern(dtype_of(total), "tvmops_dpbf16ps", total, left, right)
