"""Elements of 16 bits: where they lie, and pairs of them in one register."""

from __future__ import annotations

from typing import Any

from tvmops.schedules.cuda.words import c_call, do

_LOAD = """
__forceinline__ __device__ unsigned load_pair(const void* memory) {
  return __ldg(static_cast<const unsigned*>(memory));
}
"""
_ELEMENT = """
__forceinline__ __device__ void* element_at(const void* array, int index) {
  return const_cast<char*>(static_cast<const char*>(array)) + 2ll * index;
}
"""
_FLOAT = """
__forceinline__ __device__ float float_at_{dtype}(const void* array, int index) {{
  const unsigned pair = __ldg(static_cast<const unsigned short*>(array) + index);
  return {value};
}}
"""
_STORE = """
__forceinline__ __device__ void store_element(void* array, int index, unsigned pair) {
  static_cast<unsigned short*>(array)[index] = static_cast<unsigned short>(pair);
}
"""
_STORE_PAIR = """
__forceinline__ __device__ void store_pair_at(void* array, int index, unsigned pair) {
  reinterpret_cast<unsigned*>(static_cast<unsigned short*>(array) + index)[0] = pair;
}
"""
_HALF = """
__forceinline__ __device__ float {half}_of_{dtype}(unsigned pair) {{
  return {value};
}}
"""
_VALUES = {
    ("bfloat16", "low"): "__uint_as_float(pair << 16)",
    ("bfloat16", "high"): "__uint_as_float(pair & 0xFFFF0000u)",
    ("float16", "low"): "__half2float(__ushort_as_half(static_cast<unsigned short>(pair)))",
    ("float16", "high"): "__half2float(__ushort_as_half(static_cast<unsigned short>(pair >> 16)))",
}


def element_at(array: Any, index: Any) -> Any:
    """Return the address of the `index`-th element of all of an array."""
    return c_call("handle", "element_at", array.data, index, source=_ELEMENT)


def float_at(dtype: str, array: Any, index: Any) -> Any:
    """Return the `index`-th element of all of an array that nobody writes."""
    source = _FLOAT.format(dtype=dtype, value=_VALUES[dtype, "low"])
    return c_call("float32", f"float_at_{dtype}", array.data, index, source=source)


def store_element(array: Any, index: Any, pair: Any) -> None:
    """Write the first of a pair as the `index`-th element of all of an array."""
    do(c_call("void", "store_element", array.data, index, pair, source=_STORE))


def store_pair_at(array: Any, index: Any, pair: Any) -> None:
    """Write a pair from the `index`-th element on, which begins at a multiple of 4 bytes."""
    do(c_call("void", "store_pair_at", array.data, index, pair, source=_STORE_PAIR))


def load_pair(pointer: Any) -> Any:
    """Return two neighbouring elements, the first at a multiple of 4 bytes, which nobody writes."""
    return c_call("uint32", "load_pair", pointer, source=_LOAD)


def low_of(dtype: str, pair: Any) -> Any:
    """Return the first element of a pair as a float."""
    return _half(dtype, "low", pair)


def high_of(dtype: str, pair: Any) -> Any:
    """Return the second element of a pair as a float."""
    return _half(dtype, "high", pair)


def _half(dtype: str, half: str, pair: Any) -> Any:
    source = _HALF.format(half=half, dtype=dtype, value=_VALUES[dtype, half])
    return c_call("float32", f"{half}_of_{dtype}", pair, source=source)
