from __future__ import annotations

import random

import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_stream_k import StreamKGemm
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = StreamKGemm()
H200 = target("nvidia-h200")


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, dtype="bfloat16", **fields)


LARGE = matmul(4096, 4096, 4096)


@pytest.mark.parametrize(
    "work, covered",
    [
        (LARGE, True),
        (matmul(4096, 4096, 4096, bias=True, activation="gelu", residual=True), True),
        (matmul(1024, 1024, 1024, batch=5), False),
        (matmul(64, 64, 64), False),  # less than each block's share
        (matmul(4096, 4096, 4097), False),  # rows that begin where TMA can't
        (LARGE.generic(), False),
    ],
)
def test_it_covers_what_is_long_enough_to_share(work: Workload, covered: bool) -> None:
    assert TEMPLATE.covers(work, H200) is covered


def test_whole_waves_are_not_shared_nor_tiles_by_more_blocks_than_there_are() -> None:
    space = TEMPLATE.space(LARGE, H200)
    for config in space:
        tiles = Tiles.of(config, H200)
        workers = tiles.blocks // tiles.cluster
        rest = -(-4096 // (tiles.bm * tiles.cluster)) * -(-4096 // tiles.bn) % workers
        assert rest > 0 and (tiles.streams == 1 or rest * tiles.streams <= workers)
    assert TEMPLATE.default(LARGE, H200) in space
    assert TEMPLATE.name in [template.name for template in templates_for(LARGE, H200)]
    assert not TEMPLATE.covers(LARGE, target("nvidia-a100"))


@pytest.mark.parametrize("shape", [(33, 8, 1024), (256, 1024, 8192), (8192, 28672, 8192)])
def test_what_it_covers_has_a_default(shape: tuple[int, int, int]) -> None:
    work = matmul(*shape)
    assert not TEMPLATE.covers(work, H200) or TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)


def test_the_workspace_holds_a_tile_and_flags_for_each_block() -> None:
    tiles = Tiles.of(TEMPLATE.default(LARGE, H200), H200)
    assert tiles.workspace_bytes == 132 * (4 * tiles.bm * tiles.bn + 8 * 4 * tiles.consumers * tiles.streams)
    module = TEMPLATE.build(LARGE, H200, TEMPLATE.default(LARGE, H200))
    assert {variable.name_hint for variable in module.get_global_vars()} == {"main", "main_workspace"}


@needs_nvcc
def test_random_configs_compile_without_spills() -> None:
    space, rng = TEMPLATE.space(LARGE, H200), random.Random(1)
    for _ in range(2):
        config = space.sample(rng)
        assert config is not None
        cubin = compiled(TEMPLATE, LARGE, H200, config)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        assert "await_flag" in cubin.source and "griddepcontrol.wait" in cubin.source
