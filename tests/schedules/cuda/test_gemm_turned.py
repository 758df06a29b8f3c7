from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from tests.schedules.cuda.compiled import compiled
from tests.schedules.cuda.emulated import TensorMap, needs_emulator
from tests.schedules.cuda.products import Launch, blocks_of, error_here
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.gemm_turned import TurnedGemm
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = TurnedGemm()
H200 = target("nvidia-h200")


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"dtype": "bfloat16", **fields})


def knobs(bm: int, bn: int, **more: int) -> Config:
    plain = {
        "bk": 64,
        "consumers": bm // 64,
        "cluster": 1,
        "split_k": 2,
        "group": 1,
        "beside": 1,
        "chained": 1,
    }
    return Config.of(**{"bm": bm, "bn": bn, **plain, **more})


def boxes(work: Workload, tiles: Tiles, a: NDArray[Any], b: NDArray[Any]) -> dict[str, TensorMap]:
    """Describe b and a, in this order, as the kernel takes them."""
    sizes = (b, tiles.bm if work["trans_b"] else tiles.bk), (a, tiles.bk if work["trans_a"] else tiles.bn)
    return dict(
        zip(("v", "v_1"), (TensorMap.of(array, array.shape[::-1], (64, box)) for array, box in sizes))
    )


@pytest.mark.parametrize(
    "work, config",
    [
        (matmul(72, 136, 392), knobs(64, 72, split_k=2)),  # a tile of exactly the rows, columns beyond
        (
            matmul(200, 72, 520, trans_b=True, bias=True, activation="relu"),
            knobs(64, 104, split_k=4, chained=4),
        ),
        (matmul(136, 200, 264, trans_a=True, residual=True, dtype="float16"), knobs(128, 136, split_k=2)),
        (matmul(264, 136, 392), knobs(128, 136, split_k=3)),
    ],
)
@needs_emulator[0]
@needs_emulator[1]
def test_it_computes_the_product(work: Workload, config: Config, tmp_path: Path) -> None:
    assert config in TEMPLATE.space(work, H200)
    tiles = Tiles.of(config, H200)
    a, b, *_ = op_of(work).random_inputs(work, seed=1)  # kept: boxes know where they lie
    cubin = compiled(TEMPLATE, work, H200, config)
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    blocks = blocks_of(work, tiles.bn, tiles.bm) * tiles.split_k
    launch = Launch(blocks, tiles.split_k, tiles.shared_bytes)
    error = error_here(cubin, work, launch, tmp_path, boxes(work, tiles, a, b))
    assert error <= op_of(work).tolerance(work)


@pytest.mark.parametrize("rows, covered", [(32, False), (33, True), (512, True), (513, False)])
def test_it_covers_some_rows(rows: int, covered: bool) -> None:
    work = matmul(rows, 1024, 1024)
    assert TEMPLATE.covers(work, H200) is covered
    names = [template.name for template in templates_for(work, H200)]
    assert (TEMPLATE.name in names) is covered
    assert not covered or TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)
