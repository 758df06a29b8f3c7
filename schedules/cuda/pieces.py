"""Pieces of 16 bytes on their way from an array of 16-bit elements to shared memory."""

from __future__ import annotations

from typing import Any

from tvmops.schedules.cuda.words import c_call, do

PIECE = 8  # elements: 16 bytes

# 8 elements to shared memory; those from the `valid`-th on become 0.
_COPY_ASYNC = """
__forceinline__ __device__ void copy_piece_{name}(unsigned to, const void* from, int row, int pitch,
                                                    int column, int valid) {{
  const char* at = static_cast<const char*>(from);
  if (valid > 0) at += (static_cast<long long>(row) * pitch + column) * 2;
#pragma unroll
  for (int i = 0; i < 8; i += {vector}) {{
    const int left = min(max(valid - i, 0), {vector});
    asm volatile("cp.async.{cache}.shared.global [%0], [%1], {nbytes}, %2;" ::
                 "r"(to + 2 * i), "l"(at + (left > 0 ? 2 * i : 0)), "r"(2 * left) : "memory");
  }}
}}
"""
# The same in two steps, for rows that begin anywhere: to registers, and from there.
_FETCH = """
__forceinline__ __device__ void fetch_piece(unsigned* raw, const void* from, int row, int pitch,
                                            int column, int valid) {
  const unsigned short* at = static_cast<const unsigned short*>(from);
  if (valid > 0) at += static_cast<long long>(row) * pitch + column;
#pragma unroll
  for (int i = 0; i < 8; ++i) raw[i] = i < valid ? __ldg(at + i) : 0;
}
"""
_PLACE = """
__forceinline__ __device__ void place_piece(unsigned to, const unsigned* raw) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::
               "r"(to), "r"(raw[0] | raw[1] << 16), "r"(raw[2] | raw[3] << 16),
               "r"(raw[4] | raw[5] << 16), "r"(raw[6] | raw[7] << 16) : "memory");
}
"""
_PLACE_WORDS = """
__forceinline__ __device__ void place_words(unsigned to, const unsigned* raw) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::
               "r"(to), "r"(raw[0]), "r"(raw[1]), "r"(raw[2]), "r"(raw[3]) : "memory");
}
"""

# A vector within which the array ends: behind it there is nothing.
_LOAD_LAST = """
__forceinline__ __device__ void load_last(unsigned* out, const void* array, long long begin, long long size) {
  const unsigned short* from = static_cast<const unsigned short*>(array);
  unsigned long long low = 0, high = 0;
#pragma unroll 1
  for (int i = 0; i < 8; ++i) {
    const unsigned long long next = begin + i < size ? from[begin + i] : 0;
    low = low >> 16 | high << 48;
    high = high >> 16 | next << 48;
  }
  out[0] = low, out[1] = low >> 32, out[2] = high, out[3] = high >> 32;
}
"""


def copy_piece(
    vector: int, to: Any, array: Any, row: Any, pitch: Any, column: Any, valid: Any, near: bool = False
) -> Any:
    """Begin to copy a piece of `row`, `vector` elements at a time; from the `valid`-th on it is 0.

    `near` keeps it in the L1 for other warps that will copy it.
    """
    cache = "cg" if vector == PIECE and not near else "ca"
    name = f"{vector}_near" if near else f"{vector}"
    source = _COPY_ASYNC.format(name=name, vector=vector, nbytes=2 * vector, cache=cache)
    return c_call("void", f"copy_piece_{name}", to, array, row, pitch, column, valid, source=source)


def fetch_piece(raw: Any, array: Any, row: Any, pitch: Any, column: Any, valid: Any) -> Any:
    """Read a piece that begins anywhere to 8 registers."""
    return c_call("void", "fetch_piece", raw, array, row, pitch, column, valid, source=_FETCH)


def place_piece(to: Any, raw: Any) -> Any:
    """Write what `fetch_piece` read to shared memory."""
    return c_call("void", "place_piece", to, raw, source=_PLACE)


def place_words(to: Any, raw: Any) -> Any:
    """Write a piece in four registers to shared memory."""
    return c_call("void", "place_words", to, raw, source=_PLACE_WORDS)


def load_last(out: Any, array: Any, begin: Any, size: Any) -> None:
    """Read eight elements from `begin` on, within which the array ends; behind it there are zeros."""
    do(c_call("void", "load_last", out, array, begin, size, source=_LOAD_LAST))
