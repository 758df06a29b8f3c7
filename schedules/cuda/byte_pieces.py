"""Pieces of 16 bytes on their way from an array of bytes to shared memory; `pieces` does so for 16 bits."""

from __future__ import annotations

from typing import Any

from tvmops.schedules.cuda.words import c_call

BYTES = 16  # of a piece

# Those from the `valid`-th on become 0.
_COPY_ASYNC = """
__forceinline__ __device__ void copy_bytes_{vector}(unsigned to, const void* from, int row, int pitch,
                                                    int column, int valid) {{
  const char* at = static_cast<const char*>(from);
  if (valid > 0) at += static_cast<long long>(row) * pitch + column;
#pragma unroll
  for (int i = 0; i < 16; i += {vector}) {{
    const int left = min(max(valid - i, 0), {vector});
    asm volatile("cp.async.{cache}.shared.global [%0], [%1], {vector}, %2;" ::
                 "r"(to + i), "l"(at + (left > 0 ? i : 0)), "r"(left) : "memory");
  }}
}}
"""
# For rows that begin anywhere, in two steps: to registers, and from there. What lies inside the array
# is read by aligned words, which are shifted.
_FETCH = """
__forceinline__ __device__ void fetch_bytes(unsigned* raw, const void* from, int row, int pitch, int column,
                                            int valid) {
  const unsigned char* at = static_cast<const unsigned char*>(from);
  if (valid > 0) at += static_cast<long long>(row) * pitch + column;
  if (valid >= 20) {
    const unsigned shift = reinterpret_cast<unsigned long long>(at) % 4;
    const unsigned* words = reinterpret_cast<const unsigned*>(at - shift);
    unsigned w[5];
#pragma unroll
    for (int i = 0; i < 5; ++i) w[i] = __ldg(words + i);
#pragma unroll
    for (int i = 0; i < 4; ++i) raw[i] = __funnelshift_r(w[i], w[i + 1], 8 * shift);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      raw[i] = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (4 * i + j < valid) raw[i] |= static_cast<unsigned>(__ldg(at + 4 * i + j)) << 8 * j;
    }
  }
}
"""


def copy_bytes(vector: int, to: Any, array: Any, row: Any, pitch: Any, column: Any, valid: Any) -> Any:
    """Begin to copy a piece of `row`, `vector` bytes at a time; from the `valid`-th on it is 0."""
    cache = "cg" if vector == BYTES else "ca"
    source = _COPY_ASYNC.format(vector=vector, cache=cache)
    return c_call("void", f"copy_bytes_{vector}", to, array, row, pitch, column, valid, source=source)


def fetch_bytes(raw: Any, array: Any, row: Any, pitch: Any, column: Any, valid: Any) -> Any:
    """Read a piece that begins anywhere to 4 registers."""
    return c_call("void", "fetch_bytes", raw, array, row, pitch, column, valid, source=_FETCH)
