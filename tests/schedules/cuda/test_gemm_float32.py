from __future__ import annotations

from pathlib import Path

import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.emulated import needs_emulator
from tests.schedules.cuda.products import FLOAT32, Launch, blocks_of, error_here
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_float32 import Float32Gemm, is_legal, tiles_of
from tvmops.schedules.cuda.in_order import IN_ORDER
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = Float32Gemm()
H200 = target("nvidia-h200")


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"dtype": "float32", **fields})


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (matmul(700, 130, 110), "nvidia-h200", True),
        (matmul(700, 130, 110).generic(), "rtx-3090", True),
        (matmul(700, 130, 110), "cuda-sm75", False),  # no cp.async
        (matmul(7, 13, 11, dtype="float16"), "nvidia-h200", False),
        (matmul(7, 13, 11), "znver4", False),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


def test_it_comes_before_the_kernel_for_older_gpus() -> None:
    names = [template.name for template in templates_for(matmul(64, 64, 64), H200)]
    assert names == ["cuda.gemm_float32", "cuda.gemm_simt", "sketch"]


@pytest.mark.parametrize("machine", ["nvidia-h200", "rtx-4090", "nvidia-a100"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4096, 4096), (1000, 999, 777), (8192, 8192, 8192)])
def test_the_default_is_legal(shape: tuple[int, int, int], machine: str) -> None:
    work = matmul(*shape)
    assert TEMPLATE.default(work, target(machine)) in TEMPLATE.space(work, target(machine))


@pytest.mark.parametrize(
    "work, a, b",
    [
        (matmul(60, 64, 64), 1, 4),  # what lies along k is copied float by float, unless it is found better
        (matmul(60, 63, 64), 1, 1),
        (matmul(60, 64, 63, trans_a=True), 4, 4),
        (matmul(60, 63, 64, trans_a=True, trans_b=True), 4, 1),
        (matmul(61, 64, 63, trans_a=True), 1, 4),
    ],
)
def test_copies_are_as_wide_as_rows_allow(work: Workload, a: int, b: int) -> None:
    config = TEMPLATE.default(work, H200)
    assert (config["a_vector"], config["b_vector"]) == (a, b)


def test_generic_kernels_answer_every_shape() -> None:
    last = TEMPLATE.generic(matmul(1, 1, 1).generic(), H200)[-1]
    assert last.ranges == {} and last.multiples == {}
    assert (last.config["a_vector"], last.config["b_vector"]) == (1, 1)


@needs_nvcc
@pytest.mark.parametrize("machine", ["nvidia-h200", "nvidia-a100"])
def test_generic_kernels_compile(machine: str) -> None:
    """Where sizes are not known, addresses take more registers; one that spilled can't be exported."""
    pattern, there = matmul(1, 1, 1).generic(), target(machine)
    for kernel in TEMPLATE.generic(pattern, there):
        assert compiled(TEMPLATE, pattern, there, kernel.config).report.spilled_bytes == 0


def config(
    bm: int, bn: int, bk: int, tm: int, tn: int, stages: int, a: int, b: int, slices: int = 1, splits: int = 1
) -> Config:
    return Config.of(
        bm=bm, bn=bn, bk=bk, tm=tm, tn=tn, stages=stages, a_vector=a, b_vector=b, beside=1, slices=slices,
        splits=splits, chained=int(splits > 2),
    )  # fmt: skip


CASES = [
    (FLOAT32["short"], config(16, 32, 16, 4, 4, 3, 1, 4)),
    (FLOAT32["short"], config(64, 64, 8, 4, 4, 2, 1, 1, slices=2)),  # more threads than a tile has pieces
    (FLOAT32["brief"], config(32, 64, 16, 4, 8, 2, 1, 1)),
    (FLOAT32["brief"], config(32, 64, 16, 8, 4, 3, 1, 1, slices=4)),
    (FLOAT32["shared"], config(32, 64, 8, 8, 8, 4, 1, 1)),
    (FLOAT32["a across"], config(64, 128, 16, 8, 8, 3, 4, 4)),
    (FLOAT32["b along"], config(32, 128, 8, 16, 8, 3, 1, 1)),
    (FLOAT32["b along"], config(32, 128, 32, 8, 8, 2, 1, 1, slices=2)),
    (FLOAT32["b along"], config(32, 128, 16, 8, 8, 3, 4, 4)),  # through registers
    (FLOAT32["b along"], config(32, 128, 32, 8, 4, 2, 4, 4, slices=2)),
    (FLOAT32["fours"], config(32, 64, 8, 8, 4, 2, 4, 4)),
    (FLOAT32["short"], config(32, 64, 8, 4, 4, 2, 1, 1, splits=4)),  # a stretch has one step or two
    (FLOAT32["brief"], config(16, 32, 8, 4, 4, 2, 1, 1, splits=2)),
    (FLOAT32["b along"], config(32, 128, 16, 8, 8, 2, 4, 4, slices=2, splits=2)),
    (FLOAT32["fours"], config(32, 64, 8, 8, 4, 3, 1, 4, splits=2)),
]


@pytest.mark.parametrize("work, knobs", CASES, ids=[str(work) for work, _ in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        assert is_legal(knobs, work, H200)
        cubin = compiled(TEMPLATE, work, H200, knobs)
        assert cubin.report.spilled_bytes == 0 and "cp.async" in cubin.source
        tiles = tiles_of(knobs)
        blocks = blocks_of(work, tiles.bm, tiles.bn) * tiles.splits
        launch = Launch(blocks, tiles.splits, tiles.shared_bytes)
        assert error_here(cubin, work, launch, tmp_path) <= op_of(work).tolerance(work)


@pytest.mark.parametrize("beside, in_order", [(1, True), (2, False)])
def test_the_order_of_the_source_is_kept_where_registers_are_not_scarce(beside: int, in_order: bool) -> None:
    knobs = config(128, 128, 16, 8, 8, 3, 1, 4).replace(beside=beside)
    main = TEMPLATE.build(matmul(4096, 4096, 4096), H200, knobs)["main"]
    assert (IN_ORDER[0] in main.attrs) is in_order


@needs_nvcc
@pytest.mark.parametrize("machine", ["nvidia-a100", "rtx-4090"])
def test_it_compiles_for_other_gpus_without_spills(machine: str) -> None:
    work = matmul(1024, 1024, 1024)
    cubin = compiled(TEMPLATE, work, target(machine), TEMPLATE.default(work, target(machine)))
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
