from __future__ import annotations

import random

import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_aside import AsideGemm
from tvmops.schedules.cuda.gemm_split import SplitGemm
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.gemm_turned import TurnedGemm
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

ASIDE, SPLIT = AsideGemm(), SplitGemm()
H200 = target("nvidia-h200")


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"dtype": "bfloat16", "trans_b": True, **fields})


@pytest.mark.parametrize(
    "work, aside, split",
    [
        (matmul(336, 2048, 8192), True, True),
        (matmul(336, 2048, 8192, trans_b=False), True, True),
        (matmul(336, 2048, 128), True, False),  # too short to be split
        (matmul(336, 2048, 8192, trans_a=True), False, False),
        (matmul(336, 2048, 8192, batch=2), False, False),
        (matmul(32, 2048, 8192), False, False),  # streamed
        (matmul(4096, 4096, 4096), True, False),  # tiles enough for all
    ],
)
def test_what_they_cover(work: Workload, aside: bool, split: bool) -> None:
    names = [template.name for template in templates_for(work, H200)]
    assert (ASIDE.name in names, SPLIT.name in names) == (aside, split)


@pytest.mark.parametrize("template", [ASIDE, SPLIT], ids=lambda template: template.name)
@pytest.mark.parametrize("work", [matmul(336, 2048, 8192), matmul(100, 512, 1024, bias=True)])
def test_what_is_legal_fits_the_machine(template: TurnedGemm, work: Workload) -> None:
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


def test_two_warpgroups_leave_room_for_a_stage() -> None:
    knobs = {
        "bm": 192,
        "bn": 160,
        "bk": 64,
        "cluster": 1,
        "split_k": 1,
        "group": 1,
        "beside": 1,
        "chained": 1,
    }
    two = Config.of(**knobs, consumers=2, aside=1, abreast=1)
    three = Config.of(**knobs, consumers=3)
    assert (Tiles.of(two, H200).stages, Tiles.of(three, H200).stages) == (4, 3)


@needs_nvcc
@pytest.mark.parametrize(
    "template, bm, bn, more",
    [(ASIDE, 192, 192, {"abreast": 1, "aside": 1}), (SPLIT, 128, 256, {"split_k": 2, "sends": 1})],
)
def test_the_most_sums_fit(template: TurnedGemm, bm: int, bn: int, more: dict[str, int]) -> None:
    work = matmul(400, 5120, 5120)
    plain = {"bk": 64, "consumers": 2, "cluster": 1, "split_k": 1, "group": 1, "beside": 1, "chained": 1}
    config = Config.of(bm=bm, bn=bn, **{**plain, **more})
    assert config in template.space(work, H200)
    assert compiled(template, work, H200, config).report.spilled_bytes == 0
