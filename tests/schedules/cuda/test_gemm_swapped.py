from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.emulated import TensorMap, needs_emulator
from tests.schedules.cuda.few_rows import H200, ROWS, default_is_legal, drawn, error_of, matmul
from tvmops.schedules.cuda.gemm_swapped import SwappedGemm, is_legal
from tvmops.schedules.cuda.kernels.gemm_swapped import PANEL, SwappedTiles
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload

TEMPLATE = SwappedGemm()


def config(
    rows: int, bn: int, bk: int, stages: int, splits: int, ahead: int | None = None, late: bool = False
) -> Config:
    chained = 0 if ahead is None else 1 + late
    return Config.of(rows=rows, bn=bn, bk=bk, stages=stages, splits=splits, chained=chained, ahead=ahead or 0)


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (matmul(1, 16, 24), "nvidia-h200", True),
        (matmul(1, 13, 24, trans_b=True), "nvidia-h100", True),
        (matmul(1, 13, 24), "nvidia-h100", False),  # rows of b begin anywhere
        (matmul(1, 16, 21, trans_b=True), "nvidia-h100", False),
        (matmul(64, 16, 24), "nvidia-h100", True),
        (matmul(65, 16, 24), "nvidia-h100", False),  # too many rows
        (matmul(8, 16, 24, trans_a=True), "nvidia-h100", False),
        (matmul(8, 16, 24, batch=2), "nvidia-h100", False),
        (matmul(1, 16, 24, dtype="float32"), "nvidia-h100", False),
        (matmul(1, 16, 24).replace(m="*"), "nvidia-h100", True),  # in bands of rows
        (matmul(1, 16, 24).generic(), "nvidia-h100", False),
        (matmul(1, 16, 24), "nvidia-a100", False),  # no wgmma
        (matmul(1, 16, 24), "znver4", False),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 1024, 4096), (16, 28672, 8192), (64, 4096, 4096)])
def test_the_default_is_legal(shape: tuple[int, int, int]) -> None:
    assert default_is_legal(TEMPLATE, shape)


def boxes(work: Workload, tiles: SwappedTiles, a: NDArray[Any], b: NDArray[Any]) -> dict[str, TensorMap]:
    """Describe b and a to the copy engine as the host's code does."""
    along = tiles.lines if work["trans_b"] else tiles.bk
    return {
        "v": TensorMap.of(b, b.shape[::-1], (PANEL, along)),
        "v_1": TensorMap.of(a, a.shape[::-1], (PANEL, tiles.rows)),
    }


CASES = [
    (matmul(1, 64, 512), config(8, 64, 64, 4, 1, 4)),
    (matmul(16, 136, 200), config(16, 64, 128, 2, 2, 1, late=True)),  # columns and k end within a tile
    (matmul(3, 72, 104, dtype="float16", bias=True, residual=True), config(8, 128, 64, 2, 2)),
    (matmul(1, 24, 24), config(8, 64, 64, 2, 1, 1)),
    (matmul(17, 136, 136), config(8, 64, 64, 2, 1)),  # several bands of rows
    (matmul(1, 37, 512, trans_b=True), config(8, 64, 128, 2, 4, 1)),  # odd n
    (matmul(14, 72, 136, dtype="float16", trans_b=True, activation="gelu"), config(16, 128, 64, 3, 1)),
    (matmul(40, 76, 520, trans_b=True, residual=True), config(40, 64, 256, 2, 2, 2)),
    (matmul(24, 264, 72), config(24, 256, 64, 2, 2)),  # as many blocks as steps
    (matmul(8, 232, 136), config(8, 112, 64, 3, 1)),  # tiles narrower than what is loaded
    (matmul(8, 237, 136, trans_b=True), config(8, 112, 64, 3, 1)),
]  # fmt: skip


@pytest.mark.parametrize("work, knobs", CASES, ids=[f"{work} {knobs}" for work, knobs in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        assert error_of(TEMPLATE, work, knobs, tmp_path, boxes) <= 1


@pytest.mark.parametrize("seed", range(4))
class TestRandomConfigs:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, seed: int, tmp_path: Path) -> None:
        rng = random.Random(seed)
        m, n, k = rng.choice(ROWS), 8 * rng.randint(1, 40), 8 * rng.randint(1, 90)
        work = matmul(m, n, k, trans_b=seed % 2 == 0)
        knobs = drawn(TEMPLATE, work, rng)
        assert is_legal(knobs, work, H200)
        assert error_of(TEMPLATE, work, knobs, tmp_path, boxes) <= 1


@needs_nvcc
def test_weights_are_not_read_before_the_kernels_before_have_ended() -> None:
    work = matmul(16, 4096, 4096)
    source = compiled(TEMPLATE, work, H200, config(16, 64, 128, 4, 1, 2)).source
    source = source[source.index("elect_one_sync_op())") :]  # what the thread that loads does
    asked, waits = source.index("ask_for_box"), source.index("griddepcontrol_wait()")
    assert asked < waits < source.index("tensor_g2s")
    assert "griddepcontrol" not in compiled(TEMPLATE, work, H200, config(16, 64, 128, 4, 1)).source
