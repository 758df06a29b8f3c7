from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import IRModule

from tests.schedules.cuda.compiled import compiled, each_compiled, needs_nvcc
from tests.schedules.cuda.emulated import needs_emulator
from tests.schedules.cuda.products import Launch, blocks_of, boxes_across, boxes_of, error_here
from tvmops.errors import WorkloadError
from tvmops.measure import cuda
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_mma import tiles_of
from tvmops.schedules.cuda.gemm_tf32 import Tf32Across, Tf32Few, Tf32Gemm, Tf32Mma, has_room_for_fragments
from tvmops.schedules.cuda.gemm_tf32_padded import Tf32Padded
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.kernels.gemm_wgmma import gemm
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

WGMMA, ACROSS, FEW, MMA = Tf32Gemm(), Tf32Across(), Tf32Few(), Tf32Mma()
PADDED = Tf32Padded()
H200 = target("nvidia-h200")


def product(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"precision": "tf32", **fields})


LAST = "cuda.gemm_tf32_mma"
FEW_ROWS = ["cuda.gemm_tf32_few", "cuda.gemm_tf32", LAST]


@pytest.mark.parametrize(
    "work, machine, names",
    [
        (product(7, 8, 12, trans_b=True), "nvidia-h200", FEW_ROWS),
        (product(7, 8, 12, trans_b=True, batch=3, bias=True), "nvidia-h100", FEW_ROWS),
        (product(129, 8, 12, trans_b=True), "nvidia-h200", ["cuda.gemm_tf32", LAST]),
        (product(7, 8, 12), "nvidia-h200", ["cuda.gemm_tf32_across", LAST]),  # b does not lie along k
        (product(8, 7, 12, trans_a=True, trans_b=True), "nvidia-h200", ["cuda.gemm_tf32_padded", LAST]),
        (product(8, 8, 12, trans_a=True, trans_b=True), "nvidia-h200", ["cuda.gemm_tf32_across", LAST]),
        (product(8, 8, 12, trans_a=True), "nvidia-h200", [LAST, "cuda.gemm_tf32_crossed"]),  # neither does
        (product(512, 516, 1024, trans_a=True), "nvidia-h200", ["cuda.gemm_tf32_crossed", LAST]),
        (product(513, 516, 1024, trans_a=True), "nvidia-h200", [LAST]),  # rows begin where TMA can't
        (product(7, 8, 11, trans_b=True), "nvidia-h200", ["cuda.gemm_tf32_padded", LAST]),
        (product(7, 9, 12, trans_b=True), "nvidia-h200", ["cuda.gemm_tf32_padded", LAST]),
        (product(7, 8, 12, trans_b=True), "nvidia-a100", [LAST]),
        (product(1, 1, 1).generic(), "rtx-3090", [LAST]),
    ],
)
def test_who_covers_what(work: Workload, machine: str, names: list[str]) -> None:
    assert [template.name for template in templates_for(work, target(machine))] == names


def test_nobody_leaves_bits_out_unasked() -> None:
    full = [template.name for template in templates_for(workload("matmul", m=64, n=64, k=64), H200)]
    assert not any("tf32" in name for name in full)


@pytest.mark.parametrize("machine", ["cuda-sm75", "znver4", "x86-64-v3"])
def test_machines_without_it_say_so(machine: str) -> None:
    with pytest.raises(WorkloadError, match=f"'precision' is 'tf32'; expected full on {machine}"):
        templates_for(product(64, 64, 64), target(machine))


@pytest.mark.parametrize("shape", [(1, 8, 4), (16, 4096, 4096), (8192, 8192, 8192)])
@pytest.mark.parametrize("fields", [{}, {"residual": True}, {"batch": 5}], ids=str)
def test_defaults_are_legal(shape: tuple[int, int, int], fields: dict[str, object]) -> None:
    for trans_b in (True, False):
        work = product(*shape, trans_b=trans_b, **fields)
        templates = templates_for(work, H200)
        for template in templates:
            assert template.default(work, H200) in template.space(work, H200)
        assert templates[-1].generic(work.generic(), H200)[-1].ranges == {}


@pytest.mark.parametrize("fields", [{}, {"trans_a": True, "trans_b": True}, {"residual": True}], ids=str)
def test_generic_kernels_have_room_for_fragments(fields: dict[str, object]) -> None:
    pattern = product(1, 1, 1, **fields).generic()
    kernels = ACROSS.generic(pattern, H200)
    assert all(has_room_for_fragments(kernel.config) for kernel in kernels)
    assert {"m", "n", "k"} >= set(kernels[-1].multiples) >= {"n", "k"}
    assert [kernel.multiples for kernel in PADDED.generic(pattern, H200)] == [{}, {}]


