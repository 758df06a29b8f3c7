"""Pieces of 16 bytes on their way from an array of 16-bit elements to shared memory."""

from __future__ import annotations

from typing import Any

from tvmops.schedules.cuda.words import c_call, do, when

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

# A piece within which the array ends: behind it there is nothing that may be read.
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


class LastPieces:
    """Pieces within which an array of `size` elements ends, read by element.

    To be loaded when all others are on their way: they take many loads, one after the other.
    """

    def __init__(self, array: Any, size: Any) -> None:
        self._array, self._size = array, size
        self._pieces: list[tuple[Any, Any, Any]] = []

    def add(self, is_one: Any, out: Any, begin: Any) -> None:
        """Let the piece that begins at `begin` be loaded to four registers, if it is one."""
        self._pieces.append((is_one, out, begin))

    def load(self) -> None:
        """Load them; behind the array's end there are zeros."""
        for is_one, out, begin in self._pieces:
            with when(is_one):
                do(c_call("void", "load_last", out, self._array, begin, self._size, source=_LOAD_LAST))
