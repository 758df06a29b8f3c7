from __future__ import annotations

import random

import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tvmops.schedules.cuda.gemm_ragged import RaggedGemm
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = RaggedGemm()
H200 = target("nvidia-h200")


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"dtype": "bfloat16", **fields})


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (matmul(7, 13, 11), "nvidia-h200", True),
        (matmul(7, 16, 11), "nvidia-h100", True),  # rows of a
        (matmul(7, 13, 16), "nvidia-h200", True),  # rows of b and c
        (matmul(7, 16, 16), "nvidia-h200", False),  # TMA takes them as they are
        (matmul(7, 13, 16, trans_b=True), "nvidia-h200", True),
        (matmul(7, 13, 11, trans_b=True), "nvidia-h200", False),  # would put columns of c out of order
        (matmul(7, 13, 11, trans_a=True), "nvidia-h200", False),
        (matmul(7, 13, 16, trans_b=True, batch=3), "nvidia-h200", True),
        (matmul(7, 13, 11, batch=3), "nvidia-h200", False),  # matrices begin anywhere, too
        (matmul(7, 13, 11, dtype="float32"), "nvidia-h200", False),
        (matmul(7, 13, 11), "nvidia-a100", False),
        (matmul(7, 13, 11).generic(), "nvidia-h200", True),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


@pytest.mark.parametrize("n, k, ragged", [(13, 11, (1, 1, 1)), (16, 11, (1, 0, 0)), (13, 16, (0, 1, 1))])
def test_rows_are_ragged_as_sizes_say(n: int, k: int, ragged: tuple[int, int, int]) -> None:
    config = TEMPLATE.default(matmul(200, n, k), H200)
    assert tuple(config[f"ragged_{array}"] for array in "abc") == ragged


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (5, 9, 7), (1, 4097, 4095), (1000, 1001, 1003), (8191, 8191, 8191)]
)
def test_the_default_is_legal(shape: tuple[int, int, int]) -> None:
    assert TEMPLATE.default(matmul(*shape), H200) in TEMPLATE.space(matmul(*shape), H200)


def test_ragged_rows_of_b_come_by_64_along_k_to_64_rows_a_consumer() -> None:
    rng = random.Random(0)
    for _ in range(50):
        config = TEMPLATE.space(matmul(999, 999, 999), H200).sample(rng)
        assert config is not None and config["bk"] == 64
        assert config["bm"] == 64 * config.number("consumers")


def test_generic_kernels_answer_every_shape() -> None:
    assert all(not kernel.multiples for kernel in TEMPLATE.generic(matmul(1, 1, 1).generic(), H200))
    by_k = TEMPLATE.generic(matmul(1, 1, 1, trans_b=True).generic(), H200)
    assert all(kernel.multiples == {"k": 8} for kernel in by_k)


@needs_nvcc
@pytest.mark.parametrize(
    "work, paired",
    [
        (matmul(4095, 4097, 4099), True),
        (matmul(70, 999, 999, bias=True, residual=True, activation="relu"), True),
        (matmul(16, 4097, 4095, dtype="float16"), True),  # sums are split
        (matmul(1001, 1000, 1002), False),
        (matmul(197, 197, 64, trans_b=True, batch=64), False),
    ],
    ids=str,
)
def test_the_code_is_what_was_meant(work: Workload, paired: bool) -> None:
    config: Config = TEMPLATE.default(work, H200)
    cubin = compiled(TEMPLATE, work, H200, config)
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    assert "wgmma.mma_async" in cubin.source and "cp.async.bulk.tensor" in cubin.source
    assert ("pair_up(" in cubin.source) is paired
    views = 8 * (config.number("ragged_a") + config.number("ragged_b"))
    views += 2 - config.number("ragged_a") - config.number("ragged_b")
    (line,) = [line for line in cubin.source.splitlines() if "__global__" in line and line.endswith("{")]
    stored = 0 if config["ragged_a"] or config["ragged_c"] else 1
    assert line.count("CUtensorMap") == views + stored
