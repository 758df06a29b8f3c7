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
from tvmops.schedules.cuda.softmax_columns import SoftmaxColumns, tiles_of
from tvmops.signatures.dtypes import decode, encode
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = SoftmaxColumns()
H200 = target("nvidia-h200")
GUARD = 64  # elements


def config(threads: int, lanes: int, cluster: int = 1, kept: int = 0) -> Config:
    return Config.of(threads=threads, lanes=lanes, cluster=cluster, kept=kept, resident=1, stream=True)


def softmax(rows: int, cols: int, inner: int, **changes: object) -> Workload:
    fields = {"rows": rows, "cols": cols, "inner": inner, "axis": "middle", "dtype": "bfloat16"}
    return workload("softmax", **{**fields, **changes})


def test_it_comes_before_a_search_by_rules() -> None:
    names = [each.name for each in templates_for(softmax(2, 3, 4), H200)]
    assert names == ["cuda.softmax_columns", "sketch"]


@pytest.mark.parametrize("machine", ["nvidia-h200", "cuda-sm75"])
def test_the_default_is_legal(machine: str) -> None:
    for shape in ((1, 1, 1), (32, 1000, 49), (8, 19, 65536), (64, 256, 3136), (3, 100_000, 2)):
        for dtype in ("float32", "float16"):
            work = softmax(*shape, dtype=dtype)
            assert TEMPLATE.default(work, target(machine)) in TEMPLATE.space(work, target(machine))


def check(call: Callable[..., None], work: Workload, pattern: Workload, knobs: Config) -> None:
    """Run the kernel here, amid guards, with infinite elements, and compare."""
    tiles, op, dtype = tiles_of(knobs, pattern), op_of(work), str(work["dtype"])
    values: list[Any] = [decode(array, dtype).copy() for array in op.random_inputs(work, seed=1)]
    values[0][0, :, 0] = -np.inf
    values[0][-1, 0] = -np.inf
    inputs = [encode(array, dtype) for array in values]
    with np.errstate(invalid="ignore", divide="ignore"):
        (exact,) = op.reference(work, *(decode(array, dtype) for array in inputs))
    memory = np.frombuffer(
        bytearray(b"\xff" * ((exact.size + 2 * GUARD) * inputs[0].itemsize)), inputs[0].dtype
    )
    arguments: dict[str, object] = dict(zip([spec.name for spec in op.inputs(work)], inputs))
    sizes = dict(zip(("rows", "cols", "inner", "mask_rows"), work.dims("rows", "cols", "inner", "mask_rows")))
    scale = (op.scalars(work) or (0.0,))[0]
    arguments |= {"out": memory[GUARD:-GUARD].reshape(exact.shape), "scale": scale, **sizes}
    grid = sizes["rows"] * -(-sizes["inner"] // tiles.columns) * tiles.cluster
    call(grid, arguments, cluster=tiles.cluster, shared_bytes=65536)
    bits = memory.view(f"u{memory.itemsize}")
    assert (~bits[:GUARD] == 0).all() and (~bits[-GUARD:] == 0).all()
    found = decode(memory[GUARD:-GUARD].reshape(exact.shape), dtype).astype(np.float64)
    np.testing.assert_allclose(found, exact, rtol=0, atol=op.tolerance(work))


CASES = [
    (softmax(2, 45, 49), config(128, 64, kept=24)),  # one strip; threads that have nothing to do
    (softmax(2, 100, 24, dtype="float32", log=True), config(128, 8, cluster=4, kept=4)),  # read twice
    (softmax(6, 19, 72, dtype="float16", scaled=True, mask_rows=3), config(128, 4, kept=4)),  # a short strip
]


@pytest.mark.parametrize("work, knobs", CASES, ids=[f"{work} {knobs}" for work, knobs in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_op(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        assert knobs in TEMPLATE.space(work, H200)
        cubin = compiled(TEMPLATE, TEMPLATE.kernel_workload(work), H200, knobs)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        check(emulated(cubin, tmp_path), work, work, knobs)


class TestOfAnyShape:
    pytestmark = needs_emulator

    def test_a_generic_kernel_answers_it(self, tmp_path: Path) -> None:
        form = softmax(3, 5, 7, mask_rows=3)
        (kernel,) = TEMPLATE.generic(form.generic(), H200)
        call = emulated(compiled(TEMPLATE, form.generic(), H200, kernel.config), tmp_path)
        for shape in ((3, 1, 1), (3, 50, 37), (6, 9, 64)):
            work = form.replace(**dict(zip(("rows", "cols", "inner"), shape)))
            check(call, work, form.generic(), kernel.config)

    def test_random_configs(self, tmp_path: Path) -> None:
        work, rng = softmax(2, 61, 40, dtype="float32"), random.Random(3)
        drawn = TEMPLATE.space(work, H200).sample(rng)
        assert drawn is not None
        cubin = compiled(TEMPLATE, TEMPLATE.kernel_workload(work), H200, drawn)
        check(emulated(cubin, tmp_path), work, work, drawn)
