from __future__ import annotations

import random

import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tvmops.errors import NoTemplateError
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.gemm_wgmma import WgmmaGemm, is_legal
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = WgmmaGemm()
H200 = target("nvidia-h200")


def matmul(m: int, n: int, k: int, dtype: str = "bfloat16") -> Workload:
    return workload("matmul", m=m, n=n, k=k, dtype=dtype)


SHARED = Config.of(bm=128, bn=256, bk=64, consumers=2, cluster=2, split_k=1, group=8, beside=1)
SPLIT = Config.of(bm=64, bn=64, bk=64, consumers=1, cluster=1, split_k=4, group=1, beside=2)
LARGE = matmul(4096, 4096, 4096)
SMALL = matmul(16, 1024, 4096, "float16")


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (LARGE, "nvidia-h200", True),
        (LARGE, "nvidia-h100", True),
        (LARGE, "nvidia-a100", False),  # no wgmma
        (LARGE, "znver4", False),
        (matmul(64, 64, 64, "float32"), "nvidia-h200", False),
        (matmul(1, 8, 8), "nvidia-h200", True),  # rows of 16 bytes, the least that TMA takes
        (matmul(7, 12, 64), "nvidia-h200", False),
        (matmul(7, 64, 12), "nvidia-h200", False),
        (LARGE.generic(), "nvidia-h200", True),
    ],
)
def test_it_covers_what_the_copy_engine_takes(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


def test_nothing_else_covers_sixteen_bits_on_a_cpu_template() -> None:
    names = [template.name for template in templates_for(LARGE, H200)]
    assert names[0] == TEMPLATE.name and "cpu.gemm" not in names
    with pytest.raises(NoTemplateError):
        templates_for(workload("matmul_int8", m=8, n=8, k=8), H200)


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (1, 4096, 4096), (64, 1024, 8192), (8192, 8192, 8192), (5, 8, 64)]
)
def test_the_default_is_legal_at_any_size(shape: tuple[int, int, int]) -> None:
    work = matmul(*shape)
    assert TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)


def test_generic_kernels_answer_every_aligned_shape() -> None:
    kernels = TEMPLATE.generic(LARGE.generic(), H200)
    assert kernels[-1].ranges == {}
    assert all(kernel.multiples == {"n": 8, "k": 8} for kernel in kernels)


def test_what_is_legal_fits_the_machine() -> None:
    assert H200.gpu is not None
    rng = random.Random(0)
    space = TEMPLATE.space(LARGE, H200)
    for _ in range(50):
        config = space.sample(rng)
        assert config is not None
        tiles = Tiles.of(config, H200)
        assert tiles.stages >= 3
        threads = tiles.consumer_registers * tiles.consumers + tiles.producer_registers
        assert threads * 128 <= H200.gpu.block_registers


def test_a_cluster_shares_b_or_splits_k() -> None:
    both = TEMPLATE.default(LARGE, H200).replace(cluster=2, split_k=2)
    assert not is_legal(both, LARGE, H200)


@needs_nvcc
@pytest.mark.parametrize(
    "work, config",
    [
        (LARGE, SHARED),
        (SMALL, SPLIT),
    ],
    ids=["shared tiles", "split sums"],
)
def test_the_code_is_what_was_meant(work: Workload, config: Config) -> None:
    assert config in TEMPLATE.space(work, H200)
    cubin = compiled(TEMPLATE, work, H200, config)
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    assert "wgmma.mma_async" in cubin.source and "cp.async.bulk.tensor" in cubin.source
    assert ("multicast" in cubin.source) is (config == SHARED)
    assert ("ld.shared::cluster" in cubin.source) is (config == SPLIT)
