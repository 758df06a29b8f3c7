from __future__ import annotations

from pathlib import Path

import pytest

from tests.schedules.cuda.compiled import compiled
from tests.schedules.cuda.emulated import TensorMap, needs_emulator
from tests.schedules.cuda.products import Launch, blocks_of, error_here
from tvmops.ops import op_of
from tvmops.schedules.cuda.kernels.weight_only_wgmma import PANEL, shared_bytes
from tvmops.schedules.cuda.weight_only_product import product_of
from tvmops.schedules.cuda.weight_only_wgmma import WeightOnlyWgmma, is_legal, tiles_of
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = WeightOnlyWgmma()
H200 = target("nvidia-h200")


def product(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul_weight_only", m=m, n=n, k=k, **{"dtype": "float16", **fields})


def config(
    rows: int, groups: int, stages: int, splits: int = 1, beside: int = 1, chained: int = 0
) -> Config:
    return Config.of(
        rows=rows, groups=groups, stages=stages, splits=splits, beside=beside, chained=chained
    )  # fmt: skip


CASES = [
    (product(24, 64, 512), config(24, 1, 3)),
    (product(17, 50, 296), config(24, 1, 2, beside=2)),  # odd m; columns and k end within a tile
    (product(45, 135, 328, group=32, zero_points=True), config(24, 1, 3, chained=1)),  # odd n, two bands of rows
    (product(40, 136, 192, bits=8, bias=True, activation="relu"), config(40, 2, 2)),
    (product(31, 84, 320, bits=8, dtype="bfloat16", zero_points=True, group=64), config(16, 1, 2, 2)),
    (product(70, 132, 264, dtype="bfloat16", zero_points=True, bias=True), config(96, 2, 2, 2, chained=2)),
    (product(9, 40, 1000, group=256, activation="silu"), config(16, 1, 4)),
    (product(130, 1032, 136, zero_points=True, bits=8), config(128, 1, 2)),
]


@pytest.mark.parametrize("work, knobs", CASES, ids=[f"{work} {knobs}" for work, knobs in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        cubin, tiles = compiled(TEMPLATE, work, H200, knobs), tiles_of(knobs, H200)
        x, *_ = op_of(work).random_inputs(work, seed=1)
        blocks = blocks_of(work, tiles.rows, tiles.bn)
        grid = blocks * tiles.splits if tiles.splits > 1 else min(blocks, tiles.beside * H200.cores)
        launch = Launch(grid, tiles.splits, shared_bytes(product_of(work), tiles))
        boxes = {"v": TensorMap.of(x, x.shape[::-1], (PANEL, tiles.rows))}
        error = error_here(cubin, work, launch, tmp_path, boxes)
        assert error <= op_of(work).tolerance(work)
