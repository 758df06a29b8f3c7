from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc, ptx_of
from tests.schedules.cuda.emulated import needs_emulator
from tests.schedules.cuda.products import Launch, blocks_of, error_here
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_mma import product_of
from tvmops.schedules.cuda.gemm_small import SmallGemm, kernel_of, small_tiles_of
from tvmops.schedules.cuda.kernels.gemm_small import shared_bytes
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = SmallGemm()
H200 = target("nvidia-h200")


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"dtype": "bfloat16", "batch": 64, **fields})


def config(
    bm: int,
    bn: int,
    warps_m: int,
    warps_n: int,
    chained: int = 0,
    bk: int = 256,
    stages: int = 1,
    wgmma: int = 0,
    asks: int = 1,
) -> Config:
    return Config.of(
        bm=bm,
        bn=bn,
        warps_m=warps_m,
        warps_n=warps_n,
        bk=bk,
        stages=stages,
        wgmma=wgmma,
        chained=chained,
        asks=asks,
    )


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (matmul(100, 100, 100), "nvidia-h200", True),
        (matmul(100, 99, 97, bias=True, activation="gelu"), "nvidia-a100", True),
        (matmul(256, 256, 256, dtype="float16", trans_a=True), "rtx-4090", True),
        (matmul(257, 256, 256), "nvidia-h200", False),
        (matmul(256, 256, 257), "nvidia-h200", False),
        (matmul(100, 100, 100, batch=1), "nvidia-h200", False),
        (matmul(100, 100, 100, dtype="float32"), "nvidia-h200", False),
        (matmul(100, 100, 100).replace(m="*"), "nvidia-h200", False),
        (matmul(100, 100, 100).replace(batch="*"), "nvidia-h200", True),
        (matmul(100, 100, 100), "cuda-sm75", False),  # no cp.async
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


def test_it_is_the_usual_one_for_what_it_covers() -> None:
    for size in (100, 128):
        names = [template.name for template in templates_for(matmul(size, size, size), H200)]
        assert names[0] == TEMPLATE.name and len(names) > 3


@pytest.mark.parametrize("machine", ["nvidia-h200", "nvidia-a100", "rtx-3090"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (100, 100, 100), (256, 256, 256), (256, 255, 253), (3, 256, 8)])
def test_the_default_is_legal(shape: tuple[int, int, int], machine: str) -> None:
    work = matmul(*shape)
    assert TEMPLATE.default(work, target(machine)) in TEMPLATE.space(work, target(machine))


def test_the_default_gives_each_multiprocessor_one_block() -> None:
    work = matmul(100, 100, 100)
    knobs = TEMPLATE.default(work, H200)
    tiles = small_tiles_of(knobs, work)
    assert H200.cores // 2 < blocks_of(work, tiles.bm, tiles.bn) <= H200.cores
    assert knobs["chained"] == 1 and TEMPLATE.default(work, target("nvidia-a100"))["chained"] == 0


@needs_nvcc
@pytest.mark.parametrize("chained", [1, 2])
def test_a_chained_kernel_asks_waits_copies_and_lets_the_next_begin(chained: int, tmp_path: Path) -> None:
    work = matmul(100, 100, 100)
    cubin = compiled(TEMPLATE, work, H200, config(64, 128, 2, 4, chained))
    assert cubin.report.spilled_bytes == cubin.report.stack_bytes == 0
    ptx = ptx_of(cubin, "sm_90a", tmp_path)
    steps = ["prefetch.global.L2", "griddepcontrol.wait", "cp.async.commit_group", "cp.async.wait_group"]
    steps.insert(2 + chained, "griddepcontrol.launch_dependents")
    places = [ptx.index(step) for step in steps]
    assert places == sorted(places) and ptx.index("cp.async.ca") > places[1]


def error_of(work: Workload, knobs: Config, folder: Path) -> float:
    """Return the largest error of an emulated run amid guards, as a share of what is allowed."""
    cubin, tiles = compiled(TEMPLATE, work, H200, knobs), small_tiles_of(knobs, work)
    nbytes = shared_bytes(product_of(work), tiles, kernel_of(knobs))
    launch = Launch(blocks_of(work, tiles.bm, tiles.bn), shared_bytes=nbytes)
    return error_here(cubin, work, launch, folder) / op_of(work).tolerance(work)


CASES = [
    (matmul(50, 36, 36, batch=2), config(32, 48, 2, 1)),  # 8 bytes; short last tiles; k ends within a product
    (matmul(37, 61, 35, batch=2, dtype="float16"), config(48, 32, 1, 2, 1)),  # rows begin anywhere
    (matmul(37, 62, 34, batch=2, trans_b=True, residual=True), config(48, 32, 3, 2)),  # 4 bytes
    (matmul(36, 62, 33, batch=2, trans_a=True, activation="silu"), config(48, 64, 3, 1)),
    (
        matmul(17, 35, 9, trans_a=True, trans_b=True, batch=3, bias=True, activation="gelu"),
        config(32, 48, 1, 3),
    ),
    (matmul(24, 31, 64, batch=2, shared="b"), config(32, 32, 1, 1)),
    (matmul(20, 32, 72, batch=2, shared="a"), config(32, 32, 2, 1)),
    (matmul(1, 1, 1, batch=2), config(16, 16, 1, 1)),
    # chunks of k; whole rows in one stretch, of which some begin at odd elements; the last chunk in part
    (matmul(37, 61, 150, batch=3, residual=True), config(32, 64, 2, 2, 1, 64, 2)),
    (matmul(33, 52, 131, batch=2, trans_b=True), config(16, 64, 1, 2, 2, 64, 2)),
    (matmul(20, 64, 152, batch=2, trans_a=True, bias=True), config(32, 64, 1, 2, 1, 64, 3)),
    # wgmma: rows in vectors, along k and across it; then rows that begin anywhere
    (matmul(70, 64, 150, batch=2), config(64, 64, 4, 1, 1, 64, 2, wgmma=1)),
    (matmul(72, 40, 136, batch=2, trans_a=True, trans_b=True), config(64, 48, 4, 1, 1, 64, 3, wgmma=1)),
    (matmul(70, 61, 151, batch=3), config(64, 64, 4, 1, 1, 64, 2, wgmma=1)),
    (matmul(61, 101, 67, batch=2, trans_b=True, bias=True), config(64, 112, 4, 1, 1, 128, 1, wgmma=1)),
    (matmul(61, 64, 61, batch=2, trans_a=True), config(64, 32, 4, 1, 1, 64, 1, wgmma=1)),
]


@pytest.mark.parametrize("work, knobs", CASES, ids=[f"{work} {knobs}" for work, knobs in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        assert error_of(work, knobs, tmp_path) <= 1


@pytest.mark.parametrize("seed", range(4))
class TestRandomConfigs:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, seed: int, tmp_path: Path) -> None:
        rng = random.Random(seed)
        sizes = [rng.randint(1, 80) * rng.choice((1, 2)) for _ in range(3)]
        work = matmul(*sizes, batch=2, trans_b=seed % 2 == 0)
        knobs = TEMPLATE.space(work, H200).sample(rng)
        assert knobs is not None
        assert error_of(work, knobs, tmp_path) <= 1
