from __future__ import annotations

from pathlib import Path

import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc, ptx_of
from tests.schedules.cuda.emulated import needs_emulator
from tests.schedules.cuda.products import Launch, blocks_of, error_here
from tvmops.ops import op_of
from tvmops.schedules.cuda.kernels.weight_only import shared_bytes
from tvmops.schedules.cuda.weight_only import WeightOnlyMma, is_legal, tiles_of
from tvmops.schedules.cuda.weight_only_product import product_of
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = WeightOnlyMma()
H200 = target("nvidia-h200")


def product(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul_weight_only", m=m, n=n, k=k, **{"dtype": "float16", **fields})


def config(rows: int, pairs: int, warps_n: int, warps_k: int, stages: int, vector: int = 8) -> Config:
    return Config.of(
        rows=rows, pairs=pairs, warps_n=warps_n, warps_k=warps_k, stages=stages, vector=vector
    )  # fmt: skip


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (product(7, 13, 11), "nvidia-a100", True),
        (product(7, 13, 11, dtype="bfloat16", bits=8, x_bits=8), "nvidia-h200", True),
        (product(7, 13, 11).generic(), "rtx-4090", True),
        (product(7, 13, 11, group=64), "nvidia-h200", True),
        (product(7, 13, 11, group=40), "nvidia-h200", False),  # ends within two products
        (product(7, 13, 11, dtype="float32"), "nvidia-h200", False),
        (product(7, 13, 11), "cuda-sm75", False),  # no cp.async
        (product(7, 13, 11), "znver4", False),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


@pytest.mark.parametrize("machine", ["nvidia-h200", "nvidia-a100", "rtx-3090"])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 1024, 4096), (16, 28672, 8192), (64, 4096, 4096), (500, 999, 777)]
)
def test_the_default_is_legal(shape: tuple[int, int, int], machine: str) -> None:
    for bits in (4, 8):
        work = product(*shape, bits=bits, zero_points=True)
        assert TEMPLATE.default(work, target(machine)) in TEMPLATE.space(work, target(machine))


def test_one_kernel_serves_all_shapes() -> None:
    kinds = {TEMPLATE.kernel_workload(product(m, 64 * m, 128 * m, x_bits=8)) for m in (1, 16, 33)}
    assert len(kinds) == 1


def test_generic_kernels_answer_every_shape() -> None:
    last = TEMPLATE.generic(product(1, 1, 1).generic(), H200)[-1]
    assert last.ranges == {} and last.multiples == {} and last.config["vector"] == 1


CASES = [
    (product(1, 64, 512), config(1, 1, 1, 2, 3)),
    (product(1, 50, 300), config(1, 1, 1, 1, 2, 1)),  # rows of x begin anywhere; odd n
    (product(11, 84, 328, group=32, zero_points=True), config(2, 1, 2, 2, 2)),  # k ends within a group
    (product(5, 36, 192, bits=8, bias=True, activation="relu"), config(1, 1, 1, 2, 2)),
    (product(3, 44, 320, bits=8, dtype="bfloat16", zero_points=True, group=64), config(1, 1, 2, 1, 4)),
    (product(3, 36, 256, bits=8, dtype="bfloat16", group=64), config(1, 1, 1, 1, 2)),
    (product(19, 132, 264, dtype="bfloat16", zero_points=True, bias=True), config(4, 2, 1, 2, 2)),
    (product(9, 40, 1000, group=256, activation="silu"), config(1, 1, 1, 4, 2)),
]


@pytest.mark.parametrize("work, knobs", CASES, ids=[str(work) for work, _ in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        assert is_legal(knobs, work, H200)
        cubin, tiles = compiled(TEMPLATE, work, H200, knobs), tiles_of(knobs)
        shared = shared_bytes(product_of(work), tiles)
        launch = Launch(blocks_of(work, tiles.bm, tiles.bn), shared_bytes=shared)
        assert error_here(cubin, work, launch, tmp_path) <= op_of(work).tolerance(work)


@needs_nvcc
def test_weights_are_copied_wide_and_converted_in_pairs(tmp_path: Path) -> None:
    work, knobs = product(1, 4096, 4096), config(1, 1, 1, 8, 4)
    cubin = compiled(TEMPLATE, work, H200, knobs)
    assert cubin.report.spilled_bytes == cubin.report.stack_bytes == 0
    ptx = ptx_of(cubin, "sm_90a", tmp_path)
    for instruction in (
        "cp.async.cg.shared.global",
        "ld.shared.v4.b32",
        "fma.rn.f16x2",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    ):
        assert instruction in ptx
    assert "ld.local" not in ptx and "cvt.f32.f16" not in ptx
