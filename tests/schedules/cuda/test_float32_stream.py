from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.schedules.cuda.compiled import compiled
from tests.schedules.cuda.emulated import needs_emulator
from tests.schedules.cuda.products import Launch, error_here
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.float32_stream import Float32Stream, is_legal, kernel_of, tiles_of
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = Float32Stream()
H200 = target("nvidia-h200")


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"dtype": "float32", **fields})


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (matmul(1, 132, 108), "nvidia-h100", True),
        (matmul(8, 131, 108, trans_b=True), "nvidia-h200", True),
        (matmul(17, 132, 108), "nvidia-h200", False),  # too many rows
        (matmul(1, 131, 108), "nvidia-h200", False),  # rows of b begin anywhere
        (matmul(1, 132, 107), "nvidia-h200", False),
        (matmul(4, 132, 108, trans_a=True), "nvidia-h200", False),
        (matmul(1, 132, 108, batch=2), "nvidia-h200", False),
        (matmul(1, 132, 108, dtype="float16"), "nvidia-h200", False),
        (matmul(1, 132, 108).generic(), "nvidia-h200", False),
        (matmul(1, 132, 108), "rtx-4090", False),  # no clusters
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


def test_it_comes_first_where_rows_are_few() -> None:
    assert templates_for(matmul(4, 4096, 4096), H200)[0].name == TEMPLATE.name


@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 4096, 4096), (8, 28672, 8192), (7, 1024, 28672)])
def test_the_default_is_legal(shape: tuple[int, int, int], trans_b: bool) -> None:
    work = matmul(*shape, trans_b=trans_b)
    assert TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)


def config(
    rows: int, columns: int, warps: int, splits: int, spread: int, depth: int, chained: int = 0
) -> Config:
    return Config.of(
        rows=rows, columns=columns, warps=warps, splits=splits, spread=spread, depth=depth, chained=chained
    )


def error_of(work: Workload, knobs: Config, folder: Path) -> float:
    """Return the largest error of an emulated run amid guards, as a share of what is allowed."""
    cubin, tiles = compiled(TEMPLATE, work, H200, knobs), tiles_of(knobs)
    kernel = kernel_of(work, tiles)
    m, n = work.dims("m", "n")
    blocks = -(-m // tiles.rows) * -(-n // kernel.width) * tiles.splits
    launch = Launch(blocks, tiles.splits, kernel.shared_bytes)
    return error_here(cubin, work, launch, folder) / op_of(work).tolerance(work)


CASES = [
    (matmul(1, 132, 68), config(1, 4, 4, 1, 1, 2)),  # columns and k end within a block, and within a warp
    (matmul(3, 260, 200, bias=True, residual=True), config(4, 4, 8, 4, 2, 3, 1)),
    (matmul(2, 100, 388), config(2, 4, 4, 2, 4, 4)),  # k ends among the lanes of a warp
    (matmul(8, 4, 4, activation="gelu"), config(8, 4, 4, 1, 4, 2)),
    (matmul(1, 37, 516, trans_b=True), config(1, 8, 4, 2, 1, 2, 1)),  # fewer sums than lanes; odd n
    (matmul(7, 33, 260, trans_b=True, bias=True), config(8, 4, 4, 1, 1, 3)),  # as many
    (matmul(5, 70, 900, trans_b=True), config(8, 8, 4, 2, 1, 6)),  # more
]


@pytest.mark.parametrize("work, knobs", CASES, ids=[f"{work} {knobs}" for work, knobs in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        assert is_legal(knobs, work, H200)
        assert error_of(work, knobs, tmp_path) <= 1


@pytest.mark.parametrize("seed", range(4))
class TestRandomConfigs:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, seed: int, tmp_path: Path) -> None:
        rng = random.Random(seed)
        m, n, k = rng.randint(1, 16), 4 * rng.randint(1, 60), 4 * rng.randint(1, 300)
        work = matmul(m, n, k, trans_b=seed % 2 == 0)
        knobs = TEMPLATE.space(work, H200).sample(rng)
        assert knobs is not None
        assert error_of(work, knobs, tmp_path) <= 1
