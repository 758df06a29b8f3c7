"""Vectors of a row that begins anywhere: whole ones at once, those that cross its ends by element."""

from __future__ import annotations

from typing import Any

from tvm import DataType
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.row_memory import BITS, FROM_FLOAT, INCLUDE, VECTOR_BYTES
from tvmops.schedules.cuda.words import c_call, do

# `column` counts from the row's first element, and may lie before it; elements outside are 0.
_LOAD = """
__forceinline__ __device__ void {name}(unsigned* out, const void* row, int column, int cols{more}) {{
  const {bits}* from = static_cast<const {bits}*>(row) + column;
  if (column >= 0 && column + {width} <= cols) {{
{whole}
  }}
  union {{ unsigned parts[4]; {bits} items[{width}]; }} loaded;
#pragma unroll
  for (int i = 0; i < {width}; ++i)
    loaded.items[i] = static_cast<unsigned>(column + i) < static_cast<unsigned>(cols) ? from[i] : 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = loaded.parts[i];
}}
"""
_ALIGNED = """
    const uint4 word = {load}(reinterpret_cast<const uint4*>(from));
    out[0] = word.x, out[1] = word.y, out[2] = word.z, out[3] = word.w;
    return;"""
# Two aligned vectors, moved by whole registers and then by bits.
_SHIFTED = """
    const uint4* at = reinterpret_cast<const uint4*>(reinterpret_cast<const char*>(from) - ahead);
    if (ahead == 0 || column + 2 * {width} - ahead / static_cast<int>(sizeof({bits})) <= cols) {{
      const uint4 low = {load}(at), high = ahead ? {load}(at + 1) : low;
      unsigned parts[8] = {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
#pragma unroll
      for (int i = 0; i < 6; ++i) parts[i] = ahead & 8 ? parts[i + 2] : parts[i];
#pragma unroll
      for (int i = 0; i < 5; ++i) parts[i] = ahead & 4 ? parts[i + 1] : parts[i];
#pragma unroll
      for (int i = 0; i < 4; ++i) out[i] = __funnelshift_r(parts[i], parts[i + 1], ahead % 4 * 8);
      return;
    }}"""
_STORE = (
    INCLUDE
    + """
__forceinline__ __device__ void {name}(void* row, int column, int cols, const float* in) {{
  {bits}* to = static_cast<{bits}*>(row) + column;
  union {{ uint4 word; {bits} items[{width}]; }} stored;
#pragma unroll
  for (int i = 0; i < {width}; ++i) {{
    const float x = in[i];
    stored.items[i] = {from_float};
  }}
  if (column >= 0 && column + {width} <= cols) {{
    {store}(reinterpret_cast<uint4*>(to), stored.word);
    return;
  }}
#pragma unroll
  for (int i = 0; i < {width}; ++i)
    if (static_cast<unsigned>(column + i) < static_cast<unsigned>(cols)) to[i] = stored.items[i];
}}
"""
)


def full_width(dtype: str) -> int:
    """Return how many elements one access takes at most."""
    return VECTOR_BYTES // int(DataType(dtype).itemsize)


def load_loose(
    registers: Any, at: int, row: Any, column: Any, cols: Any, dtype: str, how: str, ahead: Any = 0
) -> None:
    """Read a vector of `row` from `column` on to the 32-bit `registers[at:]`; what is outside is 0.

    `how` is CUDA's function for it. The vector begins `ahead` bytes after an aligned place.
    """
    aligned = isinstance(ahead, int) and ahead == 0
    name = f"load_{'part' if aligned else 'shifted'}_{dtype}_{how.strip('_')}"
    width = full_width(dtype)
    whole = (_ALIGNED if aligned else _SHIFTED).format(load=how, bits=BITS[dtype], width=width)
    more = "" if aligned else ", int ahead"
    source = _LOAD.format(name=name, bits=BITS[dtype], width=width, whole=whole, more=more)
    place = [T.address_of(registers[at]), row, column, cols]
    do(c_call("void", name, *place, *([] if aligned else [ahead]), source=source))


def store_loose(row: Any, column: Any, cols: Any, floats: Any, at: int, dtype: str, once: bool) -> None:
    """Write the floats `floats[at:]`, rounded, to the vector of `row` at `column`: what is within the row."""
    name = f"store_part_{dtype}{'_once' if once else ''}"
    source = _STORE.format(
        name=name,
        bits=BITS[dtype],
        width=full_width(dtype),
        store="__stcs" if once else "__stwb",
        from_float=FROM_FLOAT[dtype],
    )
    do(c_call("void", name, row, column, cols, T.address_of(floats[at]), source=source))
