from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.emulated import needs_emulator
from tests.schedules.cuda.products import Launch, blocks_of, error_here
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_chained import ChainedMma
from tvmops.schedules.cuda.gemm_mma import MmaGemm, tiles_of
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = MmaGemm()
H200 = target("nvidia-h200")


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"dtype": "bfloat16", **fields})


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (matmul(7, 13, 11), "nvidia-a100", True),
        (matmul(7, 13, 11), "rtx-4090", True),
        (matmul(7, 13, 11, batch=3, bias=True, activation="gelu"), "nvidia-h200", True),
        (matmul(7, 13, 11).generic(), "nvidia-a100", True),
        (matmul(7, 13, 11), "cuda-sm75", False),  # no cp.async
        (matmul(7, 13, 11, dtype="float32"), "nvidia-a100", False),
        (matmul(7, 13, 11, out_dtype="float32"), "nvidia-a100", False),
        (matmul(7, 13, 11, bias=True, bias_dtype="float32"), "nvidia-a100", False),
        (matmul(7, 13, 11), "znver4", False),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


def test_on_hopper_it_comes_after_wgmma() -> None:
    names = [template.name for template in templates_for(matmul(640, 640, 640), H200)]
    last = ["cuda.gemm_mma", "cuda.gemm_mma_chained", "sketch"]
    own = ["wgmma", "chained", "turned", "abreast", "aside", "split"]
    assert names == [*(f"cuda.gemm_{each}" for each in own), *last]
    for ragged in (matmul(640, 639, 640), matmul(640, 640, 639, trans_a=True)):
        assert [t.name for t in templates_for(ragged, H200)] == ["cuda.gemm_padded", *last]


@pytest.mark.parametrize("machine", ["nvidia-h200", "nvidia-a100", "rtx-3090", "rtx-4090"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4096, 4096), (1000, 999, 777), (8192, 8192, 8192)])
def test_the_default_is_legal(shape: tuple[int, int, int], machine: str) -> None:
    work = matmul(*shape)
    assert TEMPLATE.default(work, target(machine)) in TEMPLATE.space(work, target(machine))


@pytest.mark.parametrize("n, k, a, b", [(64, 64, 8, 8), (63, 64, 8, 1), (62, 68, 4, 2), (8, 7, 1, 8)])
def test_copies_are_as_wide_as_rows_allow(n: int, k: int, a: int, b: int) -> None:
    config = TEMPLATE.default(matmul(32, n, k), H200)
    assert (config["a_vector"], config["b_vector"]) == (a, b)


def test_generic_kernels_answer_every_shape() -> None:
    kernels = TEMPLATE.generic(matmul(1, 1, 1).generic(), H200)
    assert kernels[-1].ranges == {} and kernels[-1].multiples == {}
    assert (kernels[-1].config["a_vector"], kernels[-1].config["b_vector"]) == (1, 1)
    assert kernels[0].multiples == {"k": 8, "n": 8}


def test_what_is_legal_fits_the_machine() -> None:
    ada = target("rtx-4090")
    assert ada.gpu is not None
    rng = random.Random(0)
    for _ in range(50):
        config = TEMPLATE.space(matmul(512, 512, 512), ada).sample(rng)
        assert config is not None and tiles_of(config).shared_bytes <= ada.gpu.shared_bytes


def config(bm: int, bn: int, warps_m: int, warps_n: int, stages: int, a: int, b: int) -> Config:
    return Config.of(
        bm=bm, bn=bn, warps_m=warps_m, warps_n=warps_n, stages=stages, a_vector=a, b_vector=b
    )  # fmt: skip


CASES = [
    (matmul(70, 136, 200), config(64, 64, 2, 2, 3, 8, 8)),  # short last tiles
    (matmul(37, 61, 131, dtype="float16", bias=True), config(32, 32, 2, 1, 2, 1, 1)),  # rows begin anywhere
    (matmul(18, 66, 68, trans_b=True, activation="relu"), config(16, 64, 1, 4, 2, 4, 4)),  # 8 bytes
    (matmul(34, 40, 66, trans_a=True, residual=True), config(32, 32, 1, 2, 2, 2, 8)),  # 4 bytes
    (
        matmul(17, 35, 9, trans_a=True, trans_b=True, batch=3, bias=True, residual=True, activation="gelu"),
        config(32, 64, 2, 2, 2, 1, 1),  # less k than a step
    ),
    (matmul(24, 32, 64, batch=2, shared="b", activation="silu"), config(16, 32, 1, 1, 2, 8, 8)),
]


@pytest.mark.parametrize("work, knobs", CASES, ids=[str(work) for work, _ in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        cubin = compiled(TEMPLATE, work, H200, knobs)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        assert "mma.sync.aligned.m16n8k16" in cubin.source and "wgmma" not in cubin.source
        tiles = tiles_of(knobs)
        launch = Launch(blocks_of(work, tiles.bm, tiles.bn), shared_bytes=tiles.shared_bytes)
        assert error_here(cubin, work, launch, tmp_path) <= op_of(work).tolerance(work)


@needs_nvcc
@pytest.mark.parametrize("machine", ["nvidia-a100", "rtx-3090", "rtx-4090"])
def test_it_compiles_for_other_gpus_without_spills(machine: str) -> None:
    work = matmul(1024, 1024, 1024)
    cubin = compiled(TEMPLATE, work, target(machine), TEMPLATE.default(work, target(machine)))
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    assert "cp.async" in cubin.source and "mma.sync.aligned.m16n8k16" in cubin.source


@needs_nvcc
def test_a_chained_kernel_waits_for_what_was_before() -> None:
    work, chained = matmul(100, 100, 100, batch=64), ChainedMma()
    knobs = chained.default(work, H200)
    assert knobs in chained.space(work, H200) and not chained.covers(work, target("nvidia-a100"))
    assert "griddepcontrol.wait" in compiled(chained, work, H200, knobs).source
    assert "griddepcontrol" not in compiled(TEMPLATE, work, H200, knobs).source
