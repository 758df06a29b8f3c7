"""Sizes and knobs of the attention kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent

COLUMNS = 64  # of 2 bytes: a row of the 128-byte swizzle
ROWS = 64  # of a wgmma
IN_PAIRS = 0
FOUND = 8  # words of what a block knows of packed sequences
TOLD = 8  # words that each warpgroup is told of a tile of packed sequences
END = 1 << 30  # of the rows of a packed sequence, as the copy engine sees them
_LEAST_SCALE = 1e-30  # below, scores differ by nothing that shows; 0 times -inf would be NaN
_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Heads:
    """The sizes of an attention."""

    batch: Extent
    heads: Extent
    kv_heads: Extent
    q_len: Extent
    kv_len: Extent
    head_dim: int
    causal: bool
    below_right: bool  # the last query sees the last key
    dtype: str
    lengths: bool  # sequences have fewer keys than kv_len
    mask: str  # its dtype, "" without one
    mask_dims: str  # the letters of its dimensions that are not 1

    def offset(self, length: Extent) -> Extent:
        """Return the last of `length` keys that query 0 sees under a causal mask."""
        return length - self.q_len if self.causal and self.below_right else 0


@dataclass(frozen=True)
class Tiles:
    """The knobs. `blocks` thread blocks stay on the machine and share the tiles of queries."""

    consumers: int
    bn: int
    stages: int
    take_turns: bool
    own_out: bool  # out leaves through memory of its own, so that q's is free for the next tile
    together: int  # causal: heads walked side by side, the longest rows first; or IN_PAIRS
    blocks: int

    @property
    def bm(self) -> int:
        return ROWS * self.consumers

    @property
    def registers(self) -> tuple[int, int]:
        """Registers of a thread of the producer, and of a consumer."""
        return {2: (24, 240), 3: (32, 160)}[self.consumers]


def shared_bytes(head_dim: int, tiles: Tiles, packed: bool = False) -> int:
    columns = 2 * COLUMNS * -(-head_dim // COLUMNS)
    rows = tiles.bm * (1 + tiles.own_out) + 2 * tiles.stages * tiles.bn
    told = 4 * (FOUND + 2 * TOLD * tiles.consumers) if packed else 0
    return rows * columns + 16 * (2 * tiles.stages + tiles.consumers) + told


def least_scale(scale: Any) -> Any:
    """Return what turns scores into exponents of 2; q takes the sign of a negative scale."""
    return tirx.max(tirx.abs(scale) * T.float32(_LOG2_E), T.float32(_LEAST_SCALE))


def mask_argument(sizes: Heads) -> Any:
    """Declare the mask as an argument of the function that is being written."""
    named = {"b": sizes.batch, "h": sizes.heads, "q": sizes.q_len}
    shape = [size if letter in sizes.mask_dims else 1 for letter, size in named.items()]
    align = 4 if sizes.mask == "float32" else 1
    return T.arg("mask", T.buffer((*shape, sizes.kv_len), sizes.mask, align=align, buffer_name="mask"))


def masked(score: Any, mask: Any, sizes: Heads, factor: Any, at: tuple[Any, Any, Any, Any]) -> Any:
    """Return a score, still to be multiplied by `factor`, under its element of the mask."""
    *places, key = at
    where = [place if letter in sizes.mask_dims else 0 for letter, place in zip("bhq", places)]
    element = mask[(*where, tirx.min(key, sizes.kv_len - 1))]
    if sizes.mask == "float32":
        return score + element * (T.float32(_LOG2_E) / factor)
    return tirx.Select(element != T.uint8(0), score, unseen())


def unseen() -> Any:
    """Return the score of a key that a query does not see."""
    return tirx.const(-math.inf, "float32")
