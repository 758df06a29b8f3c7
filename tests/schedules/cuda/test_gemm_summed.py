from __future__ import annotations

import random

import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_summed import SummedGemm
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = SummedGemm()
H200 = target("nvidia-h200")


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, dtype="bfloat16", **fields)


LONG = matmul(128, 1024, 8192)


@pytest.mark.parametrize(
    "work, covered",
    [
        (LONG, True),
        (matmul(128, 1024, 8192, bias=True, activation="gelu", residual=True), True),
        (matmul(33, 8, 1024), True),  # the fewest rows, the shortest k
        (matmul(32, 1024, 8192), False),  # streamed
        (matmul(128, 1024, 1016), False),
        (matmul(4096, 4096, 4096), False),  # tiles enough, and too many sums
        (matmul(256, 8192, 8192), False),  # so here: no config has blocks for two parts of each tile
        (matmul(128, 1024, 8192, batch=2), False),
        (matmul(128, 1021, 8192), False),  # rows that begin where TMA can't
        (LONG.generic(), False),
    ],
)
def test_it_covers_few_tiles_of_a_long_k(work: Workload, covered: bool) -> None:
    assert TEMPLATE.covers(work, H200) is covered


def test_what_it_covers_has_a_default() -> None:
    for m in (33, 64, 129, 512):
        for n in (8, 1000, 4096):
            work = matmul(m, n, 2048)
            if TEMPLATE.covers(work, H200):
                assert TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)
    assert TEMPLATE.name in [template.name for template in templates_for(LONG, H200)]
    assert not TEMPLATE.covers(LONG, target("nvidia-a100"))


def test_parts_take_no_more_blocks_than_stay_on_the_machine() -> None:
    for config in TEMPLATE.space(LONG, H200):
        tiles = -(-128 // config.number("bm")) * -(-1024 // config.number("bn"))
        assert config["split_k"] == 1
        assert tiles * config.number("parts") <= 132 * config.number("beside")


def test_kernels_that_leave_room_for_the_next_are_preferred() -> None:
    config = TEMPLATE.default(LONG, H200)
    tiles = -(-128 // config.number("bm")) * -(-1024 // config.number("bn"))
    assert 2 * tiles * config.number("parts") <= H200.cores


@needs_nvcc
def test_random_configs_compile_without_spills() -> None:
    space, rng = TEMPLATE.space(LONG, H200), random.Random(1)
    for _ in range(2):
        config = space.sample(rng)
        assert config is not None
        cubin = compiled(TEMPLATE, LONG, H200, config)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        assert f"add_{config['parts']}_parts" in cubin.source
        assert "griddepcontrol.wait" in cubin.source and "store_bfloat16_8" in cubin.source


def test_it_says_how_much_workspace_it_needs() -> None:
    module = TEMPLATE.build(LONG, H200, TEMPLATE.default(LONG, H200))
    assert {variable.name_hint for variable in module.get_global_vars()} == {"main", "main_workspace"}
