from __future__ import annotations

from pathlib import Path

import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.copied_beside import run_beside
from tests.schedules.cuda.emulated import needs_emulator
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_padded import PaddedGemm
from tvmops.schedules.cuda.gemm_padded_spare import SparePaddedGemm
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = SparePaddedGemm()
H200 = target("nvidia-h200")
ONE = dict.fromkeys(("consumers", "cluster", "split_k", "group", "beside", "chained"), 1)
SMALL = {**ONE, "bm": 64, "bn": 64, "bk": 64, "share": 40}


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"dtype": "bfloat16", **fields})


@pytest.mark.parametrize(
    "work, covered",
    [
        (matmul(2049, 2047, 2051), True),
        (matmul(2040, 2047, 2048, trans_a=True), True),
        (matmul(4095, 4097, 4099), False),  # all blocks have tiles
        (matmul(2048, 2048, 2048), False),  # nothing is copied
        (matmul(2049, 2047, 2051, batch=2), False),
        (matmul(2049, 2047, 2051).generic(), False),
    ],
)
def test_what_it_covers(work: Workload, covered: bool) -> None:
    assert TEMPLATE.covers(work, H200) is covered


def test_search_alone_takes_it() -> None:
    work = matmul(2049, 2047, 2051)
    first, second, *_ = templates_for(work, H200)
    assert (first.name, second.name) == ("cuda.gemm_padded", "cuda.gemm_padded_spare")
    default = TEMPLATE.default(work, H200)
    assert default in TEMPLATE.space(work, H200)
    padded = PaddedGemm()
    assert TEMPLATE.estimate(work, H200, default) < padded.estimate(work, H200, padded.default(work, H200))


class TestRunHere:
    pytestmark = needs_emulator

    # Two stretches come late, the last one shorter, of both operands; next to an aligned one; for
    # clusters, of rows across k; of pairs of blocks. Where few blocks have no tile, or none, nothing does.
    @pytest.mark.parametrize(
        "work, knobs, blocks, late",
        [
            (matmul(70, 67, 603), {}, 9, True),
            (matmul(66, 130, 599, trans_b=True, residual=True), {"share": 60}, 10, True),
            (matmul(68, 72, 520, trans_a=True, bias=True, dtype="float16"), {"cluster": 2}, 12, True),
            (matmul(131, 67, 330), {"group": 2}, 12, True),
            (matmul(70, 67, 330), {}, 7, False),
            (matmul(70, 67, 330), {}, 3, False),
        ],
    )
    def test_it_computes_the_product(
        self, work: Workload, knobs: dict[str, int], blocks: int, late: bool, tmp_path: Path
    ) -> None:
        config = TEMPLATE.space(work, H200).config({**SMALL, **knobs})
        run_beside(TEMPLATE, work, config, blocks, tmp_path, late)


@needs_nvcc
def test_the_code_is_what_was_meant() -> None:
    work = matmul(2049, 2047, 2051)
    cubin = compiled(TEMPLATE, work, H200, TEMPLATE.default(work, H200))
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    assert "pad_rows(" not in cubin.source and cubin.source.count("fence.proxy.async.global") == 2
