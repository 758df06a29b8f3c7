from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tvm import IRModule

from tests.schedules.cuda.compiled import each_compiled, needs_nvcc
from tests.schedules.cuda.emulated import needs_emulator
from tests.schedules.cuda.products import Launch, blocks_of, boxes_of, error_here
from tvmops.measure import cuda
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_int8_wgmma import Int8WgmmaGemm
from tvmops.schedules.cuda.kernels.gemm_wgmma import gemm
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = Int8WgmmaGemm()
H200 = target("nvidia-h200")


def product(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul_int8", m=m, n=n, k=k, **{"trans_b": True, **fields})


def config(
    bm: int, bn: int, bk: int, consumers: int, cluster: int = 1, split_k: int = 1, group: int = 1
) -> Config:
    return Config.of(
        bm=bm, bn=bn, bk=bk, consumers=consumers, cluster=cluster, split_k=split_k, group=group, beside=1,
        chained=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (product(7, 8, 16), "nvidia-h200", True),
        (product(7, 8, 16, dtype="int8", b_zero_points="channel"), "nvidia-h100", True),
        (product(7, 8, 16).generic(), "nvidia-h200", True),
        (product(7, 8, 16, trans_b=False), "nvidia-h200", False),  # bytes that do not lie along k
        (product(7, 12, 16), "nvidia-h200", False),  # results are stored eight at a time
        (product(7, 8, 24), "nvidia-h200", False),  # rows that TMA can't take
        (product(7, 8, 16, trans_b=False, packed="words"), "nvidia-h200", False),
        (product(7, 8, 16), "nvidia-a100", False),
        (product(7, 8, 16), "znver4", False),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


def test_mma_covers_the_rest() -> None:
    names = [template.name for template in templates_for(product(64, 64, 64), H200)]
    assert names == [TEMPLATE.name, "cuda.gemm_int8"]
    assert [t.name for t in templates_for(product(64, 64, 64, trans_b=False), H200)] == ["cuda.gemm_int8"]


@pytest.mark.parametrize("shape", [(1, 8, 16), (16, 4096, 4096), (4096, 28672, 8192)])
@pytest.mark.parametrize("zero_points", ["none", "channel"])
def test_the_default_is_legal(shape: tuple[int, int, int], zero_points: str) -> None:
    work = product(*shape, b_zero_points=zero_points)
    assert TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)


@pytest.mark.parametrize("zero_points, most", [("none", 256), ("tensor", 128)])
def test_generic_kernels_have_room_for_zero_points(zero_points: str, most: int) -> None:
    kernels = TEMPLATE.generic(product(1, 1, 1, b_zero_points=zero_points).generic(), H200)
    assert kernels[-1].ranges == {} and max(int(kernel.config["bn"]) for kernel in kernels) == most
    assert all(kernel.multiples == {"n": 8, "k": 16} for kernel in kernels)


@needs_nvcc
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"b_zero_points": "channel", "out_dtype": "int8", "scales": "channel", "activation": "gelu"},
        {"dtype": "int8", "out_dtype": "float32", "bias": True},
    ],
    ids=str,
)
def test_the_code_is_what_was_meant(fields: dict[str, object]) -> None:
    """Of defaults for few rows and for many, and of generic kernels."""
    few, work = (product(m, 4096, 4096, **fields) for m in (16, 4096))
    kind = "s8" if work["dtype"] == "int8" else "u8"
    generic = [kernel.config for kernel in TEMPLATE.generic(work.generic(), H200)]
    cases = [(TEMPLATE, few, TEMPLATE.default(few, H200)), (TEMPLATE, work, TEMPLATE.default(work, H200))]
    cases += [(TEMPLATE, each, knobs) for each in (few, work) for knobs in generic]
    for cubin in each_compiled(cases, H200):
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        assert f"k32.s32.{kind}.s8" in cubin.source


CASES = [
    (product(70, 136, 304, dtype="int8"), config(64, 64, 64, 1)),
    (product(130, 72, 528, b_zero_points="channel"), config(128, 64, 128, 2)),
    (product(200, 264, 144, dtype="int8", b_zero_points="tensor"), config(64, 128, 64, 1, cluster=2)),
    (product(33, 104, 1040), config(64, 64, 64, 1, split_k=2)),
    (
        product(
            65, 200, 400, out_dtype="int8", scales="channel", bias=True, b_zero_points="channel",
            activation="relu",
        ),
        config(128, 192, 64, 2),
    ),
    (
        product(20, 72, 800, dtype="int8", out_dtype="uint8", b_zero_points="tensor"),
        config(64, 64, 64, 1, split_k=4),
    ),
    (product(40, 40, 80, out_dtype="float32", scales="channel"), config(64, 64, 128, 1)),
]  # fmt: skip


@pytest.mark.parametrize("work, knobs", CASES, ids=[str(work) for work, _ in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        tiles = replace(TEMPLATE.tiles_of(knobs, H200), multiprocessors=2)
        form = TEMPLATE.form_of(work, knobs)
        _, (cubin,) = cuda.compile_module(IRModule({"main": gemm(form, tiles)}), H200)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        a, b = op_of(work).random_inputs(work, seed=1)[:2]
        count = blocks_of(work, tiles.bm, tiles.bn)
        grid = count * tiles.split_k if tiles.split_k > 1 else tiles.multiprocessors
        assert H200.gpu is not None
        launch = Launch(grid, tiles.cluster * tiles.split_k, H200.gpu.shared_bytes)
        error = error_here(cubin, work, launch, tmp_path, boxes_of(work, tiles, a, b))
        assert error <= op_of(work).tolerance(work)
