"""Dot products and products of squares of words on ARM.

Both integer instructions take signed values. USDOT and USMMLA, with unsigned values on the left,
would save nothing: turning the sign of what is packed is free, and of a zero point it is a
constant. Instructions of two rows need b's words put side by side; those of one lane read b as
it lies, which few rows are better served by.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.dot import Dot, Value, dtype_of


class _Integers(Dot):
    dtype = "int32"
    is_signed = True

    def add(self, total: Value, left: Value, right: Value) -> Value:
        a, b = (T.reinterpret("int8x16", word) for word in (left, right))
        # b first: it is the second operand of SDOT that may be one lane of a vector
        operands = (b, a) if self.side == 1 else (a, b)
        name = f"llvm.aarch64.neon.{self.name}.v4i32.v16i8"
        return T.call_llvm_pure_intrin("int32x4", name, total, *operands)


class Sdot(_Integers):
    """Four products a lane (Armv8.2, asimddp)."""

    name = "sdot"
    rows = 4


class Smmla(_Integers):
    """Two rows of eight values by two columns (Armv8.6, i8mm)."""

    name = "smmla"
    rows = side = 2


def _function(instruction: str, intrinsic: str) -> str:
    """Return a function on words in LLVM's language: TVM's own types have no bfloat16 for it."""
    return f"""
declare <4 x float> @{intrinsic}(<4 x float>, <8 x bfloat>, <8 x bfloat>)
define linkonce_odr hidden <4 x float> @tvmops_{instruction}(<4 x float> %c, <4 x i32> %a, <4 x i32> %b)
    alwaysinline nounwind {{
  %x = bitcast <4 x i32> %a to <8 x bfloat>
  %y = bitcast <4 x i32> %b to <8 x bfloat>
  %d = call <4 x float> @{intrinsic}(<4 x float> %c, <8 x bfloat> %x, <8 x bfloat> %y)
  ret <4 x float> %d
}}
"""


class _Bfloat16(Dot):
    """Sums are rounded to odd and denormals taken for zeros, where a CPU has no extended bfloat16."""

    dtype = "float32"

    def add(self, total: Value, left: Value, right: Value) -> Value:
        operands = (right, left) if self.side == 1 else (left, right)
        return tirx.call_pure_extern(dtype_of(total), f"tvmops_{self.name}", total, *operands)


class Bfdot(_Bfloat16):
    """Two products a lane (Armv8.6, bf16)."""

    name = "bfdot"
    rows = 4
    llvm = _function("bfdot", "llvm.aarch64.neon.bfdot.v4f32.v8bf16")


class Bfmmla(_Bfloat16):
    """Two rows of four values by two columns (Armv8.6, bf16)."""

    name = "bfmmla"
    rows = side = 2
    llvm = _function("bfmmla", "llvm.aarch64.neon.bfmmla")