@needs_nvcc
@pytest.mark.parametrize(
    "fields", [{}, {"batch": 3, "residual": True}, {"bias": True, "activation": "gelu"}], ids=str
)
def test_the_code_is_what_was_meant(fields: dict[str, object]) -> None:
    work = product(4096, 4096, 4096, trans_b=True, **fields)
    across = work.replace(trans_b=False)
    cases = [(WGMMA, work, WGMMA.default(work, H200)), (ACROSS, across, ACROSS.default(across, H200))]
    for template, each in ((WGMMA, work), (ACROSS, across), (PADDED, across)):
        for kernel in template.generic(each.generic(), H200):
            cases.append((template, each, kernel.config))
    for cubin in each_compiled(cases, H200):
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        assert "k8.f32.tf32.tf32" in cubin.source


def wgmma_config(
    bm: int, bn: int, bk: int, consumers: int, cluster: int = 1, split_k: int = 1, chained: int = 0
) -> Config:
    return Config.of(
        bm=bm, bn=bn, bk=bk, consumers=consumers, cluster=cluster, split_k=split_k, group=1, beside=1,
        chained=chained,
    )  # fmt: skip


WGMMA_CASES = [
    (product(70, 132, 76, trans_b=True), wgmma_config(64, 64, 64, 1)),  # short last tiles
    (product(130, 72, 132, trans_b=True, bias=True, activation="gelu"), wgmma_config(128, 64, 128, 2)),
    (product(200, 264, 36, trans_b=True, residual=True), wgmma_config(64, 128, 64, 1, cluster=2)),
    (product(33, 104, 260, trans_b=True, bias=True), wgmma_config(64, 64, 64, 1, split_k=2)),
    (product(33, 100, 260, trans_b=True), wgmma_config(64, 64, 64, 1, split_k=2)),  # a four behind the eights
    (product(65, 40, 8, trans_b=True, batch=3), wgmma_config(64, 64, 64, 1)),  # less k than a step
]


ACROSS_CASES = [
    (product(70, 132, 76), wgmma_config(64, 64, 64, 1)),  # short last tiles
    (product(130, 72, 132, bias=True, activation="gelu"), wgmma_config(128, 64, 128, 2)),
    (product(264, 200, 36, residual=True), wgmma_config(64, 128, 64, 1, cluster=2)),
    (product(33, 100, 260, bias=True), wgmma_config(64, 64, 64, 1, split_k=2)),  # rows of odd fours
    (product(13, 132, 260, residual=True), wgmma_config(64, 16, 64, 1, split_k=2)),  # few rows
    (product(40, 68, 8, batch=3, shared="b"), wgmma_config(64, 64, 64, 1)),  # less k than a step
    (product(132, 72, 68, trans_a=True, trans_b=True, bias=True), wgmma_config(128, 64, 64, 1, chained=1)),
    (product(68, 36, 300, trans_a=True, trans_b=True, batch=2), wgmma_config(64, 64, 64, 1, split_k=2)),
]


FEW_CASES = [
    (product(13, 132, 76, trans_b=True, bias=True), wgmma_config(64, 16, 64, 1)),
    (product(33, 100, 260, trans_b=True, batch=2, residual=True), wgmma_config(128, 64, 64, 2, split_k=2)),
]


PADDED_CASES = [
    product(33, 67, 35, bias=True),  # both
    product(70, 65, 72),  # b alone
    product(35, 71, 30, trans_b=True, residual=True, activation="relu"),
    product(67, 64, 40, trans_a=True, trans_b=True),
]


