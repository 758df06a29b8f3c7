"""Sketch search for GPUs: what it draws compiles, leaves nothing in memory, and is the same again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tvm

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.emulated import emulated, needs_emulator
from tvmops.errors import CudaError, NoTemplateError
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.sketch import Sketch, needs_workspace, replay, tensor_program
from tvmops.signatures.dtypes import decode
from tvmops.targets import target
from tvmops.tuner.strategy import SearchSpace, Trial, make_strategy
from tvmops.workloads import Workload

SKETCH = Sketch()
H200 = target("nvidia-h200")
POOL = Workload.parse("pool2d n=1 h=9 w=7 c=6 kernel=3x2 stride=2x1 padding=1")
SOFTMAX = Workload.parse("softmax rows=64 cols=300")


@pytest.mark.parametrize(
    "text, covered",
    [
        ("matmul m=5 n=7 k=9 dtype=bfloat16", True),
        ("pool2d n=1 h=9 w=7 c=6 kernel=3", True),
        ("activation size=96 activation=gelu", True),
        ("matmul_weight_only m=5 n=32 k=64 group=32 bits=4", True),
        ("matmul m=5 n=7 k=9 packed=panels", False),
        ("matmul m=* n=7 k=9", False),
        ("layer_norm rows=5 cols=9", False),  # the rules take no scalars
        ("matmul_fp8 m=16 n=16 k=16", False),  # nor bits that stand for numbers
        ("attention batch=1 heads=2 kv_heads=2 q_len=8 kv_len=8 head_dim=8", False),
    ],
)
def test_what_it_covers(text: str, covered: bool) -> None:
    assert SKETCH.covers(Workload.parse(text), H200) is covered


def test_templates_come_first() -> None:
    assert [each.name for each in templates_for(SOFTMAX, H200)] == ["cuda.rows", "cuda.rows_long", "sketch"]
    assert [each.name for each in templates_for(POOL, H200)] == ["sketch"]
    with pytest.raises(NoTemplateError):
        templates_for(POOL.generic(), H200)


def run(work: Workload, grid: int, folder: Path) -> None:
    """Check the default kernel of `work` on this machine's CPU, thread by thread."""
    op, kernel = op_of(work), emulated(compiled(SKETCH, work, H200, SKETCH.default(work, H200)), folder)
    arrays = dict(zip((spec.name for spec in op.inputs(work)), op.random_inputs(work, seed=0)))
    (spec,), (exact,) = op.outputs(work), op.reference(work, *map(np.asarray, arrays.values()))
    out = np.full(spec.shape, np.nan, "float32")
    kernel(grid, {**arrays, spec.name: out})
    np.testing.assert_allclose(decode(out, spec.dtype), exact, rtol=0, atol=op.tolerance(work))


class TestEmulated:
    pytestmark = needs_emulator

    @pytest.mark.parametrize(
        "text, grid",
        [
            ("pool2d n=1 h=9 w=7 c=6 kernel=3x2 stride=2x1 padding=1", 6 * 5),
            ("pool2d n=1 h=9 w=7 c=6 kernel=3x2 kind=average layout=NHWC", 7 * 6),
            ("matmul m=3 n=37 k=9", 3),
            ("matmul m=3 n=300 k=9 batch=2 bias=true residual=true activation=relu trans_b=true", 6),
            ("softmax rows=3 cols=5 inner=40 axis=middle", 3),
            ("conv2d n=1 h=5 w=4 ci=4 co=6 kh=3 kw=3 padding=1 groups=2 bias=true activation=relu", 30),
        ],
    )
    def test_the_default_is_right(self, text: str, grid: int, tmp_path: Path) -> None:
        run(Workload.parse(text), grid, tmp_path)


@needs_nvcc
@pytest.mark.parametrize(
    "text",
    [
        "softmax rows=64 cols=300 dtype=float16",
        "softmax rows=64 cols=20 log=true",
        "softmax rows=4 cols=30 inner=400 axis=middle",
        "matmul m=33 n=70 k=50 dtype=bfloat16 bias=true activation=gelu",
        "matmul m=1 n=1 k=1",
        "matmul_weight_only m=4 n=96 k=128 group=32 bits=8 zero_points=true bias=true activation=relu",
        "activation size=1000 activation=gelu",
        "softmax rows=8 cols=30 mask_rows=4 dtype=bfloat16",
        "pool2d n=1 h=28 w=28 c=64 kernel=global kind=average",
    ],
)
def test_the_default_compiles_as_one_kernel(text: str) -> None:
    work = Workload.parse(text)
    cubin = compiled(SKETCH, work, H200, SKETCH.default(work, H200))
    assert cubin.source.count('extern "C" __global__') == 2  # declared, and defined


@needs_nvcc
@pytest.mark.parametrize("text", [str(SOFTMAX), "matmul m=64 n=96 k=64", str(POOL)])
def test_what_is_drawn_compiles_and_needs_no_memory(text: str) -> None:
    work = Workload.parse(text)
    space, default = SKETCH.space(work, H200), SKETCH.default(work, H200)
    strategy = make_strategy("sketch", SearchSpace(space, default, lambda c: 0.0, lambda c: {}), 0)
    asked = strategy.ask(6)
    strategy.tell([Trial(config, 1e-6) for config in asked])
    assert asked[0] == default and len(set(asked)) == len(asked) > 1
    built = 0
    for config in asked:
        schedule = replay(tensor_program(work, 16), config)
        assert not needs_workspace(schedule, H200)
        tvm.ir.assert_structural_equal(schedule.mod, SKETCH.build(work, H200, config))
        try:
            compiled(SKETCH, work, H200, config)
            built += 1
        except CudaError:  # spills registers: a trial that failed
            continue
    assert built > 1
