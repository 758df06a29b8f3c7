from __future__ import annotations

import random

import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_split import SplitGemm
from tvmops.schedules.cuda.gemm_tight import TightGemm
from tvmops.schedules.cuda.gemm_tight_rows import TightRowsGemm
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.gemm_wgmma import WgmmaGemm
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TIGHT, ROWS, SPLIT = TightGemm(), TightRowsGemm(), SplitGemm()
H200 = target("nvidia-h200")


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"dtype": "bfloat16", "trans_b": True, **fields})


@pytest.mark.parametrize(
    "work, tight, rows",
    [
        (matmul(240, 1536, 6144), True, True),
        (matmul(240, 1536, 6144, trans_b=False), True, False),  # 64 columns of b lie together
        (matmul(240, 1536, 6144, trans_a=True), False, False),
        (matmul(240, 1536, 6144, batch=2), False, False),
        (matmul(240, 1536, 6144, out_dtype="float32"), False, True),
        (matmul(32, 1536, 6144), False, False),  # streamed
        (matmul(4096, 4096, 4096), True, False),  # so long that a launch is lost in it
    ],
)
def test_what_they_cover(work: Workload, tight: bool, rows: bool) -> None:
    names = [template.name for template in templates_for(work, H200)]
    assert (TIGHT.name in names, ROWS.name in names) == (tight, rows)


@pytest.mark.parametrize("bm, bn, stages, others", [(64, 48, 15, 12), (128, 80, 8, 6), (64, 144, 8, 6)])
def test_stages_without_gaps_are_more(bm: int, bn: int, stages: int, others: int) -> None:
    config = Config.of(bm=bm, bn=bn, bk=64, consumers=1, cluster=1, split_k=1, group=1, beside=1)
    tight = Config.of(**config.as_dict(), tight=1, store_buffers=1)
    assert (Tiles.of(tight, H200).stages, Tiles.of(config, H200).stages) == (stages, others)


@pytest.mark.parametrize("template", [TIGHT, ROWS, SPLIT], ids=lambda template: template.name)
@pytest.mark.parametrize("work", [matmul(336, 2048, 8192), matmul(100, 512, 1024, bias=True)])
def test_what_is_legal_fits_the_machine(template: WgmmaGemm, work: Workload) -> None:
    assert H200.gpu is not None
    rng, space = random.Random(0), template.space(work, H200)
    for config in [template.default(work, H200), *(space.sample(rng) for _ in range(30))]:
        assert config is not None and config in space
        tiles = Tiles.of(config, H200)
        threads = tiles.consumer_registers * tiles.consumers + tiles.producer_registers
        assert threads * 128 <= H200.gpu.block_registers
        room = tiles.stages * tiles.stage_bytes + 8192 * tiles.store_buffers * tiles.consumers
        assert tiles.stages >= 3 and room <= H200.gpu.shared_bytes
        assert tiles.partial_bytes <= tiles.stages * tiles.stage_bytes
        assert min(tiles.cluster, tiles.abreast) == 1  # blocks of a cluster share one factor


@needs_nvcc
@pytest.mark.parametrize(
    "template, bm, bn, more",
    [
        (TIGHT, 320, 128, {"consumers": 2, "aside": 1, "abreast": 1}),
        (TIGHT, 192, 112, {"aside": 0, "abreast": 2}),
        (SPLIT, 128, 176, {"consumers": 2, "split_k": 4, "sends": 1}),
    ],
)
def test_the_most_sums_fit_the_registers(template: WgmmaGemm, bm: int, bn: int, more: dict[str, int]) -> None:
    work = matmul(400, 5120, 5120)
    knobs = {knob.name: knob.values[0] for knob in template.space(work, H200).knobs}
    config = Config.of(**{**knobs, "bm": bm, "bn": bn, "consumers": 1, "split_k": 1, **more})
    assert config in template.space(work, H200)
    assert compiled(template, work, H200, config).report.spilled_bytes == 0
