from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc, ptx_of
from tests.schedules.cuda.emulated import needs_emulator
from tests.schedules.cuda.products import Launch, blocks_of, error_here
from tvmops.ops import op_of
from tvmops.schedules.cuda.gemm_stream_loose import LooseStreamGemm, tiles_of
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = LooseStreamGemm()
H200 = target("nvidia-h200")


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"dtype": "bfloat16", **fields})


def config(rows: int, spans: int, turns: int, splits: int, depth: int, ahead: int | None = None) -> Config:
    knobs = {"rows": rows, "spans": spans, "turns": turns, "splits": splits, "depth": depth}
    return Config.of(**knobs, chained=int(ahead is not None), ahead=ahead or 0)


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (matmul(1, 4097, 4095), "nvidia-h200", True),
        (matmul(16, 4096, 4095), "nvidia-a100", True),  # rows of a alone
        (matmul(16, 4097, 4096), "nvidia-h100", True),  # rows of b alone
        (matmul(16, 4096, 4096), "nvidia-h200", False),  # aligned
        (matmul(17, 4097, 4095), "nvidia-h200", False),
        (matmul(1, 4097, 4095, trans_b=True), "nvidia-h200", False),
        (matmul(1, 4097, 4095, trans_a=True), "nvidia-h200", False),
        (matmul(1, 4097, 4095, batch=2), "nvidia-h200", False),
        (matmul(1, 4097, 4095, dtype="float32"), "nvidia-h200", False),
        (matmul(1, 4097, 4095).replace(m="*"), "nvidia-h200", True),
        (matmul(1, 4097, 4095).generic(), "nvidia-h200", False),
        (matmul(16, 1001, 28673), "nvidia-h200", True),
        (
            matmul(16, 1001, 28673),
            "nvidia-a100",
            False,
        ),  # a is too much for a block
        (matmul(1, 4097, 4095), "cuda-sm75", False),  # no mma.sync of bfloat16
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


@pytest.mark.parametrize(
    "shape, machine",
    [
        ((1, 1, 1), "nvidia-h200"),
        ((1, 4097, 4095), "nvidia-a100"),
        ((16, 2049, 2047), "rtx-3090"),
        ((16, 1001, 28673), "nvidia-h200"),
    ],
)
def test_the_default_is_legal(shape: tuple[int, int, int], machine: str) -> None:
    work = matmul(*shape)
    assert TEMPLATE.default(work, target(machine)) in TEMPLATE.space(work, target(machine))


def test_few_columns_are_split_over_blocks() -> None:
    work = matmul(1, 1025, 8191)
    assert int(TEMPLATE.default(work, H200)["splits"]) > 1
    assert TEMPLATE.default(work, target("nvidia-a100"))["splits"] == 1  # no clusters


@needs_nvcc
def test_weights_are_read_wide_at_once_and_after_the_wait(tmp_path: Path) -> None:
    work = matmul(1, 4097, 4095)
    cubin = compiled(TEMPLATE, work, H200, config(1, 1, 1, 2, 1, 1))
    assert cubin.report.spilled_bytes == cubin.report.stack_bytes == 0
    ptx = ptx_of(cubin, "sm_90a", tmp_path)
    steps = ("prefetch.global.L2", "griddepcontrol.wait", "ld.global.L1::no_allocate.L2::256B.v4.b32")
    places = [ptx.index(step) for step in (*steps, "griddepcontrol.launch_dependents")]
    assert places == sorted(places)


def error_of(work: Workload, knobs: Config, folder: Path) -> float:
    """Return the largest error of an emulated run amid guards, as a share of what is allowed."""
    cubin, tiles = compiled(TEMPLATE, work, H200, knobs), tiles_of(knobs)
    blocks = blocks_of(work, tiles.rows, tiles.columns) * tiles.splits
    launch = Launch(blocks, tiles.splits, tiles.shared_bytes(work.dims("k")[0]))
    return error_here(cubin, work, launch, folder) / op_of(work).tolerance(work)


CASES = [
    (matmul(1, 61, 131), config(1, 1, 1, 1, 1, 1)),  # k ends within a unit
    (matmul(1, 57, 1031), config(1, 1, 2, 2, 1)),  # the last block has one column
    (matmul(13, 130, 1030, bias=True, residual=True, activation="relu"), config(16, 1, 1, 2, 2)),
    (matmul(3, 125, 300, dtype="float16"), config(4, 2, 1, 1, 1)),
    (matmul(17, 172, 515), config(16, 2, 1, 1, 2, 1)),  # several bands of rows
    (matmul(2, 64, 263), config(2, 1, 1, 1, 1)),  # rows of a alone begin anywhere
    (matmul(2, 3, 5), config(2, 1, 1, 1, 1)),  # all of b is less than a vector
]  # fmt: skip


@pytest.mark.parametrize("work, knobs", CASES, ids=[f"{work} {knobs}" for work, knobs in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        assert error_of(work, knobs, tmp_path) <= 1


@pytest.mark.parametrize("seed", range(3))
class TestRandomConfigs:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, seed: int, tmp_path: Path) -> None:
        rng = random.Random(seed)
        work = matmul(rng.choice((1, 7, 16)), rng.randint(1, 200), rng.randint(1, 900) | 1)
        knobs = TEMPLATE.space(work, H200).sample(rng)
        assert knobs is not None
        assert error_of(work, knobs, tmp_path) <= 1
