from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.emulated import emulated, needs_emulator
from tvmops.measure import cuda
from tvmops.ops import op_of
from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.conv_narrow import NarrowConv
from tvmops.schedules.cuda.kernels.conv_narrow import NarrowKernel
from tvmops.schedules.cuda.kernels.conv_narrow_tiles import NarrowTiles
from tvmops.signatures.dtypes import decode
from tvmops.targets import target
from tvmops.workloads import Workload

TEMPLATE = NarrowConv()
A100 = target("nvidia-a100")
GUARD = 64  # elements
FIRST = "ci=3 co=64 kh=7 kw=7 stride=2 padding=3 dtype=float16"


def conv(text: str) -> Workload:
    return Workload.parse(f"conv2d {text}" if "layout=" in text else f"conv2d {text} layout=NHWC")


@pytest.mark.parametrize(
    "text, machine, covered",
    [
        (f"n=1 h=224 w=224 {FIRST}", "nvidia-a100", True),
        (f"n=* h=* w=* {FIRST}", "nvidia-h100", True),
        (f"n=1 h=224 w=224 {FIRST} layout=NCHW", "nvidia-a100", True),
        (f"n=1 h=224 w=224 {FIRST}", "cuda-sm75", False),
        (f"n=1 h=224 w=224 {FIRST} dilation=1x2", "nvidia-a100", False),  # a row is no run
        ("n=1 h=9 w=9 ci=17 co=64 kh=3 kw=3 dtype=float16", "nvidia-a100", False),
        ("n=1 h=9 w=9 ci=3 co=60 kh=3 kw=3 dtype=float16", "nvidia-a100", False),  # no pieces of 16 bytes
        ("n=1 h=9 w=9 ci=* co=* kh=3 kw=3 dtype=float16", "nvidia-a100", False),
        ("n=1 h=999 w=999 ci=16 co=64 kh=99 kw=99 dtype=float16", "nvidia-a100", False),  # too much to unroll
        (f"n=1 h=224 w=224 {FIRST}", "znver4", False),
    ],
)
def test_what_it_covers(text: str, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(conv(text), target(machine)) is covered


@pytest.mark.parametrize("machine", ["nvidia-h100", "rtx-4090"])
@pytest.mark.parametrize(
    "text", ["n=1 h=1 w=1 ci=1 co=8 kh=1 kw=1 dtype=bfloat16", f"n=32 h=224 w=224 {FIRST}"]
)
def test_the_default_is_legal(text: str, machine: str) -> None:
    work = conv(text)
    assert TEMPLATE.default(work, target(machine)) in TEMPLATE.space(work, target(machine))


@needs_nvcc
def test_random_configs_compile_without_spills() -> None:
    work, rng = conv(f"n=8 h=224 w=224 {FIRST} bias=true activation=relu"), random.Random(0)
    for _ in range(3):
        drawn = TEMPLATE.space(work, A100).sample(rng)
        assert drawn is not None
        assert compiled(TEMPLATE, work, A100, drawn).report.spilled_bytes == 0


CASES = [
    # a first layer; the tiles reach beyond the images
    (f"n=2 h=13 w=21 {FIRST} bias=true activation=relu".replace("co=64", "co=24"), (4, 8, 2, 32), 3),
    # pixels that begin at odd elements, everything that follows the sum, columns of channels
    (
        "n=1 h=9 w=10 ci=3 co=40 kh=3 kw=3 padding=1x2x0x1 dilation=2x1 dtype=bfloat16 bias=true "
        "residual=true activation=gelu",
        (2, 16, 1, 16), 4,
    ),
    # runs of 8, one part of 16 pixels a warp; runs of 5 and an odd depth
    ("n=3 h=6 w=8 ci=4 co=16 kh=2 kw=2 dtype=float16 residual=true", (4, 8, 2, 16), 2),
    ("n=1 h=7 w=40 ci=1 co=8 kh=3 kw=5 stride=1x3 dtype=bfloat16", (2, 8, 1, 16), 1),
    # planes of channels: results in pairs of pixels, and one by one where rows are odd
    (
        f"n=2 h=13 w=20 {FIRST} bias=true activation=relu layout=NCHW".replace("co=64", "co=24"),
        (4, 8, 2, 32), 3,
    ),
    (
        "n=2 h=9 w=10 ci=3 co=40 kh=3 kw=3 padding=1x2x0x1 dilation=2x1 dtype=bfloat16 bias=true "
        "residual=true activation=gelu layout=NCHW",
        (4, 16, 1, 16), 4,
    ),
]  # fmt: skip


@pytest.mark.parametrize("text, knobs, blocks", CASES)
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_convolution(
        self, text: str, knobs: tuple[int, int, int, int], blocks: int, tmp_path: Path
    ) -> None:
        work, tiles = conv(text), NarrowTiles(*knobs, beside=1, multiprocessors=blocks)
        dtype = str(work["dtype"])
        kernel = NarrowKernel(ConvShape.of(work), dtype, tiles)
        _, (cubin,) = cuda.compile_module(kernel.module(), A100)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        assert "mma.sync.aligned.m16n8k16" in cubin.source
        op = op_of(work)
        inputs = op.random_inputs(work, seed=1)
        (right,) = op.reference(work, *(decode(array, dtype) for array in inputs))
        memory = np.full(right.size + 2 * GUARD, 0xFFFF, np.uint16).view(inputs[0].dtype)  # NaN
        arguments: dict[str, object] = dict(zip((spec.name for spec in op.inputs(work)), inputs))
        arguments["y"] = memory[GUARD:-GUARD].reshape(right.shape)
        shared = kernel.layout.shared_bytes(tiles)
        emulated(cubin, tmp_path)(kernel.layout.blocks, arguments, shared_bytes=shared)
        bits = memory.view(np.uint16)
        assert (bits[:GUARD] == 0xFFFF).all() and (bits[-GUARD:] == 0xFFFF).all()
        found = decode(memory[GUARD:-GUARD].reshape(right.shape), dtype).astype(np.float64)
        assert np.abs(found - right).max() <= op.tolerance(work)
