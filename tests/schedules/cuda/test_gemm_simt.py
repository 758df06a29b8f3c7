from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.emulated import emulated, needs_emulator
from tvmops.ops import op_of
from tvmops.schedules.cuda.gemm_simt import SimtGemm, is_legal, tiles_of
from tvmops.signatures.dtypes import decode, stored
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = SimtGemm()
H200 = target("nvidia-h200")
GUARD = 64  # elements


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"dtype": "float32", **fields})


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (matmul(700, 130, 110), "nvidia-h200", True),
        (matmul(700, 130, 110), "cuda-sm75", True),
        (matmul(700, 130, 110).generic(), "cuda-sm75", True),
        (matmul(7, 13, 11, dtype="float16"), "nvidia-h200", True),
        (matmul(700, 1300, 1100, dtype="float16"), "nvidia-h200", False),  # for tensor cores
        (matmul(700, 1300, 1100, dtype="float16"), "cuda-sm75", True),
        (matmul(700, 1300, 1100, dtype="bfloat16", out_dtype="float32"), "nvidia-h200", True),
        (matmul(7, 13, 11), "znver4", False),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


@pytest.mark.parametrize("machine", ["nvidia-h200", "rtx-4090", "cuda-sm75"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4096, 4096), (1000, 999, 777), (8192, 8192, 8192)])
def test_the_default_is_legal(shape: tuple[int, int, int], machine: str) -> None:
    work = matmul(*shape)
    assert TEMPLATE.default(work, target(machine)) in TEMPLATE.space(work, target(machine))


def test_generic_kernels_answer_every_shape() -> None:
    last = TEMPLATE.generic(matmul(1, 1, 1).generic(), H200)[-1]
    assert last.ranges == {} and last.multiples == {}


def test_what_is_legal_fits_the_machine() -> None:
    turing = target("cuda-sm75")
    assert turing.gpu is not None
    rng = random.Random(0)
    for _ in range(50):
        config = TEMPLATE.space(matmul(512, 512, 512), turing).sample(rng)
        assert config is not None and tiles_of(config).shared_bytes <= turing.gpu.shared_bytes


def config(bm: int, bn: int, bk: int, tm: int, tn: int) -> Config:
    return Config.of(bm=bm, bn=bn, bk=bk, tm=tm, tn=tn)


CASES = [
    (matmul(37, 61, 35), config(16, 32, 16, 4, 4)),  # short last tiles
    (
        matmul(
            17, 35, 9, trans_a=True, trans_b=True, batch=3, bias=True, residual=True, activation="gelu"
        ),  # less k than a step
        config(32, 64, 16, 4, 8),
    ),
    (matmul(24, 70, 40, batch=2, shared="b", dtype="float16", activation="silu"), config(32, 64, 8, 8, 8)),
    (
        matmul(
            9, 33, 50, dtype="bfloat16", bias=True, residual=True, out_dtype="float32", bias_dtype="float32"
        ),
        config(32, 32, 8, 4, 4),
    ),
    (matmul(70, 140, 33, trans_a=True), config(64, 128, 16, 8, 8)),
]


@pytest.mark.parametrize("work, knobs", CASES, ids=[str(work) for work, _ in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        assert is_legal(knobs, work, H200)
        cubin = compiled(TEMPLATE, work, H200, knobs)
        assert cubin.report.spilled_bytes == 0 and "mma" not in cubin.source
        op, tiles = op_of(work), tiles_of(knobs)
        (out,) = op.outputs(work)
        inputs, specs = op.random_inputs(work, seed=1), op.inputs(work)
        (right,) = op.reference(work, *(decode(a, s.dtype) for a, s in zip(inputs, specs)))
        m, n, k, batch = work.dims("m", "n", "k", "batch")
        held = np.dtype(stored(out.dtype))
        memory = np.full((right.size + 2 * GUARD) * held.itemsize, 0xFF, np.uint8).view(held)  # NaN
        arguments: dict[str, object] = dict(zip((spec.name for spec in specs), inputs))
        arguments |= {"c": memory[GUARD:-GUARD].reshape(right.shape), "m": m, "n": n, "k": k, "batch": batch}
        grid = -(-m // tiles.bm) * -(-n // tiles.bn) * batch
        emulated(cubin, tmp_path)(grid, arguments, shared_bytes=tiles.shared_bytes)
        assert (memory[:GUARD].view(np.uint8) == 0xFF).all() and (
            memory[-GUARD:].view(np.uint8) == 0xFF
        ).all()
        found = decode(memory[GUARD:-GUARD].reshape(right.shape), out.dtype).astype(np.float64)
        assert np.abs(found - right).max() <= op.tolerance(work)


@needs_nvcc
@pytest.mark.parametrize("machine", ["cuda-sm75", "rtx-4090"])
def test_it_compiles_for_other_gpus_without_spills(machine: str) -> None:
    work = matmul(1024, 1024, 1024)
    cubin = compiled(TEMPLATE, work, target(machine), TEMPLATE.default(work, target(machine)))
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
