"""What tests of matrix products have in common: shapes with their reasons, and running a kernel here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.schedules.cuda.emulated import TensorMap, emulated
from tvmops.measure.cuda import Cubin
from tvmops.ops import op_of
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.signatures import SIGNATURES
from tvmops.signatures.dtypes import decode, stored
from tvmops.workloads import Workload, workload

_GUARD = 256  # bytes before and behind a result
_POISON = 0xFF  # of floats a NaN

# Of float32, for kernels on CUDA cores: short last tiles, less k than a step, a batch, transposes.
FLOAT32 = {
    "short": workload("matmul", m=37, n=60, k=35),
    "brief": workload(
        "matmul", m=17, n=35, k=9, trans_a=True, trans_b=True, batch=3, bias=True, residual=True,
        activation="gelu",
    ),
    "shared": workload("matmul", m=24, n=70, k=40, batch=2, shared="b", activation="silu"),
    "a across": workload("matmul", m=72, n=140, k=33, trans_a=True),
    "b along": workload("matmul", m=20, n=130, k=52, trans_b=True),
    "fours": workload("matmul", m=33, n=68, k=44, batch=2, bias=True),
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    grid: int
    cluster: int = 1
    shared_bytes: int = 0


def blocks_of(work: Workload, bm: int, bn: int) -> int:
    """Return how many tiles a product has."""
    m, n = work.dims("m", "n")
    batch = work.dims("batch")[0] if "batch" in dict(work.items) else 1
    return -(-m // bm) * -(-n // bn) * batch


def boxes_of(work: Workload, tiles: Tiles, a: NDArray[Any], b: NDArray[Any]) -> dict[str, TensorMap]:
    """Describe factors that lie along k to the copy engine, in elements of 16 bits, as `gemm` does."""
    sizes = ((a, tiles.bm), (b, tiles.bn // tiles.cluster))
    halves = [(array.view(np.uint16), box) for array, box in sizes]
    maps = [
        TensorMap.of(array, array.shape[::-1], (64, box, *[1] * (array.ndim - 2))) for array, box in halves
    ]
    return dict(zip(("v", "v_1"), maps))


def boxes_across(work: Workload, tiles: Tiles, a: NDArray[Any], b: NDArray[Any]) -> dict[str, TensorMap]:
    """Describe floats of which the first factor lies across k, or the second, which is then the first."""
    first, second = (a, b) if work["trans_a"] else (b, a)
    boxes = ((first, tiles.bk // 2), (second, tiles.bn // tiles.cluster))
    halves = [(array.view(np.uint16), box) for array, box in boxes]
    maps = [
        TensorMap.of(array, array.shape[::-1], (64, box, *[1] * (array.ndim - 2))) for array, box in halves
    ]
    return dict(zip(("v", "v_1"), maps))


def error_here(
    cubin: Cubin,
    work: Workload,
    launch: Launch,
    folder: Path,
    more: Mapping[str, object] | None = None,
    number: int = 0,
) -> float:
    """Run a product's kernel on this machine; return its largest error, when it wrote where it should.

    `more` are arguments of the kernel beside the arrays, scalars and sizes that `work` has; of more
    kernels it is the one of this number.
    """
    op = op_of(work)
    inputs, specs, (out,) = op.random_inputs(work, seed=1), op.inputs(work), op.outputs(work)
    (right,) = op.reference(work, *(decode(array, spec.dtype) for array, spec in zip(inputs, specs)))
    dtype = np.dtype(stored(out.dtype))
    memory = np.full(right.size * dtype.itemsize + 2 * _GUARD, _POISON, np.uint8)
    found = memory[_GUARD:-_GUARD].view(dtype).reshape(right.shape)
    sizes = {name: value for name, value in work.items if isinstance(value, int)}
    scalars = dict(zip(SIGNATURES[work.op].scalars(work), op.scalars(work)))
    arrays = dict(zip((spec.name for spec in specs), inputs))
    arguments = {**sizes, **scalars, **arrays, **(more or {}), "c": found}
    emulated(cubin, folder, number)(launch.grid, arguments, launch.cluster, shared_bytes=launch.shared_bytes)
    assert (memory[:_GUARD] == _POISON).all() and (memory[-_GUARD:] == _POISON).all()
    return float(np.abs(decode(found, out.dtype).astype(np.float64) - right).max())
