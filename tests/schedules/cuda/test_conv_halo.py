from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.convolutions import H100, Run
from tests.schedules.cuda.emulated import TensorMap, emulated, needs_emulator
from tvmops.measure import cuda
from tvmops.schedules import templates_for
from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.conv_halo import HaloConv
from tvmops.schedules.cuda.conv_halo_streamed import StreamedHaloConv
from tvmops.schedules.cuda.halo_tiles import HaloLayout, HaloTiles, StreamedTiles
from tvmops.schedules.cuda.kernels.conv_halo import HaloKernel
from tvmops.schedules.cuda.kernels.conv_halo_streamed import StreamedKernel
from tvmops.schedules.cuda.kernels.halo_image import HaloImage
from tvmops.signatures.windows import output_size
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload

RESIDENT, STREAMED_TEMPLATE = HaloConv(), StreamedHaloConv()
YOLO = "n=16 h=160 w=160 ci=32 co=32 kh=3 kw=3 padding=1 dtype=float16 bias=true activation=relu"
DEEP = "n=2 h=16 w=16 ci=1280 co=1280 kh=3 kw=3 padding=1 dtype=bfloat16"
_RESIDENT_KNOBS = ("tile_h", "tile_w", "consumers", "alternate", "bn", "depth", "beside")
_STREAMED_KNOBS = ("tile_h", "tile_w", "consumers", "bn", "depth", "beside", "split_k")


def conv(text: str) -> Workload:
    return Workload.parse(f"conv2d {text} layout=NHWC")


