from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.convolutions import Run, aligned
from tests.schedules.cuda.emulated import emulated, needs_emulator
from tvmops.measure import cuda
from tvmops.schedules import templates_for
from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.conv_grouped import GroupedConv
from tvmops.schedules.cuda.conv_grouped_planes import GroupedPlanes
from tvmops.schedules.cuda.grouped_tiles import GroupedLayout, GroupedTiles
from tvmops.schedules.cuda.kernels.channels_last import BESIDE
from tvmops.schedules.cuda.kernels.conv_grouped import GroupedKernel
from tvmops.targets import target
from tvmops.workloads import Workload

TEMPLATE = GroupedConv()
A100, H100 = target("nvidia-a100"), target("nvidia-h100")
RESNEXT = "n=32 h=14 w=14 ci=512 co=512 groups=32 kh=3 kw=3 padding=1 dtype=float16 bias=true activation=relu"


def conv(text: str) -> Workload:
    return Workload.parse(f"conv2d {text}" if "layout=" in text else f"conv2d {text} layout=NHWC")


@pytest.mark.parametrize(
    "text, machine, covered",
    [
        (RESNEXT, "nvidia-a100", True),
        (RESNEXT.replace("n=32 h=14 w=14", "n=* h=* w=*"), "nvidia-h100", True),
        (RESNEXT, "cuda-sm75", False),  # no cp.async
        (f"{RESNEXT} layout=NCHW", "nvidia-a100", False),
        (RESNEXT.replace("groups=32", "groups=1"), "nvidia-a100", False),
        (RESNEXT.replace("groups=32", "groups=512"), "nvidia-a100", False),  # depthwise
        (RESNEXT.replace("groups=32 kh=3 kw=3", "groups=512 kh=7 kw=7"), "nvidia-a100", True),
        (
            RESNEXT.replace("n=32", "n=1").replace("groups=32 kh=3 kw=3", "groups=512 kh=7 kw=7"),
            "nvidia-a100",
            False,
        ),
        (RESNEXT.replace("groups=32", "groups=4"), "nvidia-a100", False),  # 128 channels fill other tiles
        ("n=1 h=9 w=9 ci=24 co=24 groups=8 kh=3 kw=3 dtype=float16", "nvidia-a100", True),  # 3 channels
        ("n=1 h=9 w=9 ci=24 co=36 groups=12 kh=3 kw=3 dtype=float16", "nvidia-a100", False),  # odd pieces
        ("n=1 h=9 w=9 ci=24 co=24 groups=3 kh=9 kw=9 dtype=float16", "nvidia-a100", False),  # too many taps
        (RESNEXT.replace("float16", "float32"), "nvidia-a100", False),
        (RESNEXT, "znver4", False),
    ],
)
def test_what_it_covers(text: str, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(conv(text), target(machine)) is covered


@pytest.mark.parametrize("layout, usual", [("NHWC", GroupedConv), ("NCHW", GroupedPlanes)])
def test_it_is_the_usual_template_of_groups_of_few_channels(layout: str, usual: type[GroupedConv]) -> None:
    work = conv(f"{RESNEXT} layout={layout}")
    assert type(templates_for(work, H100)[0]) is usual
    assert usual().default(work, H100) in usual().space(work, H100)


def test_planes_are_copied_on_hopper_alone() -> None:
    work = conv(f"{RESNEXT} layout=NCHW")
    assert not GroupedPlanes().covers(work, A100)
    assert all(config["early"] for config in itertools.islice(GroupedPlanes().space(work, H100), 9))


@pytest.mark.parametrize("machine", ["nvidia-h100", "rtx-4090"])
@pytest.mark.parametrize(
    "text",
    [
        RESNEXT,
        RESNEXT.replace("n=32 h=14 w=14", "n=1 h=1 w=1"),
        RESNEXT.replace("n=32 h=14 w=14", "n=* h=* w=*"),
        "n=8 h=28 w=28 ci=168 co=168 groups=7 kh=3 kw=3 padding=1 dtype=bfloat16",
    ],
)
def test_the_default_is_legal(text: str, machine: str) -> None:
    work = conv(text)
    assert TEMPLATE.default(work, target(machine)) in TEMPLATE.space(work, target(machine))


@needs_nvcc
def test_random_configs_compile_without_spills() -> None:
    work, rng = conv(RESNEXT), random.Random(0)
    for _ in range(3):
        drawn = TEMPLATE.space(work, A100).sample(rng)
        assert drawn is not None
        assert compiled(TEMPLATE, work, A100, drawn).report.spilled_bytes == 0


CASES = [
    # 16 channels a group: tiles that images do not fill, two of them in shared memory
    ("n=2 h=7 w=7 ci=48 co=48 groups=3 kh=3 kw=3 padding=1 dtype=float16 bias=true activation=relu",
     (1, 4, 7, 2, 16, 2, 2, 2, 2, 1, 0)),
    # 8 channels: an odd number of pieces along k; columns of stride 2, the last bundle not full
    ("n=1 h=13 w=9 ci=40 co=40 groups=5 kh=3 kw=3 stride=2 padding=1 dtype=bfloat16 bias=true",
     (1, 4, 5, 2, 8, 2, 1, 2, 2, 1, 0)),
    # 4 channels, two groups a piece; several images a tile, of which the last has none
    ("n=3 h=3 w=3 ci=32 co=32 groups=8 kh=3 kw=3 padding=1 dtype=float16 activation=gelu",
     (2, 3, 3, 4, 8, 3, 1, 2, 1, 1, 1)),
    # 24 channels, 8 at once, an odd number of pieces; everything else that a convolution may have
    ("n=1 h=9 w=8 ci=48 co=48 groups=2 kh=2 kw=3 stride=1x3 dilation=2x1 padding=1x0x0x2 dtype=float16 "
     "residual=true", (1, 8, 2, 2, 8, 2, 1, 2, 1, 2, 0)),
    # more outputs than inputs, 3 channels a group; an image of a pixel
    ("n=2 h=1 w=1 ci=24 co=48 groups=8 kh=3 kw=3 padding=1 dtype=bfloat16 bias=true residual=true",
     (1, 1, 1, 1, 24, 1, 1, 2, 2, 1, 1)),
    # a channel a group, a large kernel
    ("n=1 h=5 w=6 ci=16 co=16 groups=16 kh=5 kw=5 padding=2 dtype=float16 activation=relu",
     (1, 5, 6, 2, 8, 5, 1, 2, 1, 1, 0)),
]  # fmt: skip


def grid_of(shape: ConvShape, tiles: GroupedTiles) -> int:
    """Return the blocks that the host's code starts."""
    layout = GroupedLayout(shape, tiles)
    sizes = ((shape.n, tiles.tile_n), (shape.oh, tiles.tile_h), (shape.ow, tiles.tile_w))
    count = math.prod(-(-int(extent) // size) for extent, size in sizes)
    return min(count, layout.places) * layout.blocks_deep


@pytest.mark.parametrize("text, knobs", CASES)
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_convolution(self, text: str, knobs: tuple[int, ...], tmp_path: Path) -> None:
        work, tiles = conv(text), GroupedTiles(*knobs, multiprocessors=2)
        shape = ConvShape.of(work)
        kernel = GroupedKernel(shape, str(work["dtype"]), tiles)
        _, (cubin,) = cuda.compile_module(kernel.module(), H100 if tiles.early else A100)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        run, layout = Run.of(work), GroupedLayout(shape, tiles)
        emulated(cubin, tmp_path)(grid_of(shape, tiles), run.arrays, shared_bytes=layout.shared_bytes(tiles))
        run.check()


PLANES = [
    # channels in pairs, two groups a piece, whose weights are copied as pieces
    ("n=2 h=7 w=9 ci=16 co=24 groups=4 kh=3 kw=3 padding=1 stride=2 dtype=bfloat16 bias=true activation=relu",
     (1, 4, 3, 1, 24, 2, 1, 1, 1, 1, 1)),
    ("n=3 h=4 w=5 ci=48 co=48 groups=3 kh=1 kw=1 dtype=float16 residual=true",
     (2, 4, 5, 2, 16, 2, 1, 2, 2, 1, 1)),
]  # fmt: skip


@pytest.mark.parametrize("text, knobs", PLANES)
class TestPlanes:
    pytestmark = needs_emulator

    def test_it_computes_the_convolution(self, text: str, knobs: tuple[int, ...], tmp_path: Path) -> None:
        work, tiles = conv(f"{text} layout=NCHW"), GroupedTiles(*knobs, multiprocessors=2)
        shape = ConvShape.of(work)
        kernel = GroupedKernel(shape, str(work["dtype"]), tiles)
        _, (cubin,) = cuda.compile_module(kernel.module(), H100)
        run, layout = Run.of(work), GroupedLayout(shape, tiles)
        assert kernel.copies is not None
        run.arrays["workspace"] = aligned(1 << 16)
        emulated(cubin, tmp_path, 0)(2 * BESIDE, run.arrays, shared_bytes=1 << 14)
        emulated(cubin, tmp_path, 1)(
            grid_of(shape, tiles), run.arrays, shared_bytes=layout.shared_bytes(tiles)
        )
        run.check()
