from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.schedules.cuda.emulated import needs_emulator
from tests.schedules.cuda.few_rows import H200, ROWS, default_is_legal, drawn, error_of, matmul
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_loose import LooseGemm
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload

TEMPLATE = LooseGemm()


def config(rows: int, bn: int, bk: int, stages: int, splits: int, chained: int = 0, ahead: int = 0) -> Config:
    return Config.of(rows=rows, bn=bn, bk=bk, stages=stages, splits=splits, chained=chained, ahead=ahead)


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (matmul(16, 4097, 4095), "nvidia-h200", True),
        (matmul(16, 4096, 4095), "nvidia-h200", True),  # rows of a alone
        (matmul(16, 4097, 4096), "nvidia-h200", True),  # rows of b alone
        (matmul(16, 4097, 4095, trans_b=True), "nvidia-h100", True),
        (matmul(16, 4096, 4096), "nvidia-h200", False),  # aligned
        (matmul(16, 4097, 4096, trans_b=True), "nvidia-h200", False),
        (matmul(33, 4097, 4095), "nvidia-h200", False),
        (matmul(16, 7, 4095), "nvidia-h200", True),
        (matmul(16, 7, 4095).generic(), "nvidia-h200", False),
        (matmul(16, 4097, 4095), "nvidia-a100", False),  # no wgmma
        (matmul(16, 4097, 4095, dtype="float32"), "nvidia-h200", False),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


def test_it_comes_before_copies() -> None:
    names = [template.name for template in templates_for(matmul(16, 4097, 4095), H200)]
    assert names.index(TEMPLATE.name) < names.index("cuda.gemm_padded")


@pytest.mark.parametrize("shape", [(1, 1, 1), (16, 4097, 4095), (32, 1023, 8191)])
def test_the_default_is_legal(shape: tuple[int, int, int]) -> None:
    assert default_is_legal(TEMPLATE, shape)


CASES = [
    (matmul(1, 65, 129), config(8, 64, 64, 2, 1, 1)),
    (matmul(16, 137, 203), config(16, 64, 128, 2, 2, 2)),
    (matmul(3, 70, 104, dtype="float16", bias=True, residual=True), config(8, 128, 64, 2, 1)),
    (matmul(17, 131, 77), config(8, 64, 64, 2, 1)),  # several bands of rows
    (matmul(9, 72, 133), config(16, 64, 64, 2, 2)),  # rows of a alone
    (matmul(1, 61, 131, trans_b=True), config(8, 64, 128, 2, 1, 2)),  # n and k end within eight
    (matmul(14, 72, 133, dtype="float16", trans_b=True, bias=True, residual=True), config(16, 64, 64, 3, 2)),
    (matmul(5, 76, 259, trans_b=True, activation="gelu"), config(8, 64, 64, 2, 4)),
    (matmul(2, 3, 5), config(8, 64, 64, 2, 1)),
    (matmul(2, 3, 5, trans_b=True), config(8, 64, 64, 2, 1)),
    (matmul(8, 205, 130), config(8, 104, 64, 2, 1)),  # tiles narrower than what is loaded
    (matmul(8, 205, 130, trans_b=True), config(8, 104, 64, 2, 1)),
]  # fmt: skip


@pytest.mark.parametrize("work, knobs", CASES, ids=[f"{work} {knobs}" for work, knobs in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        assert error_of(TEMPLATE, work, knobs, tmp_path) <= 1


@pytest.mark.parametrize("seed", range(4))
class TestRandomConfigs:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, seed: int, tmp_path: Path) -> None:
        rng = random.Random(seed)
        work = matmul(rng.choice(ROWS), rng.randint(1, 300), rng.randint(1, 700) | 1, trans_b=seed % 2 == 0)
        assert error_of(TEMPLATE, work, drawn(TEMPLATE, work, rng), tmp_path) <= 1
