from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.schedules.cuda.compiled import compiled
from tests.schedules.cuda.emulated import emulated, needs_emulator
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.rows import CudaRows, tiles_of
from tvmops.signatures.dtypes import decode
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = CudaRows()
H200 = target("nvidia-h200")
GUARD = 64  # elements


def config(threads: int, rows: int = 1, resident: int = 0, keep: bool = False) -> Config:
    return Config.of(threads=threads, rows=rows, stream=True, resident=resident, keep=keep)


def norm(op: str = "layer_norm", **changes: object) -> Workload:
    return workload(op, **{"rows": 5, "cols": 1024, "weight": True, "dtype": "bfloat16", **changes})


def softmax(**changes: object) -> Workload:
    return workload("softmax", **{"rows": 5, "cols": 1024, "dtype": "bfloat16", **changes})


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (softmax(), "nvidia-h200", True),
        (norm(dtype="float32"), "rtx-4090", True),
        (norm("rms_norm", dtype="float16", rows="*"), "cuda-sm75", True),
        (softmax(cols=32768, rows=64), "nvidia-h200", True),
        (softmax(cols=65536), "nvidia-h200", False),  # more than the registers of a block hold
        (softmax(cols=32000), "nvidia-h200", False),  # few and long: blocks of a cluster share one
        (softmax(cols=32000), "rtx-4090", True),  # which has none
        (softmax(cols=4097, rows=4096), "nvidia-h200", False),  # many that begin anywhere
        (softmax(axis="middle", inner=3), "nvidia-h200", False),
        (softmax(cols="*"), "nvidia-h200", False),
        (softmax(), "znver4", False),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


def test_no_template_for_cpus_takes_it() -> None:
    assert [template.name for template in templates_for(norm(), H200)] == ["cuda.rows", "cuda.rows_long"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "cols, residual", [(1, False), (17, True), (999, False), (1000, True), (8192, True), (32768, False)]
)
def test_the_default_is_legal(cols: int, dtype: str, residual: bool) -> None:
    work = norm(cols=cols, dtype=dtype, residual=residual, rows=2048)
    assert TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)


def test_what_is_legal_covers_the_row() -> None:
    rng = random.Random(0)
    for cols in (17, 1000, 32768):
        for _ in range(30):
            drawn = TEMPLATE.space(norm(cols=cols), H200).sample(rng)
            assert drawn is not None and tiles_of(drawn, H200).block <= 1024


CASES = [
    (norm(bias=True), config(128)),
    (norm("rms_norm", residual=True, cols=1000, rows=7), config(64, rows=2)),  # a last, short group
    (norm(cols=999, dtype="float32", bias=True, rows=300), config(256, resident=2, keep=True)),  # odd
    (norm("rms_norm", cols=2048, rows=140), config(128, resident=1)),  # one meeting a row
    (softmax(cols=516, dtype="float16", scaled=True, mask_rows=2, rows=6), config(64, 2)),
    (softmax(cols=96, log=True, dtype="float32", rows=140), config(32, resident=1)),  # idle lanes
]


@pytest.mark.parametrize("work, knobs", CASES, ids=[f"{work} {knobs}" for work, knobs in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_op(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        assert knobs in TEMPLATE.space(work, H200)
        cubin = compiled(TEMPLATE, TEMPLATE.kernel_workload(work), H200, knobs)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        call, tiles = emulated(cubin, tmp_path), tiles_of(knobs, H200)
        op, dtype = op_of(work), str(work["dtype"])
        inputs = op.random_inputs(work, seed=1)
        right = op.reference(work, *(decode(array, dtype) for array in inputs))
        names = [spec.name for spec in op.inputs(work)]
        arguments: dict[str, object] = dict(zip(names, inputs))
        memories = []
        for spec, exact in zip(op.outputs(work), right):
            nbytes = (exact.size + 2 * GUARD) * inputs[0].itemsize
            memory = np.frombuffer(bytearray(b"\xff" * nbytes), inputs[0].dtype)  # NaN
            memories.append(memory)
            arguments[spec.name] = memory[GUARD:-GUARD].reshape(exact.shape)
        (rows,) = work.dims("rows")
        arguments |= {"rows": rows, "eps": 1e-5, "scale": (op.scalars(work) or (0.0,))[0]}
        arguments["mask_rows"] = work.dims("mask_rows")[0] if work.op == "softmax" else 0
        grid = tiles.blocks if tiles.stays else -(-rows // tiles.rows)
        call(grid, arguments, shared_bytes=8192)
        for memory, exact in zip(memories, right):
            bits = memory.view(f"u{memory.itemsize}")
            assert (~bits[:GUARD] == 0).all() and (~bits[-GUARD:] == 0).all()
            found = decode(memory[GUARD:-GUARD].reshape(exact.shape), dtype).astype(np.float64)
            assert np.abs(found - exact).max() <= op.tolerance(work)
