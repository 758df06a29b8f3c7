from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from tests.schedules.cuda.compiled import compiled
from tests.schedules.cuda.emulated import TensorMap, needs_emulator
from tests.schedules.cuda.products import Launch, blocks_of, error_here
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_float32_boxes import Float32Boxes, is_legal, tiles_of
from tvmops.schedules.cuda.kernels.gemm_float32_boxes import DEPTH, BoxTiles
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = Float32Boxes()
H200 = target("nvidia-h200")


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"dtype": "float32", **fields})


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (matmul(7, 132, 108), "nvidia-h100", True),
        (matmul(7, 131, 108, trans_b=True), "nvidia-h200", True),
        (matmul(7, 131, 108), "nvidia-h200", False),  # rows of b begin anywhere
        (matmul(7, 132, 106), "nvidia-h200", False),
        (matmul(8, 132, 106, trans_a=True), "nvidia-h200", True),
        (matmul(7, 132, 108).generic(), "nvidia-h200", False),
        (matmul(7, 132, 108), "rtx-4090", False),  # no copy engine
        (matmul(7, 132, 108, dtype="float16"), "nvidia-h200", False),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


def test_it_comes_before_the_kernel_that_needs_no_copy_engine() -> None:
    names = [template.name for template in templates_for(matmul(64, 64, 64), H200)]
    assert names == ["cuda.gemm_float32_boxes", "cuda.gemm_float32", "cuda.gemm_simt", "sketch"]


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 4096, 4096), (1000, 1000, 776), (8192, 8192, 8192)])
def test_the_default_is_legal(shape: tuple[int, int, int]) -> None:
    work = matmul(*shape)
    assert TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)


def boxes(work: Workload, tiles: BoxTiles, a: NDArray[Any], b: NDArray[Any]) -> dict[str, TensorMap]:
    """Describe both factors to the copy engine as the host's code does."""
    each = (("v", a, not work["trans_a"], tiles.bm), ("v_1", b, work["trans_b"], tiles.bn))
    return {
        name: TensorMap.of(
            array,
            array.shape[::-1],
            ((DEPTH, block) if along else (block, DEPTH)) + (1,) * (array.ndim - 2),
            swizzles=bool(along),
        )
        for name, array, along, block in each
    }


def error_of(work: Workload, knobs: Config, folder: Path) -> float:
    """Return the largest error of an emulated run amid guards, as a share of what is allowed."""
    cubin, tiles = compiled(TEMPLATE, work, H200, knobs), tiles_of(knobs)
    a, b, *_ = op_of(work).random_inputs(work, seed=1)  # kept: boxes know where they lie
    blocks = blocks_of(work, tiles.bm, tiles.bn) * tiles.splits
    launch = Launch(blocks, tiles.splits, tiles.shared_bytes)
    return error_here(cubin, work, launch, folder, boxes(work, tiles, a, b)) / op_of(work).tolerance(work)


def config(
    bm: int, bn: int, tm: int, tn: int, stages: int, splits: int, beside: int = 1, ahead: int = 1, chained: int = 0
) -> Config:
    return Config.of(
        bm=bm, bn=bn, tm=tm, tn=tn, stages=stages, splits=splits, beside=beside, ahead=ahead, chained=chained
    )  # fmt: skip


CASES = [
    (matmul(37, 60, 36), config(32, 32, 4, 4, 2, 1)),  # tiles and k end within a box
    (matmul(36, 61, 200, trans_b=True), config(32, 64, 8, 4, 2, 2, chained=1)),  # odd rows of c
    (matmul(1, 68, 260), config(8, 64, 4, 4, 2, 4, 2)),  # one row, and blocks with unequal shares of k
    (matmul(40, 72, 100, trans_a=True, trans_b=True, bias=True), config(32, 64, 4, 8, 3, 1)),
    (matmul(72, 140, 33, trans_a=True, residual=True), config(64, 128, 8, 8, 2, 1, ahead=0)),
    (matmul(20, 68, 44, batch=3, bias=True, residual=True, activation="gelu"), config(16, 64, 8, 4, 2, 2)),
    (matmul(20, 72, 40, batch=2, shared="b", trans_b=True, activation="silu"), config(16, 32, 4, 4, 2, 1)),
    (matmul(130, 132, 68), config(128, 128, 16, 8, 3, 1, ahead=0)),
]  # fmt: skip


@pytest.mark.parametrize("work, knobs", CASES, ids=[f"{work} {knobs}" for work, knobs in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        assert is_legal(knobs, work, H200)
        assert error_of(work, knobs, tmp_path) <= 1


@pytest.mark.parametrize("seed", range(4))
class TestRandomConfigs:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, seed: int, tmp_path: Path) -> None:
        rng = random.Random(seed)
        m, n, k = rng.choice((1, 8, 33, 100)), 4 * rng.randint(1, 40), 4 * rng.randint(1, 90)
        work = matmul(m, n, k, trans_b=seed % 2 == 0)
        knobs = TEMPLATE.space(work, H200).sample(rng)
        assert knobs is not None and is_legal(knobs, work, H200)
        assert error_of(work, knobs, tmp_path) <= 1
