from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.convolutions import COVERED, H100, Run, config
from tests.schedules.cuda.emulated import TensorMap, emulated, needs_emulator
from tvmops.measure import cuda
from tvmops.schedules import templates_for
from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.conv_patches import patches_of
from tvmops.schedules.cuda.conv_tiles import PANEL, ConvTiles
from tvmops.schedules.cuda.conv_wgmma import WgmmaConv, is_legal, tiles_of
from tvmops.schedules.cuda.kernels.conv_wgmma import WgmmaConvKernel
from tvmops.signatures.windows import output_size
from tvmops.suites import read_specs
from tvmops.targets import target
from tvmops.workloads import Workload

TEMPLATE = WgmmaConv()


def conv(text: str) -> Workload:
    return Workload.parse(f"conv2d {text} layout=NHWC")


CASES = [
    # patches that the image cuts short, channels that no step divides; more tiles than blocks
    ("n=3 h=9 w=11 ci=72 co=72 kh=3 kw=3 padding=1 dtype=float16", (4, 3, 2), (1, 1, 0, 64, 1, 1, 1), 64, 3),
    # everything that follows the sum, two warpgroups, two patches each, three buffers of stores
    (
        "n=2 h=7 w=9 ci=64 co=136 kh=3 kw=2 padding=1x0x2x1 stride=2x1 dtype=bfloat16 "
        "bias=true residual=true activation=gelu",
        (5, 2, 2), (2, 2, 0, 128, 1, 1, 1), 64, 2,
    ),
    # two blocks that share the weights; the second one's last patches are beyond the images
    (
        "n=3 h=10 w=7 ci=96 co=104 kh=3 kw=3 padding=1 dtype=float16 bias=true residual=true activation=relu",
        (4, 4, 2), (1, 2, 0, 128, 2, 1, 1), 64, 4,
    ),
    (
        "n=5 h=3 w=7 ci=24 co=200 kh=1 kw=1 dtype=float16 bias=true activation=relu",
        (64, 1, 1), (1, 3, 0, 64, 1, 1, 2), 64, 2,
    ),
    # warpgroups that take tiles in turn, in pairs of blocks; no block has as many as another
    (
        "n=3 h=11 w=9 ci=72 co=72 kh=2 kw=3 padding=1 dtype=bfloat16 residual=true activation=relu",
        (3, 4, 3), (2, 2, 1, 64, 2, 1, 1), 64, 4,
    ),
    ("n=7 h=9 w=8 ci=128 co=64 kh=1 kw=1 dtype=float16 bias=true", (64, 1, 1), (1, 2, 1, 64, 1, 1, 1), 64, 3),
    # groups, a stride that skips pixels, a dilated kernel
    ("n=1 h=12 w=10 ci=48 co=144 kh=2 kw=3 stride=1x3 dilation=2 groups=3 dtype=float16 residual=true",
     (3, 8, 1), (1, 2, 0, 64, 1, 1, 1), 64, 4),
    # sums that four blocks share, more of them than steps, with everything that follows
    ("n=2 h=5 w=6 ci=64 co=72 kh=1 kw=3 padding=1 dtype=bfloat16 bias=true residual=true activation=silu",
     (6, 5, 2), (1, 1, 0, 32, 1, 4, 1), 64, 1),
    ("n=2 h=6 w=6 ci=144 co=128 kh=3 kw=3 stride=2 padding=1 groups=2 dtype=float16 bias=true",
     (3, 3, 1), (2, 2, 0, 64, 1, 3, 1), 64, 1),
    # steps of fewer channels: of 24 the last 8 of one are zeros, of 48 there are three of 16, of 96 in a pair
    ("n=5 h=3 w=7 ci=24 co=144 kh=1 kw=1 dtype=float16 bias=true", (64, 1, 1), (1, 2, 0, 64, 1, 1, 1), 32, 2),
    ("n=2 h=6 w=5 ci=48 co=64 kh=3 kw=3 padding=1 dtype=bfloat16", (5, 3, 2), (2, 1, 0, 64, 1, 1, 2), 16, 3),
    (
        "n=3 h=9 w=7 ci=96 co=72 kh=2 kw=2 dtype=float16 residual=true activation=relu",
        (3, 4, 3), (1, 2, 1, 64, 2, 1, 1), 32, 4,
    ),
    ("n=2 h=6 w=6 ci=80 co=128 kh=3 kw=3 stride=2 padding=1 groups=2 dtype=float16 bias=true",
     (3, 3, 1), (2, 2, 0, 64, 1, 3, 1), 16, 1),
]  # fmt: skip


