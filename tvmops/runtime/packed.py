"""`PackedWeight`: a weight that was packed once for the kernels that multiply by it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tvmops.runtime.arrays import as_numpy
from tvmops.signatures.layouts import LAYOUTS


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """What `Library.pack` returns; it takes a weight's place in a call of the same op.

    It holds a copy: later changes of the weight do not reach it.

    Attributes
    ----------
    op
        Whose weight it is.
    shape
        What the weight's shape was, transposition undone: (k, n) for a matmul.
    dtype
        Of its elements.
    layout
        How `array` holds them, by its name in `tvmops.signatures.layouts`.
    array
        What kernels read.
    """

    op: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    array: Any

    @cached_property
    def plain(self) -> Any:
        """The weight, unpacked: for calls that no kernel answers as it is."""
        array = as_numpy(self.op, "weight", self.array)
        return LAYOUTS[self.op, self.layout, self.dtype].unpack(array, *self.shape)

    @property
    def nbytes(self) -> int:
        return int(self.array.nbytes)

    def __repr__(self) -> str:
        return f"PackedWeight(op={self.op}, shape={self.shape}, dtype={self.dtype}, layout={self.layout})"
