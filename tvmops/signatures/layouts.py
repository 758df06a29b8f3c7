"""Layouts of weights that are packed once and used many times, by op and name.

A layout depends on nothing but the op and the dtype, so that one packed weight serves every
kernel, tuned or generic, on every machine. An op whose algorithms need weights of different
kinds has one layout for each; the field `packed` of a workload names it.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tvmops.signatures.aligned import CACHE_LINE, aligned_zeros
from tvmops.signatures.dtypes import bits_of
from tvmops.signatures.winograd import WinogradWeights
from tvmops.signatures.words import Words

if TYPE_CHECKING:
    from tvmops.workloads import Workload

PLAIN = "none"  # not packed
Array = NDArray[Any]


class Layout(Protocol):
    """How one op's weights lie in memory."""

    def shape(self, *sizes: int) -> tuple[int, ...]:
        """Return the shape of the packed array, of weights of these sizes."""

    def pack(self, weight: Array) -> Array:
        """Return `weight` packed, as an array of its own."""

    def unpack(self, packed: Array, *sizes: int) -> Array:
        """Return the weight of these sizes, or what is equal to it but for rounding."""


class Panels:
    """b[k, n] as [ceil(n / columns)][k][columns]: a row of a panel is one cache line.

    A kernel whose tiles are wider takes neighbouring panels. Columns beyond n are zeros.
    """

    def __init__(self, dtype: str) -> None:
        self.columns = 8 * CACHE_LINE // bits_of(dtype)

    def shape(self, *sizes: int) -> tuple[int, ...]:
        k, n = sizes
        return -(-n // self.columns), k, self.columns

    def pack(self, weight: Array) -> Array:
        k, n = weight.shape
        packed = aligned_zeros(self.shape(k, n), weight.dtype)
        whole = n // self.columns * self.columns
        packed[: n // self.columns] = weight[:, :whole].reshape(k, -1, self.columns).transpose(1, 0, 2)
        if whole < n:
            packed[-1, :, : n - whole] = weight[:, whole:]
        return packed

    def unpack(self, packed: Array, *sizes: int) -> Array:
        k, n = sizes
        rows: Array = packed.transpose(1, 0, 2).reshape(k, -1)
        return rows[:, :n]


class ConvPanels:
    """w[co, ci, kh, kw] as `Panels` of k and co: k runs over (ci, kh, kw), or over (kh, kw, ci) for NHWC.

    Here ci counts the channels of a group; panels take no notice of where one group ends.
    """

    def __init__(self, image: str) -> None:
        self.image = image
        self._order = (0, 2, 3, 1) if image == "NHWC" else (0, 1, 2, 3)
        self._panels = Panels("float32")

    def shape(self, *sizes: int) -> tuple[int, ...]:
        """Return the shape for weights of the sizes co, ci, kh and kw."""
        co, *others = sizes
        return self._panels.shape(prod(others), co)

    def pack(self, weight: Array) -> Array:
        return self._panels.pack(weight.transpose(self._order).reshape(len(weight), -1).T)

    def unpack(self, packed: Array, *sizes: int) -> Array:
        rows = self._panels.unpack(packed, prod(sizes[1:]), sizes[0]).T
        ordered = rows.reshape([sizes[axis] for axis in self._order])
        return np.ascontiguousarray(ordered.transpose(np.argsort(self._order)))


PANEL = Panels("float32").columns  # channels of a panel of `ConvPanels`

# By op, name and dtype.
LAYOUTS: dict[tuple[str, str, str], Layout] = {
    ("matmul", "panels", "float32"): Panels("float32"),
    ("matmul", "words", "bfloat16"): Words("bfloat16"),
    ("conv2d", "panels-nchw", "float32"): ConvPanels("NCHW"),
    ("conv2d", "panels-nhwc", "float32"): ConvPanels("NHWC"),
    ("conv2d", "winograd2", "float32"): WinogradWeights(2),
    ("conv2d", "winograd4", "float32"): WinogradWeights(4),
    ("matmul_int8", "words", "uint8"): Words("int8"),  # whatever a is, b is int8
    ("matmul_int8", "words", "int8"): Words("int8"),
}


def layout_names(op: str) -> tuple[str, ...]:
    """Return what the field `packed` of `op` may say."""
    return (PLAIN, *dict.fromkeys(name for owner, name, _ in LAYOUTS if owner == op))


def layout_of(workload: Workload) -> Layout:
    """Return the layout that `workload` names by its field `packed`."""
    return LAYOUTS[workload.op, str(workload["packed"]), str(workload["dtype"])]