@pytest.mark.parametrize(
    "text, machine, covered",
    [
        *COVERED,
        ("n=1 h=7 w=7 ci=3 co=64 kh=3 kw=3 dtype=float16", "nvidia-h100", False),  # pixels of 6 bytes
    ],
)
def test_what_it_covers(text: str, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(conv(text), target(machine)) is covered


def test_nchw_is_for_others() -> None:
    work = conv("n=1 h=7 w=7 ci=64 co=64 kh=3 kw=3 dtype=float16").replace(layout="NCHW")
    assert "cuda.conv_wgmma" not in [template.name for template in templates_for(work, H100)]


RESNET = [each for each in read_specs(["resnet50"]) if each.op == "conv2d" and each["ci"] != 3]


@pytest.mark.parametrize("images", [1, 32])
@pytest.mark.parametrize("layer", RESNET, ids=str)
def test_the_default_is_legal(layer: Workload, images: int) -> None:
    work = layer.replace(n=images, layout="NHWC", dtype="bfloat16")
    assert TEMPLATE.default(work, H100) in TEMPLATE.space(work, H100)


def test_patches_fit_the_image() -> None:
    work = conv("n=8 h=28 w=28 ci=64 co=64 kh=3 kw=3 padding=1 dtype=float16")
    width, height, images = patches_of(work)[0]
    assert width * height * images == 64 and 28 % width == 28 % height == 8 % images == 0
    assert patches_of(work.replace(stride=(8, 8)))[0][0] <= 256 // 8  # what the copy engine steps over


def test_sums_are_split_where_tiles_are_few() -> None:
    work = conv("n=1 h=7 w=7 ci=512 co=512 kh=3 kw=3 padding=1 dtype=float16")
    assert TEMPLATE.default(work, H100).number("split_k") > 1
    assert TEMPLATE.default(work.replace(n=128), H100)["split_k"] == 1


@needs_nvcc
def test_random_configs_compile_without_spills() -> None:
    work = conv("n=8 h=14 w=14 ci=256 co=256 kh=3 kw=3 padding=1 dtype=float16 bias=true activation=relu")
    rng, space = random.Random(0), TEMPLATE.space(work, H100)
    for _ in range(3):
        drawn = space.sample(rng)
        assert drawn is not None and is_legal(drawn, work, H100)
        cubin = compiled(TEMPLATE, work, H100, drawn)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        assert "wgmma.mma_async" in cubin.source and "cp.async.bulk.tensor.4d" in cubin.source


def boxes(work: Workload, tiles: ConvTiles, arrays: dict[str, NDArray[Any]]) -> dict[str, TensorMap]:
    """Describe the arrays as the host's code does, in the order in which the kernel takes them."""
    n, h, w, ci, co, kh, kw, groups = work.dims("n", "h", "w", "ci", "co", "kh", "kw", "groups")
    (down, across), (oh, ow) = work["stride"], output_size(work)  # type: ignore[misc]
    if ConvShape.of(work).is_pointwise:
        n, h, w, oh, ow = 1, 1, n * h * w, 1, n * h * w
    many = [groups] if groups > 1 else []
    ones = [1] * len(many)

    def image(
        name: str, channels: int, at_once: int, sizes: list[int], strides: tuple[int, int] = (1, 1)
    ) -> TensorMap:
        box = [at_once, *ones, tiles.patch_w * strides[0], tiles.patch_h * strides[1], tiles.patch_n]
        return TensorMap.of(arrays[name], [channels, *many, *sizes], box, [1, *ones, *strides, 1])

    maps = [
        image("x", ci // groups, tiles.depth, [w, h, n], (across, down)),
        TensorMap.of(arrays["w"], [ci // groups, kh * kw, co], [tiles.depth, 1, tiles.bn // tiles.cluster]),
    ]
    if tiles.split_k == 1:
        names = ("y", "residual") if work["residual"] else ("y",)
        maps += [image(name, co // groups, PANEL, [ow, oh, n]) for name in names]
    return dict(zip(("v", "v_1", "v_2", "v_3"), maps))


@pytest.mark.parametrize("text, patch, knobs, depth, blocks", CASES)
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_convolution(
        self,
        text: str,
        patch: tuple[int, int, int],
        knobs: tuple[int, ...],
        depth: int,
        blocks: int,
        tmp_path: Path,
    ) -> None:
        work = conv(text)
        assert TEMPLATE.covers(work, H100)
        tiles = tiles_of(work, H100, config(patch, *knobs, depth=depth))
        tiles = replace(tiles, multiprocessors=blocks, beside=1)
        dtype = str(work["dtype"])
        kernel = WgmmaConvKernel(ConvShape.of(work), dtype, tiles)
        _, (cubin,) = cuda.compile_module(kernel.module(), H100)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        run = Run.of(work)
        arguments = {**run.arrays, **boxes(work, tiles, run.arrays)}
        grid = int(kernel.tile_count) * tiles.split_k if tiles.split_k > 1 else blocks
        emulated(cubin, tmp_path)(grid, arguments, tiles.meeting, shared_bytes=H100.gpu.shared_bytes)
        run.check()
