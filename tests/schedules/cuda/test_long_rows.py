from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.schedules.cuda.compiled import compiled
from tests.schedules.cuda.emulated import emulated, needs_emulator
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.long_rows import LongRows, tiles_of
from tvmops.signatures.dtypes import decode, encode
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = LongRows()
H200 = target("nvidia-h200")
GUARD = 64  # elements
Change = Callable[[list[Any]], None]  # of inputs


def config(threads: int, cluster: int = 1, kept: int = 0, depth: int = 0, **others: int) -> Config:
    more = {"ahead": False, "stream": True, "resident": 1, "stays": False, **others}
    return Config.of(threads=threads, cluster=cluster, kept=kept, depth=depth, **more)


def norm(op: str = "layer_norm", **changes: object) -> Workload:
    return workload(op, **{"rows": 3, "cols": 1024, "weight": True, "dtype": "bfloat16", **changes})


def softmax(**changes: object) -> Workload:
    return workload("softmax", **{"rows": 3, "cols": 1024, "dtype": "bfloat16", **changes})


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (softmax(cols=1), "nvidia-h200", True),
        (softmax(cols="*", mask_rows="*"), "cuda-sm75", True),
        (norm(cols=1 << 20, dtype="float32"), "rtx-4090", True),
        (softmax(axis="middle", inner=3), "nvidia-h200", False),
        (softmax(), "znver4", False),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


@pytest.mark.parametrize("machine", ["nvidia-h200", "rtx-4090", "cuda-sm75"])
@pytest.mark.parametrize("rows", [1, 4096])
def test_the_default_is_legal(rows: int, machine: str) -> None:
    for cols in (1, 257, 4097, 50257, 128256, 1_000_000):
        for dtype in ("float32", "bfloat16"):
            for work in (softmax(cols=cols, rows=rows), norm(cols=cols, residual=True, rows=rows)):
                work = work.replace(dtype=dtype)
                chosen = TEMPLATE.default(work, target(machine))
                assert chosen in TEMPLATE.space(work, target(machine))


def test_only_long_rows_leave_the_registers_of_a_block() -> None:
    assert [each.name for each in templates_for(softmax(cols=65536), H200)] == ["cuda.rows_long", "sketch"]
    assert tiles_of(TEMPLATE.default(softmax(rows=64, cols=128256), H200), H200).cluster > 1


def arrays_of(work: Workload, change: Change | None) -> tuple[list[Any], list[Any]]:
    """Return random inputs, as `change` leaves them, and the results of float64."""
    op, dtype = op_of(work), str(work["dtype"])
    inputs = op.random_inputs(work, seed=1)
    if change is not None:
        values = [decode(array, dtype).copy() for array in inputs]
        change(values)
        inputs = [encode(array, dtype) for array in values]
    with np.errstate(invalid="ignore", divide="ignore"):
        return inputs, list(op.reference(work, *(decode(array, dtype) for array in inputs)))


def check(call: Callable[..., None], work: Workload, knobs: Config, change: Change | None = None) -> None:
    """Run the kernel here, amid guards, and compare."""
    tiles, op, dtype = tiles_of(knobs, H200), op_of(work), str(work["dtype"])
    inputs, right = arrays_of(work, change)
    arguments: dict[str, object] = dict(zip([spec.name for spec in op.inputs(work)], inputs))
    memories = []
    for spec, exact in zip(op.outputs(work), right):
        nbytes = (exact.size + 2 * GUARD) * inputs[0].itemsize
        memories.append(np.frombuffer(bytearray(b"\xff" * nbytes), inputs[0].dtype))  # NaN
        arguments[spec.name] = memories[-1][GUARD:-GUARD].reshape(exact.shape)
    rows, cols = work.dims("rows", "cols")
    arguments |= {"rows": rows, "cols": cols, "eps": 1e-5, "scale": (op.scalars(work) or (0.0,))[0]}
    arguments["mask_rows"] = work.dims("mask_rows")[0] if work.op == "softmax" else 0
    grid = tiles.blocks if tiles.stays else rows * tiles.cluster
    call(grid, arguments, cluster=tiles.cluster, shared_bytes=32768)
    for memory, exact in zip(memories, right):
        bits = memory.view(f"u{memory.itemsize}")
        assert (~bits[:GUARD] == 0).all() and (~bits[-GUARD:] == 0).all()
        found = decode(memory[GUARD:-GUARD].reshape(exact.shape), dtype).astype(np.float64)
        np.testing.assert_allclose(found, exact, rtol=0, atol=op.tolerance(work))


