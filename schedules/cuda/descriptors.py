"""How wgmma sees matrices in shared memory, of 128-byte swizzle; offsets in units of 16 bytes."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T


def rows_by_depth(address: Any) -> Any:
    """Describe rows whose 64 elements lie along the sum's axis: 8 rows are 1024 bytes."""
    return _descriptor(address, leading=1, stride=64)


def depth_by_columns(address: Any, rows: int) -> Any:
    """Describe rows that are the sum's axis; the next 64 columns are `rows` rows on."""
    return _descriptor(address, leading=rows * 8, stride=64)


def _descriptor(address: Any, leading: int, stride: int) -> Any:
    swizzle_128 = 1 << 62
    fixed = T.uint64(swizzle_128 | stride << 32 | leading << 16)
    return fixed | T.Cast("uint64", (address >> T.uint32(4)) & T.uint32(0x3FFF))
