from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc, ptx_of
from tests.schedules.cuda.emulated import TensorMap, needs_emulator
from tests.schedules.cuda.products import Launch, blocks_of, error_here
from tvmops.ops import op_of
from tvmops.schedules.cuda.kernels.weight_fragments import ELEMENTS, PackedStage
from tvmops.schedules.cuda.kernels.weight_only_products import PANEL
from tvmops.schedules.cuda.weight_only_product import product_of
from tvmops.schedules.cuda.weight_only_tiles import shared_bytes
from tvmops.schedules.cuda.weight_only_wgmma import WeightOnlyWgmma, tiles_of
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = WeightOnlyWgmma()
H200 = target("nvidia-h200")
SMALL = replace(H200, cores=3)  # so that blocks take several tiles


def product(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul_weight_only", m=m, n=n, k=k, **{"dtype": "float16", **fields})


def config(rows: int, groups: int, stages: int, splits: int = 1, beside: int = 1, chained: int = 0) -> Config:
    return Config.of(
        rows=rows, groups=groups, stages=stages, splits=splits, beside=beside, chained=chained
    )  # fmt: skip


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (product(70, 13, 16), "nvidia-h200", True),
        (product(70, 13, 16, dtype="bfloat16", bits=8, x_bits=8), "nvidia-h100", True),
        (product(70, 13, 16).generic(), "nvidia-h100", True),
        (product(70, 13, 16, group=32), "nvidia-h200", True),
        (product(70, 13, 16, group=96), "nvidia-h200", False),  # ends within a stage
        (product(16, 13, 16), "nvidia-h200", False),  # a stream
        (product(70, 13, 12), "nvidia-h200", False),  # rows of x begin where TMA can't
        (product(70, 13, 16, dtype="float32"), "nvidia-h200", False),
        (product(70, 13, 16), "nvidia-a100", False),  # no wgmma
        (product(70, 13, 16), "znver4", False),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


@pytest.mark.parametrize(
    "shape", [(17, 1, 8), (17, 1024, 4096), (64, 28672, 8192), (256, 4096, 4096), (5000, 999, 776)]
)
def test_the_default_is_legal(shape: tuple[int, int, int]) -> None:
    for bits in (4, 8):
        work = product(*shape, bits=bits, zero_points=True, group=32)
        assert TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)


def test_one_kernel_serves_all_shapes() -> None:
    kinds = {TEMPLATE.kernel_workload(product(m, 64 * m, 128 * m, x_bits=8)) for m in (1, 16, 33)}
    assert len(kinds) == 1


@pytest.mark.parametrize("fields", [{}, {"bits": 8, "group": 32, "zero_points": True, "dtype": "bfloat16"}])
def test_generic_kernels_take_all_rows_but_the_fewest_where_rows_of_x_are_aligned(
    fields: dict[str, object],
) -> None:
    kernels = TEMPLATE.generic(product(70, 1, 1, **fields).generic(), H200)
    ranges = [kernel.ranges["m"] for kernel in kernels]
    assert ranges[0][0] == 9 and ranges[-1][1] >= 2**31 - 1
    assert all(last + 1 == first for (_, last), (first, _) in itertools.pairwise(ranges))
    assert all(kernel.multiples == {"k": 8} for kernel in kernels)


CASES = [
    (product(17, 50, 296), config(24, 1, 2, beside=2)),  # odd m; columns and k end within a tile
    (product(45, 135, 328, group=32, zero_points=True), config(24, 1, 3, chained=1)),  # odd n, tiles in turn
    (product(40, 136, 192, bits=8, bias=True, activation="relu"), config(40, 2, 2)),
    (product(31, 84, 320, bits=8, dtype="bfloat16", zero_points=True, group=64), config(16, 1, 2, 2)),
    (product(70, 132, 264, dtype="bfloat16", zero_points=True, bias=True), config(96, 2, 2, 2, chained=2)),
    (product(20, 40, 1000, group=256, activation="silu"), config(24, 1, 4)),
    (product(130, 270, 392, bits=8, zero_points=True), config(128, 2, 2)),  # warpgroups take turns
]


def error_of(work: Workload, knobs: Config, folder: Path, template: WeightOnlyWgmma = TEMPLATE) -> float:
    """Return the largest error of an emulated run amid guards, as a share of what is allowed."""
    cubin, tiles = compiled(template, work, SMALL, knobs), tiles_of(knobs, SMALL)
    x, w, *_ = op_of(work).random_inputs(work, seed=1)  # kept: boxes know where they lie
    blocks = blocks_of(work, tiles.rows, tiles.bn)
    grid = blocks * tiles.splits if tiles.splits > 1 else min(blocks, tiles.beside * SMALL.cores)
    launch = Launch(grid, tiles.splits, shared_bytes(product_of(work), tiles))
    packed, rows = PackedStage.of(product_of(work)), w.reshape(len(w), -1).view(np.int64)
    heights = (packed.heads, packed.box_rows) if packed.apart else (packed.box_rows,)
    maps = [TensorMap.of(rows, rows.shape[::-1], (height * ELEMENTS, 4 * tiles.groups)) for height in heights]
    maps.append(TensorMap.of(x, x.shape[::-1], (PANEL, tiles.rows)))
    boxes = dict(zip(("v", "v_1", "v_2"), maps))  # in the order of their use
    return error_here(cubin, work, launch, folder, boxes) / op_of(work).tolerance(work)


@pytest.mark.parametrize("work, knobs", CASES, ids=[f"{work} {knobs}" for work, knobs in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        assert error_of(work, knobs, tmp_path) <= 1


@pytest.mark.parametrize("seed", range(2))
class TestRandomConfigs:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, seed: int, tmp_path: Path) -> None:
        rng = random.Random(seed)
        m, n, k = rng.choice((17, 30, 77)), rng.randint(1, 200), 8 * rng.randint(1, 90)
        work = product(m, n, k, bits=rng.choice((4, 8)), zero_points=seed % 2 == 0)
        knobs = TEMPLATE.space(work, H200).sample(rng)
        assert knobs is not None
        assert error_of(work, knobs, tmp_path) <= 1


@needs_nvcc
def test_weights_are_converted_in_pairs_on_their_way_to_wgmma(tmp_path: Path) -> None:
    work, knobs = product(256, 4096, 4096), config(128, 2, 4)
    ptx = ptx_of(compiled(TEMPLATE, work, H200, knobs), "sm_90a", tmp_path)
    for instruction in (
        "cp.async.bulk.tensor.2d",
        "ld.shared.v2.b32",
        "fma.rn.f16x2",
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16",
    ):
        assert instruction in ptx
    assert "ld.local" not in ptx and "cvt.f32.f16" not in ptx
