"""Integer weights with a scale for each group of k, in the order in which a thread reads them.

For 16 columns and one group: a row of their scales (float32), a row of their zero points (float32,
where there are any), and rows of 64 bytes with the group's integers, as unsigned offsets. A row
holds four values of k of each column, as bytes; or eight as nibbles, the first four in the low bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvmops.signatures.aligned import CACHE_LINE, aligned_zeros
from tvmops.signatures.words import COLUMNS

Array = NDArray[Any]


@dataclass(frozen=True)
class WeightGroups:
    """How weights of n columns and k rows lie."""

    bits: int  # 4 or 8
    group: int  # neighbours of k that share a scale
    has_zero_points: bool

    @property
    def step(self) -> int:
        """How many values of k a row of 64 bytes holds for each column."""
        return 32 // self.bits

    @property
    def zero(self) -> int:
        """The offset that stands for 0 where there are no zero points."""
        return 1 << (self.bits - 1)

    @property
    def rows(self) -> int:
        """How many rows of 64 bytes a group takes."""
        return 1 + self.has_zero_points + self.group // self.step

    def shape(self, n: int, k: int) -> tuple[int, int, int]:
        return -(-n // COLUMNS), -(-k // self.group) * self.rows, CACHE_LINE

    def pack(self, offsets: Array, scales: Array, zero_points: Array | None) -> Array:
        """Pack unsigned `offsets` (n, k), `scales` and `zero_points` (n, groups)."""
        n, k = offsets.shape
        groups = -(-k // self.group)
        panels = -(-n // COLUMNS)
        packed: Array = aligned_zeros(self.shape(n, k), np.uint8)
        blocks = packed.reshape(panels, groups, self.rows, CACHE_LINE)
        for row, values in enumerate([scales] if zero_points is None else [scales, zero_points]):
            padded = np.zeros((panels * COLUMNS, groups), np.float32)
            padded[:n] = values
            own = np.ascontiguousarray(padded.reshape(panels, COLUMNS, groups).transpose(0, 2, 1))
            blocks[:, :, row] = own.view(np.uint8)
        padded_offsets = np.zeros((panels * COLUMNS, groups * self.group), np.uint8)
        padded_offsets[:n, :k] = offsets
        words = padded_offsets.reshape(panels, COLUMNS, groups, self.group // self.step, self.step)
        words = words.transpose(0, 2, 3, 1, 4)
        if self.bits == 4:
            words = words[..., :4] | words[..., 4:] << 4
        blocks[:, :, 1 + self.has_zero_points :] = words.reshape(panels, groups, -1, CACHE_LINE)
        return packed

    def unpack(self, packed: Array, n: int, k: int) -> NDArray[np.float64]:
        """Return the weights (n, k) that `packed` stands for."""
        offsets, scales, zeros = (each.astype(np.float64) for each in self.parts(packed, n))
        grouped = offsets.reshape(n, -1, self.group)
        weights: NDArray[np.float64] = (grouped - zeros[..., None]) * scales[..., None]
        return weights.reshape(n, -1)[:, :k]

    def parts(self, packed: Array, n: int) -> tuple[Array, Array, Array]:
        """Return offsets (n, k rounded up to groups), scales and zero points (n, groups) of `packed`."""
        panels = packed.shape[0]
        groups = packed.shape[1] // self.rows
        blocks = packed.reshape(panels, groups, self.rows, CACHE_LINE)
        head = 1 + self.has_zero_points
        floats = np.ascontiguousarray(blocks[:, :, :head]).view(np.float32)
        words = blocks[:, :, head:].reshape(panels, groups, -1, COLUMNS, 4)
        if self.bits == 4:
            words = np.concatenate([words & 15, words >> 4], axis=-1)
        offsets = words.transpose(0, 3, 1, 2, 4).reshape(panels * COLUMNS, groups * self.group)
        scales, *zeros = (floats[:, :, row].transpose(0, 2, 1).reshape(-1, groups)[:n] for row in range(head))
        return offsets[:n], scales, zeros[0] if zeros else np.full_like(scales, self.zero)
