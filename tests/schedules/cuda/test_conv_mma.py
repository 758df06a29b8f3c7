from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.emulated import emulated, needs_emulator
from tvmops.errors import NoTemplateError
from tvmops.measure import cuda
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.conv_mma import MmaConv, _product, tiles_of
from tvmops.schedules.cuda.kernels.conv_mma import MmaConvKernel
from tvmops.signatures.dtypes import decode
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload

TEMPLATE = MmaConv()
A100 = target("nvidia-a100")
GUARD = 64  # elements


def conv(text: str) -> Workload:
    return Workload.parse(f"conv2d {text}")


def config(*knobs: int) -> Config:
    names = ("bm", "bn", "warps_m", "warps_n", "stages", "a_vector", "b_vector")
    return Config.of(**dict(zip(names, knobs)))


CASES = [
    # pieces of channels, windows that leave the image, short last tiles
    ("n=2 h=7 w=9 ci=24 co=40 kh=3 kw=3 padding=1 layout=NHWC dtype=float16", (64, 32, 2, 2, 3, 8, 8)),
    # a first layer: three channels, with everything that follows the sum
    (
        "n=2 h=13 w=11 ci=3 co=35 kh=7 kw=5 stride=2x3 padding=3x2x1x0 layout=NHWC dtype=bfloat16 "
        "bias=true residual=true activation=gelu",
        (32, 32, 2, 1, 2, 1, 1),
    ),
    ("n=1 h=9 w=10 ci=32 co=48 kh=3 kw=2 dilation=2x3 groups=2 layout=NHWC dtype=float16 bias=true",
     (16, 32, 1, 2, 2, 8, 8)),
    ("n=3 h=5 w=5 ci=12 co=18 kh=1 kw=3 groups=6 layout=NHWC dtype=bfloat16 activation=relu residual=true",
     (32, 32, 1, 1, 2, 1, 2)),
    # planes of channels
    ("n=2 h=7 w=9 ci=8 co=20 kh=3 kw=3 padding=1 stride=2 layout=NCHW dtype=float16 bias=true",
     (32, 32, 2, 1, 2, 8, 1)),
    ("n=3 h=6 w=5 ci=10 co=24 kh=2 kw=3 padding=1x0x0x2 dilation=2x1 groups=2 layout=NCHW dtype=bfloat16 "
     "bias=true residual=true activation=silu", (16, 64, 1, 4, 2, 2, 1)),
]  # fmt: skip


@pytest.mark.parametrize(
    "text, machine, covered",
    [
        ("n=1 h=7 w=7 ci=3 co=5 kh=3 kw=3 dtype=float16", "nvidia-a100", True),
        ("n=1 h=7 w=7 ci=3 co=5 kh=3 kw=3 dtype=bfloat16 layout=NHWC", "nvidia-h200", True),
        ("n=* h=* w=* ci=* co=* kh=3 kw=3 dtype=float16", "rtx-4090", True),
        ("n=1 h=7 w=7 ci=3 co=5 kh=3 kw=3 dtype=float16", "cuda-sm75", False),  # no cp.async
        ("n=1 h=7 w=7 ci=3 co=5 kh=3 kw=3 dtype=float32", "nvidia-a100", False),
        ("n=1 h=7 w=7 ci=3 co=5 kh=3 kw=3 dtype=float32", "znver4", False),
    ],
)
def test_what_it_covers(text: str, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(conv(text), target(machine)) is covered


def test_no_template_for_cpus_takes_sixteen_bits() -> None:
    with pytest.raises(NoTemplateError):
        templates_for(conv("n=1 h=7 w=7 ci=4 co=4 kh=3 kw=3 dtype=bfloat16"), target("znver4"))


@pytest.mark.parametrize("machine", ["nvidia-a100", "rtx-3090", "rtx-4090"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("sizes", ["n=1 h=1 w=1 ci=1 co=1 kh=1 kw=1", "n=32 h=56 w=56 ci=64 co=64 kh=3 kw=3"])
def test_the_default_is_legal(sizes: str, layout: str, machine: str) -> None:
    work = conv(f"{sizes} dtype=float16 layout={layout}")
    assert TEMPLATE.default(work, target(machine)) in TEMPLATE.space(work, target(machine))


def test_generic_kernels_answer_every_shape() -> None:
    for layout in ("NHWC", "NCHW"):
        kernels = TEMPLATE.generic(
            conv(f"n=* h=* w=* ci=* co=* kh=3 kw=3 dtype=float16 layout={layout}"), A100
        )
        assert kernels[-1].ranges == {} and kernels[-1].multiples == {}


@needs_nvcc
@pytest.mark.parametrize("machine", ["nvidia-a100", "rtx-4090"])
@pytest.mark.parametrize(
    "text", ["n=* h=* w=* ci=* co=* kh=3 kw=3 groups=2", "n=8 h=224 w=224 ci=3 co=64 kh=7 kw=7 layout=NHWC"]
)
def test_it_compiles_without_spills(text: str, machine: str) -> None:
    work = conv(f"{text} dtype=bfloat16")
    config = TEMPLATE.generic(work, A100)[-1].config if work.is_generic else TEMPLATE.default(work, A100)
    cubin = compiled(TEMPLATE, work, target(machine), config)
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    assert "cp.async" in cubin.source and "mma.sync.aligned.m16n8k16" in cubin.source


@pytest.mark.parametrize("text, knobs", CASES)
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_convolution(self, text: str, knobs: tuple[int, ...], tmp_path: Path) -> None:
        work, machine_config = conv(text), config(*knobs)
        # Known sizes, since what the host computes of others this test would have to compute.
        kernel = MmaConvKernel(ConvShape.of(work), str(work["dtype"]), tiles_of(machine_config))
        _, (cubin,) = cuda.compile_module(kernel.module(), A100)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        assert "mma.sync.aligned.m16n8k16" in cubin.source and "wgmma" not in cubin.source
        op, dtype, tiles = op_of(work), str(work["dtype"]), tiles_of(machine_config)
        inputs = op.random_inputs(work, seed=1)
        (right,) = op.reference(work, *(decode(array, dtype) for array in inputs))
        memory = np.full(right.size + 2 * GUARD, 0xFFFF, np.uint16).view(inputs[0].dtype)  # NaN
        arguments: dict[str, object] = dict(zip((spec.name for spec in op.inputs(work)), inputs))
        arguments["y"] = memory[GUARD:-GUARD].reshape(right.shape)
        m, n, _, groups = _product(work)
        grid = -(-m // tiles.bm) * -(-n // tiles.bn) * groups
        emulated(cubin, tmp_path)(grid, arguments, shared_bytes=tiles.shared_bytes)
        bits = memory.view(np.uint16)
        assert (bits[:GUARD] == 0xFFFF).all() and (bits[-GUARD:] == 0xFFFF).all()
        found = decode(memory[GUARD:-GUARD].reshape(right.shape), dtype).astype(np.float64)
        assert np.abs(found - right).max() <= op.tolerance(work)