def boxes(work: Workload, tiles: HaloTiles, arrays: dict[str, NDArray[Any]]) -> dict[str, TensorMap]:
    """Describe the arrays as the host's code does, in the order in which the kernel takes them."""
    n, h, w, ci, co, kh, kw, groups = work.dims("n", "h", "w", "ci", "co", "kh", "kw", "groups")
    (down, across), layout = work["stride"], HaloLayout(ConvShape.of(work), tiles)  # type: ignore[misc]
    many = [groups] if groups > 1 else []
    ones = [1] * len(many)
    box = [tiles.depth, *ones, layout.w * across, layout.h * down, 1]
    image = TensorMap.of(arrays["x"], [ci // groups, *many, w, h, n], box, [1, *ones, across, down, 1])
    weights = TensorMap.of(arrays["w"], [ci // groups, kh * kw, co], [tiles.depth, 1, tiles.bn])
    return {"v": image, "v_1": weights}


CASES = [
    # squares that the image cuts short; more tiles than blocks
    ("n=3 h=9 w=11 ci=32 co=32 kh=3 kw=3 padding=1 dtype=float16 bias=true activation=relu",
     (8, 8, 1, 0, 32, 32, 1), 2),
    # runs, in turn, with everything that follows the sum; channels and outputs that nothing divides
    (
        "n=2 h=7 w=9 ci=72 co=40 kh=3 kw=2 padding=1x0x2x1 dtype=bfloat16 "
        "bias=true residual=true activation=gelu",
        (6, 9, 2, 1, 32, 64, 1), 2,
    ),
    # squares that warpgroups share; strides, whose rows and columns lie in planes; a dilated kernel, groups
    ("n=1 h=34 w=21 ci=48 co=96 kh=2 kw=3 padding=1 dilation=1x2 stride=2x3 groups=2 dtype=float16",
     (16, 8, 2, 0, 48, 16, 1), 2),
    # taps of a row alone, three warpgroups in turn, of which an image of a pixel leaves one without
    ("n=2 h=1 w=1 ci=64 co=16 kh=1 kw=3 padding=0x1 dtype=bfloat16 residual=true",
     (1, 1, 3, 1, 16, 64, 1), 1),
]  # fmt: skip

STREAMED = [
    # runs that warpgroups share; more tiles than blocks, channels and outputs that nothing divides
    ("n=3 h=7 w=9 ci=136 co=72 kh=3 kw=3 padding=1 dtype=float16 bias=true residual=true activation=relu",
     (7, 9, 2, 64, 64, 1, 1), 3),
    # squares, groups, strides
    ("n=1 h=15 w=17 ci=96 co=128 kh=3 kw=2 padding=1 stride=2x1 groups=2 dtype=bfloat16 bias=true",
     (8, 16, 1, 64, 16, 1, 1), 2),
    # sums that three blocks share, not evenly, with everything that follows
    ("n=1 h=6 w=5 ci=256 co=96 kh=3 kw=3 padding=1 dtype=bfloat16 bias=true residual=true activation=silu",
     (6, 5, 1, 96, 64, 1, 3), 1),
]  # fmt: skip


@pytest.mark.parametrize(
    "text, machine, covered",
    [
        (YOLO, "nvidia-h100", [HaloConv, StreamedHaloConv]),
        (YOLO.replace("n=16 h=160 w=160", "n=* h=* w=*"), "nvidia-h200", [HaloConv, StreamedHaloConv]),
        (YOLO.replace("ci=32", "ci=*"), "nvidia-h100", []),
        (YOLO.replace("kh=3 kw=3 padding=1", "kh=1 kw=1"), "nvidia-h100", []),  # each pixel is seen once
        (YOLO.replace("float16", "float32"), "nvidia-h100", []),
        (YOLO, "nvidia-a100", []),
        (DEEP, "nvidia-h100", [StreamedHaloConv]),  # weights that there is no room for
    ],
)
def test_what_they_cover(text: str, machine: str, covered: list[type[HaloConv]]) -> None:
    work, gpu = conv(text), target(machine)
    assert [type(each) for each in (RESIDENT, STREAMED_TEMPLATE) if each.covers(work, gpu)] == covered


@pytest.mark.parametrize(
    "text, first",
    [
        (YOLO, "cuda.conv_halo"),  # keeps the weights
        (DEEP, "cuda.conv_halo_streamed"),
        (
            DEEP.replace("h=16 w=16", "h=128 w=128 stride=2"),
            "cuda.conv_wgmma",
        ),  # much is copied, and seen by few
        (DEEP.replace("n=2 h=16 w=16", "n=32 h=7 w=7"), "cuda.conv_wgmma"),  # tiles are half empty
    ],
)
def test_which_comes_first(text: str, first: str) -> None:
    names = [template.name for template in templates_for(conv(text), H100)]
    assert names[0] == first and {"cuda.conv_halo_streamed", "cuda.conv_wgmma"} <= set(names)


@pytest.mark.parametrize("text", [YOLO, f"{YOLO} residual=true groups=2", DEEP])
@pytest.mark.parametrize("template", [RESIDENT, STREAMED_TEMPLATE], ids=lambda each: each.name)
def test_what_the_default_is_chosen_from_is_legal(template: HaloConv, text: str) -> None:
    work = conv(text)
    choices, space = template.choices(work, H100), template.space(work, H100)
    assert choices or (template is RESIDENT and text == DEEP)
    assert all(config in space for config in random.Random(0).sample(choices, min(len(choices), 20)))


def test_warpgroups_in_turn_have_stages_of_their_own() -> None:
    shape = ConvShape.of(conv(YOLO))
    shared = HaloTiles(8, 16, 3, 0, 32, 32, 1, 132, H100.l1_bytes)
    assert HaloLayout(shape, replace(shared, alternate=1)).stages % 3 == 0
    assert HaloLayout(shape, shared).stages % 3 != 0


@needs_nvcc
@pytest.mark.parametrize("template", [RESIDENT, STREAMED_TEMPLATE], ids=lambda each: each.name)
def test_random_configs_compile_without_spills(template: HaloConv) -> None:
    work = conv("n=8 h=28 w=28 ci=64 co=128 kh=3 kw=3 padding=1 dtype=float16 bias=true residual=true")
    rng, space = random.Random(0), template.space(work, H100)
    for _ in range(3):
        drawn = space.sample(rng)
        assert drawn is not None
        report = compiled(template, work, H100, drawn).report
        assert report.spilled_bytes == 0 and report.warnings == ()


@pytest.mark.parametrize("text, knobs, blocks", CASES + STREAMED)
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_convolution(
        self, text: str, knobs: tuple[int, ...], blocks: int, tmp_path: Path
    ) -> None:
        work, kernel, grid = conv(text), *kernel_of(text, knobs, blocks)
        tiles = kernel.tiles
        _, (cubin,) = cuda.compile_module(kernel.module(), H100)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        run = Run.of(work)
        arguments = {**run.arrays, **boxes(work, tiles, run.arrays)}
        cluster = tiles.split_k if isinstance(tiles, StreamedTiles) else 1
        emulated(cubin, tmp_path)(grid, arguments, cluster, shared_bytes=H100.gpu.shared_bytes)
        run.check()


def kernel_of(text: str, knobs: tuple[int, ...], blocks: int) -> tuple[HaloImage, int]:
    """Return a kernel on a machine of `blocks` multiprocessors, and the blocks that the host starts."""
    work = conv(text)
    shape, dtype = ConvShape.of(work), str(work["dtype"])
    if (text, knobs, blocks) in CASES:
        config = Config.of(**dict(zip(_RESIDENT_KNOBS, knobs)))
        resident = HaloKernel(shape, dtype, replace(HaloTiles.of(config, H100), multiprocessors=blocks))
        return resident, resident.layout.blocks
    config = Config.of(**dict(zip(_STREAMED_KNOBS, knobs)))
    kernel = StreamedKernel(shape, dtype, replace(StreamedTiles.of(config, H100), multiprocessors=blocks))
    count = kernel.layout.count(int(shape.n), *output_size(work)) * kernel.layout.jobs  # type: ignore[call-overload]
    return kernel, count * kernel.tiles.split_k if kernel.tiles.split_k > 1 else blocks
