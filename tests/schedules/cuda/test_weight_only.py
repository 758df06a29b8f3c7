from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.schedules.cuda.compiled import compiled
from tests.schedules.cuda.emulated import emulated, needs_emulator
from tvmops.ops import op_of
from tvmops.schedules.cuda.kernels.weight_only import shared_bytes
from tvmops.schedules.cuda.weight_only import WeightOnlyMma, product_of, tiles_of
from tvmops.signatures.dtypes import decode
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = WeightOnlyMma()
H200 = target("nvidia-h200")
GUARD = 64  # elements


def product(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul_weight_only", m=m, n=n, k=k, **{"dtype": "float16", **fields})


def config(rows: int, pairs: int, warps_n: int, warps_k: int, stages: int, vector: int = 8) -> Config:
    return Config.of(
        rows=rows, pairs=pairs, warps_n=warps_n, warps_k=warps_k, stages=stages, vector=vector
    )  # fmt: skip


CASES = [
    (product(1, 64, 512), config(1, 1, 1, 2, 3)),
    (product(1, 50, 300), config(1, 1, 1, 1, 2, 1)),  # rows of x begin anywhere; odd n
    (product(11, 84, 328, group=32, zero_points=True), config(2, 1, 2, 2, 2)),  # k ends within a group
    (product(5, 36, 192, bits=8, bias=True, activation="relu"), config(1, 1, 1, 2, 2)),
    (product(3, 44, 320, bits=8, dtype="bfloat16", zero_points=True, group=64), config(1, 1, 2, 1, 4)),
    (product(19, 132, 264, dtype="bfloat16", zero_points=True, bias=True), config(4, 2, 1, 2, 2)),
    (product(9, 40, 1000, group=256, activation="silu"), config(1, 1, 1, 4, 2)),
]


@pytest.mark.parametrize("work, knobs", CASES, ids=[str(work) for work, _ in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        cubin = compiled(TEMPLATE, work, H200, knobs)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        op, dtype, tiles = op_of(work), str(work["dtype"]), tiles_of(knobs)
        inputs = op.random_inputs(work, seed=1)
        specs = op.inputs(work)
        (right,) = op.reference(work, *(decode(a, s.dtype) for a, s in zip(inputs, specs)))
        m, n, k = work.dims("m", "n", "k")
        memory = np.full(right.size + 2 * GUARD, 0xFFFF, np.uint16).view(inputs[0].dtype)  # NaN
        arguments: dict[str, object] = dict(zip((spec.name for spec in specs), inputs))
        arguments |= {"c": memory[GUARD:-GUARD].reshape(right.shape), "m": m, "n": n, "k": k}
        grid = -(-m // tiles.bm) * -(-n // tiles.bn)
        shared = shared_bytes(product_of(work), tiles)
        emulated(cubin, tmp_path)(grid, arguments, shared_bytes=shared)
        bits = memory.view(np.uint16)
        assert (bits[:GUARD] == 0xFFFF).all() and (bits[-GUARD:] == 0xFFFF).all()
        found = decode(memory[GUARD:-GUARD].reshape(right.shape), dtype).astype(np.float64)
        assert np.abs(found - right).max() <= op.tolerance(work)
