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
from tvmops.schedules.cuda.conv_depthwise import DepthwiseConv, tiles_of
from tvmops.schedules.cuda.kernels.conv_depthwise import DepthwiseKernel
from tvmops.signatures.dtypes import bits_of, decode
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload

TEMPLATE = DepthwiseConv()
A100 = target("nvidia-a100")
GUARD = 64  # elements


def conv(text: str, channels: int) -> Workload:
    return Workload.parse(f"conv2d {text} ci={channels} co={channels} groups={channels} layout=NHWC")


def config(*knobs: int) -> Config:
    return Config.of(**dict(zip(("pixels", "vectors", "threads", "repeats"), knobs)))


CASES = [
    # vectors of 8, 4 and 2 channels, and of one; blocks that channels and pixels do not fill
    (conv("n=2 h=7 w=9 kh=3 kw=3 padding=1 dtype=float16", 24), config(4, 2, 64, 2)),
    (
        conv(
            "n=1 h=9 w=8 kh=3 kw=3 stride=2 padding=1x0x1x2 dtype=bfloat16 bias=true residual=true "
            "activation=hardswish",
            20,
        ),
        config(2, 4, 64, 1),
    ),
    (
        conv("n=1 h=11 w=10 kh=2 kw=3 dilation=1x3 padding=2 dtype=float32 bias=true activation=relu6", 6),
        config(3, 1, 64, 1),
    ),
    (conv("n=3 h=6 w=6 kh=5 kw=5 padding=2 stride=1x2 dtype=float16 residual=true", 7), config(1, 8, 128, 4)),
]  # fmt: skip


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (CASES[0][0], "nvidia-h100", True),
        (CASES[2][0], "cuda-sm75", True),
        (CASES[1][0], "cuda-sm75", False),  # it has no bfloat16
        (CASES[0][0].replace(co=48), "nvidia-h100", False),  # two outputs a channel
        (CASES[0][0].replace(layout="NCHW"), "nvidia-h100", False),
        (CASES[0][0].replace(ci=1, co=1, groups=1), "nvidia-h100", False),
        (CASES[2][0], "znver4", False),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


@pytest.mark.parametrize("machine", ["nvidia-h100", "rtx-4090"])
@pytest.mark.parametrize("size, channels, kernel", [(112, 32, 3), (7, 960, 5), (1, 1, 1), (56, 96, 7)])
def test_the_default_is_legal(size: int, channels: int, kernel: int, machine: str) -> None:
    work = conv(
        f"n=1 h={size} w={size} kh={kernel} kw={kernel} padding={kernel // 2} dtype=float16", channels
    )
    assert TEMPLATE.default(work, target(machine)) in TEMPLATE.space(work, target(machine))


@needs_nvcc
def test_one_kernel_serves_all_images_of_its_channels() -> None:
    pattern = CASES[0][0].generic()
    assert TEMPLATE.covers(pattern, A100)
    (kernel,) = TEMPLATE.generic(pattern, A100)
    assert kernel.ranges == {"ci": (24, 24), "co": (24, 24)}  # others have several a group
    assert compiled(TEMPLATE, pattern, A100, kernel.config).report.spilled_bytes == 0


@needs_nvcc
def test_random_configs_compile_without_spills() -> None:
    work = conv("n=8 h=28 w=28 kh=5 kw=5 padding=2 dtype=float16 bias=true activation=relu", 240)
    rng, space = random.Random(0), TEMPLATE.space(work, A100)
    for _ in range(3):
        drawn = space.sample(rng)
        assert drawn is not None
        assert compiled(TEMPLATE, work, A100, drawn).report.spilled_bytes == 0


@pytest.mark.parametrize("work, knobs", CASES, ids=[str(work) for work, _ in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_convolution(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        dtype = str(work["dtype"])
        kernel = DepthwiseKernel(ConvShape.of(work), dtype, tiles_of(work, knobs))
        _, (cubin,) = cuda.compile_module(kernel.module(), A100)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        op = op_of(work)
        inputs = op.random_inputs(work, seed=1)
        (right,) = op.reference(work, *(decode(array, dtype) for array in inputs))
        kind = f"uint{bits_of(dtype)}"
        memory = np.full(right.size + 2 * GUARD, -1).astype(kind).view(inputs[0].dtype)  # NaN
        arguments: dict[str, object] = dict(zip((spec.name for spec in op.inputs(work)), inputs))
        arguments["y"] = memory[GUARD:-GUARD].reshape(right.shape)
        chunks, others = kernel.blocks
        emulated(cubin, tmp_path)(int(chunks) * int(others), arguments, shared_bytes=1 << 15)
        bits = memory.view(kind)
        assert (bits[:GUARD] == bits[0]).all() and (bits[-GUARD:] == bits[0]).all()
        found = decode(memory[GUARD:-GUARD].reshape(right.shape), dtype).astype(np.float64)
        assert np.abs(found - right).max() <= op.tolerance(work)
