from __future__ import annotations

from pathlib import Path

import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.copied_beside import run_beside
from tests.schedules.cuda.emulated import needs_emulator
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_padded import PaddedGemm
from tvmops.schedules.cuda.gemm_padded_late import LatePaddedGemm
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = LatePaddedGemm()
H200 = target("nvidia-h200")
ONE = dict.fromkeys(("consumers", "cluster", "split_k", "group", "beside", "chained"), 1)


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"dtype": "bfloat16", **fields})


@pytest.mark.parametrize(
    "work, covered",
    [
        (matmul(4095, 4097, 4099), True),
        (matmul(4095, 4097, 4099, trans_b=True, bias=True), True),
        (matmul(2049, 2047, 2051), False),  # a wave of tiles: all is needed at once
        (matmul(3000, 3002, 3004), False),  # the largest tiles leave much of the third wave
        (matmul(65_536, 101, 4099), False),  # multiplied in less time than copied
        (matmul(4096, 4096, 4096), False),  # nothing is copied
        (matmul(4095, 4097, 512, trans_b=True), False),  # nor here: only results begin anywhere
        (matmul(4095, 4097, 4099, batch=2), False),
        (matmul(4095, 4097, 4099, trans_a=True, residual=True), False),  # has no registers left
        (matmul(4095, 4097, 4099).generic(), False),
    ],
)
def test_what_it_covers(work: Workload, covered: bool) -> None:
    assert TEMPLATE.covers(work, H200) is covered


def test_untuned_it_is_what_answers() -> None:
    work = matmul(4095, 4097, 4099)
    first, second, *_ = templates_for(work, H200)
    assert (first.name, second.name) == ("cuda.gemm_padded_late", "cuda.gemm_padded")
    default = TEMPLATE.default(work, H200)
    assert default in TEMPLATE.space(work, H200)
    padded = PaddedGemm()
    assert TEMPLATE.estimate(work, H200, default) < padded.estimate(work, H200, padded.default(work, H200))


class TestRunHere:
    pytestmark = needs_emulator

    # Few blocks, so that most is copied late: of both operands, for clusters, of rows shorter than what is
    # loaded at once or longer, next to an aligned operand.
    @pytest.mark.parametrize(
        "work, knobs, blocks",
        [
            (matmul(136, 137, 203), {"group": 2}, 4),
            (matmul(264, 150, 136), {"cluster": 2, "group": 2}, 4),
            (matmul(131, 301, 7, trans_b=True, residual=True), {}, 2),
            (matmul(2205, 72, 7, trans_a=True, bias=True, dtype="float16"), {"bn": 80}, 2),
        ],
    )
    def test_it_computes_the_product(
        self, work: Workload, knobs: dict[str, int], blocks: int, tmp_path: Path
    ) -> None:
        config = TEMPLATE.space(work, H200).config({**ONE, "bm": 64, "bn": 64, "bk": 64, **knobs})
        run_beside(TEMPLATE, work, config, blocks, tmp_path)


@needs_nvcc
def test_the_code_is_what_was_meant() -> None:
    work = matmul(4095, 4097, 4099, bias=True, activation="gelu")
    cubin = compiled(TEMPLATE, work, H200, TEMPLATE.default(work, H200))
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    assert "pad_rows(" not in cubin.source and cubin.source.count("fence.proxy.async.global") == 2