CASES = [
    (softmax(cols=1, dtype="float16"), config(64, kept=1)),
    (softmax(cols=517, rows=9), config(96, kept=1)),  # every alignment; no power of two of warps
    (norm(bias=True), config(64, 2, kept=1, ahead=True)),  # that begin where a vector may
    (softmax(rows=1, cols=50257, log=True), config(512, 8, kept=2)),
    (norm("rms_norm", cols=4097, dtype="float32", residual=True, rows=5), config(128, 2, kept=1, depth=2)),
    (norm(cols=4099, dtype="float16", bias=True, rows=9), config(96, 4, kept=2, ahead=True)),
    (softmax(cols=1030, scaled=True, mask_rows=3, rows=9), config(64, 2, depth=4)),  # masks begin elsewhere
    (norm(cols=20001, bias=True, residual=True), config(128, 16, kept=2)),
    (norm(cols=517, bias=True, rows=300), config(96, kept=1, stays=True)),  # three rows a block
    (softmax(cols=128256, rows=1, dtype="float16"), config(256, 4, kept=8, depth=2, resident=2)),
]


@pytest.mark.parametrize("work, knobs", CASES, ids=[f"{work} {knobs}" for work, knobs in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_op(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        assert knobs in TEMPLATE.space(work, H200)
        cubin = compiled(TEMPLATE, TEMPLATE.kernel_workload(work), H200, knobs)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        check(emulated(cubin, tmp_path), work, knobs)


def unusual(drawn: list[Any]) -> None:
    x = drawn[0]
    x[0] = -np.inf
    x[1, 3] = np.nan
    x[2, 5] = np.inf
    x[3] = 1e-40  # denormal
    x[4, :30] = -np.inf
    x[5] = -1024
    x[5, 4] = 1024


def masked(drawn: list[Any]) -> None:
    drawn[1][0] = -np.inf
    drawn[1][1, ::2] = -np.inf
    drawn[1][2, 1:] = -np.inf


def large_mean(drawn: list[Any]) -> None:
    drawn[0] += 64  # of a spread of 0.6


GENERIC = [
    (softmax(log=True), [(1, 1), (9, 257), (3, 9001)], unusual),
    (softmax(scaled=True, mask_rows=3, dtype="float32"), [(3, 1), (9, 301)], masked),
    (norm(bias=True, residual=True, dtype="float16"), [(1, 1), (9, 257), (3, 1000)], None),
    (norm(dtype="float32"), [(9, 257)], large_mean),
]


@pytest.mark.parametrize("form, shapes, change", GENERIC, ids=[str(form) for form, *_ in GENERIC])
class TestOfAnyShape:
    pytestmark = needs_emulator

    def test_generic_kernels_answer_it(
        self, form: Workload, shapes: list[tuple[int, int]], change: Change | None, tmp_path: Path
    ) -> None:
        pattern = form.generic()
        for index, kernel in enumerate(TEMPLATE.generic(pattern, H200)):
            cubin = compiled(TEMPLATE, pattern, H200, kernel.config)
            assert cubin.report.spilled_bytes == 0
            folder = tmp_path / str(index)
            folder.mkdir()
            call = emulated(cubin, folder)
            for rows, cols in shapes:
                work = form.replace(rows=rows, cols=cols)
                check(call, work, kernel.config, change if rows == 9 else None)


@pytest.mark.parametrize("work", [softmax(cols=777, rows=9, dtype="float32"), norm("rms_norm", cols=3001)])
class TestRandomConfigs:
    pytestmark = needs_emulator

    def test_of_known_shapes(self, work: Workload, tmp_path: Path) -> None:
        knobs = TEMPLATE.space(work, H200).sample(random.Random(str(work)))
        assert knobs is not None
        change = unusual if work.op == "softmax" else None
        cubin = compiled(TEMPLATE, TEMPLATE.kernel_workload(work), H200, knobs)
        check(emulated(cubin, tmp_path), work, knobs, change)
