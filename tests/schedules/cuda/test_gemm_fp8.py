from __future__ import annotations

import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_fp8 import Fp8Gemm
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = Fp8Gemm()
H200 = target("nvidia-h200")


def product(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul_fp8", m=m, n=n, k=k, **fields)


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (product(7, 8, 16), "nvidia-h200", True),
        (product(7, 12, 16), "nvidia-h200", False),  # rows of c
        (product(7, 8, 24), "nvidia-h200", False),
        (product(7, 8, 16), "nvidia-a100", False),
        (product(7, 8, 16).generic(), "nvidia-h100", True),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


def test_it_alone_covers_eight_bits() -> None:
    assert [t.name for t in templates_for(product(64, 64, 64), H200)] == [TEMPLATE.name]


@pytest.mark.parametrize("shape", [(1, 8, 16), (16, 4096, 4096), (4096, 28672, 8192)])
def test_the_default_is_legal(shape: tuple[int, int, int]) -> None:
    assert TEMPLATE.default(product(*shape), H200) in TEMPLATE.space(product(*shape), H200)


def test_generic_kernels_take_what_the_copy_engine_takes() -> None:
    kernels = TEMPLATE.generic(product(1, 1, 1).generic(), H200)
    assert kernels[-1].ranges == {}
    assert all(kernel.multiples == {"n": 8, "k": 16} for kernel in kernels)


@needs_nvcc
@pytest.mark.parametrize(
    "work, kind",
    [
        (product(4096, 14336, 4096), "e4m3"),
        (product(300, 264, 1008, dtype="float8_e5m2", scales="rows", out_dtype="float32"), "e5m2"),
        (product(16, 1024, 8192, scales="rows", out_dtype="float16"), "e4m3"),
    ],
    ids=str,
)
def test_the_code_is_what_was_meant(work: Workload, kind: str) -> None:
    cubin = compiled(TEMPLATE, work, H200, TEMPLATE.default(work, H200))
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    assert f"k32.f32.{kind}.{kind}" in cubin.source
