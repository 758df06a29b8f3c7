from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.schedules.cuda.compiled import compiled
from tests.schedules.cuda.emulated import emulated, needs_emulator
from tvmops.ops import op_of
from tvmops.schedules.cuda.long_rows import LongRows, tiles_of
from tvmops.signatures.dtypes import decode
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = LongRows()
H200 = target("nvidia-h200")
GUARD = 64  # elements


def config(threads: int, cluster: int = 1, kept: int = 0, depth: int = 0, ahead: bool = False, resident: int = 1) -> Config:
    return Config.of(
        threads=threads, cluster=cluster, kept=kept, depth=depth, ahead=ahead, stream=True, resident=resident
    )


def norm(op: str = "layer_norm", **changes: object) -> Workload:
    return workload(op, **{"rows": 3, "cols": 1024, "weight": True, "dtype": "bfloat16", **changes})


def softmax(**changes: object) -> Workload:
    return workload("softmax", **{"rows": 3, "cols": 1024, "dtype": "bfloat16", **changes})


CASES = [
    (softmax(cols=1, dtype="float16"), config(64, kept=1)),
    (softmax(cols=257, rows=9), config(64, kept=1)),
    (norm(cols=1024, bias=True), config(64, 2, kept=1, ahead=True)),
    (softmax(rows=1, cols=50257, log=True), config(512, 8, kept=2)),
    (norm("rms_norm", cols=4097, dtype="float32", residual=True, rows=5), config(128, 2, kept=1, depth=2)),
    (norm(cols=4099, dtype="float16", bias=True, rows=9), config(64, 4, kept=3, ahead=True)),
    (softmax(cols=1030, scaled=True, mask_rows=3, rows=9), config(64, 2, depth=4)),
    (norm(cols=20001, bias=True, residual=True), config(128, 16, kept=2)),
]


@pytest.mark.parametrize("work, knobs", CASES, ids=[f"{work} {knobs}" for work, knobs in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_op(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        assert knobs in TEMPLATE.space(work, H200)
        cubin = compiled(TEMPLATE, TEMPLATE.kernel_workload(work), H200, knobs)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        call, tiles = emulated(cubin, tmp_path), tiles_of(knobs)
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
        rows, cols = work.dims("rows", "cols")
        arguments |= {"rows": rows, "cols": cols, "eps": 1e-5, "scale": (op.scalars(work) or (0.0,))[0]}
        arguments["mask_rows"] = work.dims("mask_rows")[0] if work.op == "softmax" else 0
        call(rows * tiles.cluster, arguments, cluster=tiles.cluster, shared_bytes=16384)
        for memory, exact in zip(memories, right):
            bits = memory.view(f"u{memory.itemsize}")
            assert (~bits[:GUARD] == 0).all() and (~bits[-GUARD:] == 0).all()
            found = decode(memory[GUARD:-GUARD].reshape(exact.shape), dtype).astype(np.float64)
            assert np.abs(found - exact).max() <= op.tolerance(work)
