from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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
    (conv("n=1 h=11 w=10 kh=2 kw=3 dilation=1x3 padding=2 dtype=float32 bias=true activation=relu6", 6), config(3, 1, 64, 1)),
    (conv("n=3 h=6 w=6 kh=5 kw=5 padding=2 stride=1x2 dtype=float16 residual=true", 7), config(1, 8, 128, 4)),
]  # fmt: skip


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
