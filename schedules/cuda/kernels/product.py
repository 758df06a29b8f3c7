"""What kernels of matrix products on CUDA cores and by mma.sync multiply, and what follows the sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.activation import activate


@dataclass(frozen=True)
class Product:
    """What is multiplied: sizes, how the arrays lie, and what follows the sum."""

    m: Extent
    n: Extent
    k: Extent
    batch: Extent  # 1: arrays of two dimensions
    shared: str
    dtype: str
    trans_a: bool
    trans_b: bool
    bias: bool
    residual: bool
    activation: str

    @property
    def is_batched(self) -> bool:
        return not (isinstance(self.batch, int) and self.batch == 1)


def finished(product: Product, bias: Any, residual: Any, value: Any, place: list[Any], column: Any) -> Any:
    """Return what becomes of a sum: bias and residual are arrays, or None."""
    if bias is not None:
        value = value + T.Cast("float32", bias[column])
    if residual is not None:
        value = value + T.Cast("float32", residual[(*place, column)])
    return activate(product.activation, value)