def _in_fours(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `array` with zeros behind its rows, so that TMA takes them."""
    return np.pad(array, ((0, 0), (0, -array.shape[1] % 4)))


def mma_config(bm: int, bn: int, warps_m: int, warps_n: int, stages: int, a: int, b: int) -> Config:
    return Config.of(bm=bm, bn=bn, warps_m=warps_m, warps_n=warps_n, stages=stages, a_vector=a, b_vector=b)


MMA_CASES = [
    (product(70, 72, 76), mma_config(64, 64, 2, 2, 3, 16, 16)),
    (product(37, 61, 35), mma_config(32, 32, 2, 1, 2, 4, 4)),  # rows begin at any element
    (product(38, 62, 34, trans_a=True), mma_config(32, 64, 1, 2, 2, 8, 8)),
    (product(17, 33, 99, trans_a=True, trans_b=True, bias=True), mma_config(16, 128, 1, 4, 2, 4, 4)),
    (
        product(20, 36, 40, trans_b=True, residual=True, activation="relu"),
        mma_config(16, 32, 1, 1, 2, 16, 16),
    ),
    (product(33, 35, 3, batch=3, shared="b"), mma_config(64, 32, 2, 2, 2, 4, 4)),  # less k than a step
]


def check(work: Workload, error: float) -> None:
    """Bits were left out, and no more than that."""
    op = op_of(work)
    assert op.tolerance(work.replace(precision="full")) < error <= op.tolerance(work)


class TestRunHere:
    pytestmark = needs_emulator

    @pytest.mark.parametrize("work, knobs", WGMMA_CASES, ids=[str(work) for work, _ in WGMMA_CASES])
    def test_wgmma_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        tiles = replace(Tiles.of(knobs, H200), multiprocessors=2)
        _, (cubin,) = cuda.compile_module(IRModule({"main": gemm(WGMMA.form_of(work, knobs), tiles)}), H200)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        a, b = op_of(work).random_inputs(work, seed=1)[:2]
        count = blocks_of(work, tiles.bm, tiles.bn)
        grid = count * tiles.split_k if tiles.split_k > 1 else tiles.multiprocessors
        assert H200.gpu is not None
        launch = Launch(grid, tiles.cluster * tiles.split_k, H200.gpu.shared_bytes)
        check(work, error_here(cubin, work, launch, tmp_path, boxes_of(work, tiles, a, b)))

    @pytest.mark.parametrize("work, knobs", ACROSS_CASES, ids=[str(work) for work, _ in ACROSS_CASES])
    def test_wgmma_takes_what_lies_across_k_through_registers(
        self, work: Workload, knobs: Config, tmp_path: Path
    ) -> None:
        assert knobs in ACROSS.space(work, H200)
        tiles = replace(Tiles.of(knobs, H200), multiprocessors=2)
        module = IRModule({"main": gemm(ACROSS.form_of(work, knobs), tiles)})
        _, (cubin,) = cuda.compile_module(module, H200)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        a, b = op_of(work).random_inputs(work, seed=1)[:2]
        sizes = (tiles.bm, tiles.bn) if work["trans_a"] else (tiles.bn, tiles.bm)
        count = blocks_of(work, *sizes)
        grid = count * tiles.split_k if tiles.split_k > 1 else tiles.multiprocessors
        assert H200.gpu is not None
        launch = Launch(grid, tiles.cluster * tiles.split_k, H200.gpu.shared_bytes)
        check(work, error_here(cubin, work, launch, tmp_path, boxes_across(work, tiles, a, b)))

    @pytest.mark.parametrize("work, knobs", FEW_CASES, ids=[str(work) for work, _ in FEW_CASES])
    def test_few_rows_are_columns(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        assert knobs in FEW.space(work, H200)
        tiles = replace(Tiles.of(knobs, H200), multiprocessors=2)
        _, (cubin,) = cuda.compile_module(IRModule({"main": gemm(FEW.form_of(work, knobs), tiles)}), H200)
        a, b = op_of(work).random_inputs(work, seed=1)[:2]
        count = blocks_of(work, tiles.bn, tiles.bm)
        assert H200.gpu is not None
        grid = count * tiles.split_k if tiles.split_k > 1 else tiles.multiprocessors
        launch = Launch(grid, tiles.split_k, H200.gpu.shared_bytes)
        check(work, error_here(cubin, work, launch, tmp_path, boxes_of(work, tiles, b, a)))

    @pytest.mark.parametrize("work", PADDED_CASES, ids=str)
    def test_copies_of_ragged_rows_are_multiplied(self, work: Workload, tmp_path: Path) -> None:
        knobs = wgmma_config(64, 64, 64, 1, chained=1)
        assert knobs in PADDED.space(work, H200)
        tiles, form = replace(Tiles.of(knobs, H200), multiprocessors=2), PADDED.form_of(work, knobs)
        _, (cubin,) = cuda.compile_module(IRModule({"main": gemm(form, tiles)}), H200)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        a, b = (_in_fours(array) for array in op_of(work).random_inputs(work, seed=1)[:2])
        boxes = boxes_across(work, tiles, a, b) if form.across else boxes_of(work, tiles, a, b)
        assert H200.gpu is not None
        launch = Launch(tiles.multiprocessors, 1, H200.gpu.shared_bytes)
        check(work, error_here(cubin, work, launch, tmp_path, boxes, number=1))

    @pytest.mark.parametrize("work, knobs", MMA_CASES, ids=[str(work) for work, _ in MMA_CASES])
    def test_mma_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        tiles = tiles_of(knobs)
        cubin = compiled(MMA, work, H200, knobs)
        assert "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32" in cubin.source
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        launch = Launch(blocks_of(work, tiles.bm, tiles.bn), shared_bytes=tiles.shared_bytes)
        check(work, error_here(cubin, work, launch, tmp_path))


@needs_nvcc
@pytest.mark.parametrize("machine", ["nvidia-a100", "rtx-3090", "rtx-4090", "nvidia-h200"])
@pytest.mark.parametrize("fields", [{}, {"trans_a": True, "trans_b": True}], ids=str)
def test_mma_spills_nothing(machine: str, fields: dict[str, object]) -> None:
    work = product(1024, 1024, 1024, **fields)
    cubin = compiled(MMA, work, target(machine), MMA.default(work, target(machine)))
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
