from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.emulated import needs_emulator
from tests.schedules.cuda.products import FLOAT32, Launch, blocks_of, error_here
from tvmops.ops import op_of
from tvmops.schedules.cuda.gemm_simt import SimtGemm, is_legal, tiles_of
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = SimtGemm()
H200 = target("nvidia-h200")


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"dtype": "float32", **fields})


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (matmul(700, 130, 110), "nvidia-h200", True),
        (matmul(700, 130, 110), "cuda-sm75", True),
        (matmul(700, 130, 110).generic(), "cuda-sm75", True),
        (matmul(7, 13, 11, dtype="float16"), "nvidia-h200", True),
        (matmul(700, 1300, 1100, dtype="float16"), "nvidia-h200", False),  # for tensor cores
        (matmul(700, 1300, 1100, dtype="float16"), "cuda-sm75", True),
        (matmul(700, 1300, 1100, dtype="bfloat16", out_dtype="float32"), "nvidia-h200", True),
        (matmul(7, 13, 11), "znver4", False),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


@pytest.mark.parametrize("machine", ["nvidia-h200", "rtx-4090", "cuda-sm75"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4096, 4096), (1000, 999, 777), (8192, 8192, 8192)])
def test_the_default_is_legal(shape: tuple[int, int, int], machine: str) -> None:
    work = matmul(*shape)
    assert TEMPLATE.default(work, target(machine)) in TEMPLATE.space(work, target(machine))


def test_generic_kernels_answer_every_shape() -> None:
    last = TEMPLATE.generic(matmul(1, 1, 1).generic(), H200)[-1]
    assert last.ranges == {} and last.multiples == {}


def test_what_is_legal_fits_the_machine() -> None:
    turing = target("cuda-sm75")
    assert turing.gpu is not None
    rng = random.Random(0)
    for _ in range(50):
        config = TEMPLATE.space(matmul(512, 512, 512), turing).sample(rng)
        assert config is not None and tiles_of(config).shared_bytes <= turing.gpu.shared_bytes


def config(bm: int, bn: int, bk: int, tm: int, tn: int) -> Config:
    return Config.of(bm=bm, bn=bn, bk=bk, tm=tm, tn=tn)


CASES = [
    (FLOAT32["short"], config(16, 32, 16, 4, 4)),
    (FLOAT32["brief"], config(32, 64, 16, 4, 8)),
    (FLOAT32["shared"].replace(dtype="float16"), config(32, 64, 8, 8, 8)),
    (
        matmul(
            9, 33, 50, dtype="bfloat16", bias=True, residual=True, out_dtype="float32", bias_dtype="float32"
        ),
        config(32, 32, 8, 4, 4),
    ),
    (FLOAT32["a across"], config(64, 128, 16, 8, 8)),
]


@pytest.mark.parametrize("work, knobs", CASES, ids=[str(work) for work, _ in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        assert is_legal(knobs, work, H200)
        cubin = compiled(TEMPLATE, work, H200, knobs)
        assert cubin.report.spilled_bytes == 0 and "mma" not in cubin.source
        tiles = tiles_of(knobs)
        launch = Launch(blocks_of(work, tiles.bm, tiles.bn), shared_bytes=tiles.shared_bytes)
        assert error_here(cubin, work, launch, tmp_path) <= op_of(work).tolerance(work)


@needs_nvcc
@pytest.mark.parametrize("machine", ["cuda-sm75", "rtx-4090"])
def test_it_compiles_for_other_gpus_without_spills(machine: str) -> None:
    work = matmul(1024, 1024, 1024)
    cubin = compiled(TEMPLATE, work, target(machine), TEMPLATE.default(work, target(machine)))
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
