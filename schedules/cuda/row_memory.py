"""Vectors of a row between device memory and registers: up to 16 bytes at once, floats inside."""

from __future__ import annotations

from typing import Any

from tvm import DataType
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.words import c_call, do

VECTOR_BYTES = 16
_WORDS = {16: "uint4", 8: "uint2", 4: "unsigned", 2: "unsigned short"}
BITS = {"float32": "unsigned", "float16": "unsigned short", "bfloat16": "unsigned short"}
_TO_FLOAT = {
    "float32": "__uint_as_float(e)",
    "float16": "__half2float(__ushort_as_half(e))",
    "bfloat16": "__uint_as_float(static_cast<unsigned>(e) << 16)",
}
FROM_FLOAT = {
    "float32": "__float_as_uint(x)",
    "float16": "__half_as_ushort(__float2half_rn(x))",
    "bfloat16": "__bfloat16_as_ushort(__float2bfloat16_rn(x))",
}
INCLUDE = "\n#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n"
_LOAD = """
__forceinline__ __device__ void {name}(unsigned* out, const void* memory) {{
  union {{ {word} word; unsigned parts[{parts}]; }} loaded;
  loaded.parts[0] = 0;
  loaded.word = {load}(reinterpret_cast<const {word}*>(memory));
#pragma unroll
  for (int i = 0; i < {parts}; ++i) out[i] = loaded.parts[i];
}}
"""
_UNPACK = (
    INCLUDE
    + """
__forceinline__ __device__ void {name}(float* out, const unsigned* in) {{
#pragma unroll
  for (int i = 0; i < {width}; ++i) {{
    const {bits} e = static_cast<{bits}>({piece});
    out[i] = {to_float};
  }}
}}
"""
)
_STORE = (
    INCLUDE
    + """
__forceinline__ __device__ void {name}(void* memory, const float* in) {{
  union {{ {word} word; {bits} items[{width}]; }} stored;
#pragma unroll
  for (int i = 0; i < {width}; ++i) {{
    const float x = in[i];
    stored.items[i] = {from_float};
  }}
  {store}(reinterpret_cast<{word}*>(memory), stored.word);
}}
"""
)


def vector_width(dtype: str, cols: int) -> int:
    """Return how many elements one access can take in every row of `cols` elements."""
    width = VECTOR_BYTES // int(DataType(dtype).itemsize)
    while cols % width:
        width //= 2
    return width


def parts_of(dtype: str, width: int) -> int:
    """Return how many registers hold `width` elements as they lie in memory."""
    return max(1, width * int(DataType(dtype).itemsize) // 4)


def load_vector(registers: Any, at: int, pointer: Any, dtype: str, width: int, how: str = "__ldcs") -> None:
    """Read `width` elements as they are to the 32-bit `registers[at:]`.

    `how` is CUDA's function for it: "__ldcs" for what is read once, "__ldg" for what is read
    again, "*" for shared memory.
    """
    name = f"load_{dtype}_{width}_{how.strip('_').replace('*', 'plain')}"
    source = _LOAD.format(name=name, word=_word(dtype, width), parts=parts_of(dtype, width), load=how)
    do(c_call("void", name, T.address_of(registers[at]), pointer, source=source))


def unpack(floats: Any, to: int, registers: Any, at: int, dtype: str, width: int) -> None:
    """Turn what `load_vector` read into floats."""
    piece = "in[i]" if DataType(dtype).itemsize == 4 else "in[i / 2] >> 16 * (i % 2)"
    name = f"unpack_{dtype}_{width}"
    source = _UNPACK.format(name=name, bits=BITS[dtype], width=width, piece=piece, to_float=_TO_FLOAT[dtype])
    do(c_call("void", name, T.address_of(floats[to]), T.address_of(registers[at]), source=source))


def store_vector(pointer: Any, registers: Any, at: int, dtype: str, width: int, once: bool = False) -> None:
    """Write the floats `registers[at:]`, rounded, as `width` elements at `pointer`."""
    name = f"store_{dtype}_{width}{'_once' if once else ''}"
    source = _STORE.format(
        name=name,
        word=_word(dtype, width),
        bits=BITS[dtype],
        width=width,
        store="__stcs" if once else "__stwb",
        from_float=FROM_FLOAT[dtype],
    )
    do(c_call("void", name, pointer, T.address_of(registers[at]), source=source))


def _word(dtype: str, width: int) -> str:
    return _WORDS[width * DataType(dtype).itemsize]
