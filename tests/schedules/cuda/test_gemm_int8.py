from __future__ import annotations

from pathlib import Path

import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.emulated import needs_emulator
from tests.schedules.cuda.products import Launch, blocks_of, error_here
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_int8 import Int8Gemm
from tvmops.schedules.cuda.gemm_mma import tiles_of
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = Int8Gemm()
H200 = target("nvidia-h200")


def product(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul_int8", m=m, n=n, k=k, **fields)


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (product(7, 13, 11), "nvidia-a100", True),
        (product(7, 13, 11, dtype="int8", trans_b=True, b_zero_points="channel"), "rtx-4090", True),
        (product(7, 13, 11).generic(), "nvidia-h200", True),
        (product(7, 13, 11), "cuda-sm75", False),  # no cp.async
        (product(7, 13, 11, packed="words"), "nvidia-a100", False),
        (product(7, 13, 11), "znver4", False),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


@pytest.mark.parametrize("machine", ["nvidia-h200", "nvidia-a100", "rtx-3090", "rtx-4090"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4096, 4096), (1000, 999, 777), (8192, 8192, 8192)])
@pytest.mark.parametrize("fields", [{}, {"trans_b": True}, {"b_zero_points": "channel"}])
def test_the_default_is_legal(shape: tuple[int, int, int], machine: str, fields: dict[str, object]) -> None:
    work = product(*shape, **fields)
    assert TEMPLATE.default(work, target(machine)) in TEMPLATE.space(work, target(machine))


@pytest.mark.parametrize(
    "n, k, trans_b, a, b", [(64, 64, False, 16, 16), (72, 68, False, 4, 8), (7, 66, True, 1, 1)]
)
def test_copies_are_as_wide_as_rows_allow(n: int, k: int, trans_b: bool, a: int, b: int) -> None:
    config = TEMPLATE.default(product(32, n, k, trans_b=trans_b), H200)
    assert (config["a_vector"], config["b_vector"]) == (a, b)


def test_generic_kernels_answer_every_shape() -> None:
    assert [t.name for t in templates_for(product(1, 1, 1).generic(), H200)] == ["cuda.gemm_int8"]
    kernels = TEMPLATE.generic(product(1, 1, 1).generic(), H200)
    assert kernels[-1].ranges == {} and kernels[-1].multiples == {}
    assert kernels[0].multiples == {"k": 16, "n": 16}


def config(bm: int, bn: int, warps_m: int, warps_n: int, stages: int, a: int, b: int) -> Config:
    return Config.of(bm=bm, bn=bn, warps_m=warps_m, warps_n=warps_n, stages=stages, a_vector=a, b_vector=b)


CASES = [
    (product(70, 144, 304, dtype="int8"), config(64, 64, 2, 2, 3, 16, 16)),  # short last tiles
    (product(70, 130, 304, trans_b=True), config(64, 128, 2, 2, 3, 16, 16)),
    (product(37, 61, 131, b_zero_points="channel"), config(32, 32, 2, 1, 2, 1, 1)),  # rows begin anywhere
    (product(18, 72, 260, out_dtype="float32", activation="relu"), config(16, 128, 1, 4, 2, 4, 8)),
    (
        product(33, 35, 9, dtype="int8", trans_b=True, b_zero_points="tensor"),
        config(32, 64, 2, 2, 2, 1, 1),  # less k than a step
    ),
    (
        product(
            20, 68, 200, dtype="int8", out_dtype="int8", scales="channel", bias=True, b_zero_points="channel",
            activation="gelu",
        ),
        config(32, 64, 1, 2, 2, 8, 4),
    ),
    (product(40, 40, 40, out_dtype="uint8", scales="channel", trans_b=True), config(32, 32, 1, 1, 2, 8, 8)),
]  # fmt: skip


@pytest.mark.parametrize("work, knobs", CASES, ids=[str(work) for work, _ in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        cubin = compiled(TEMPLATE, work, H200, knobs)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        assert "mma.sync.aligned.m16n8k32" in cubin.source
        tiles = tiles_of(knobs)
        launch = Launch(blocks_of(work, tiles.bm, tiles.bn), shared_bytes=tiles.shared_bytes)
        assert error_here(cubin, work, launch, tmp_path) <= op_of(work).tolerance(work)


@needs_nvcc
@pytest.mark.parametrize("machine", ["nvidia-a100", "nvidia-h200"])
@pytest.mark.parametrize("fields", [{}, {"trans_b": True}, {"b_zero_points": "channel", "out_dtype": "int8"}])
def test_its_default_spills_nothing(machine: str, fields: dict[str, object]) -> None:
    work = product(4096, 4096, 4096, **fields)
    cubin = compiled(TEMPLATE, work, target(machine), TEMPLATE.default(work, target(machine)))
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
