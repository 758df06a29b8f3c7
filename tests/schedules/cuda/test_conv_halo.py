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
from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.conv_halo import HaloConv, is_legal, tiles_of
from tvmops.schedules.cuda.halo_tiles import HaloLayout, HaloTiles, StreamedTiles
from tvmops.schedules.cuda.kernels.conv_halo import HaloKernel
from tvmops.schedules.cuda.kernels.conv_halo_streamed import StreamedKernel
from tvmops.signatures.windows import output_size
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload

TEMPLATE = HaloConv()
YOLO = "n=16 h=160 w=160 ci=32 co=32 kh=3 kw=3 padding=1 dtype=float16 bias=true activation=relu"
_KNOBS = ("tile_h", "tile_w", "consumers", "alternate", "bn", "depth", "beside", "early")


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
     (8, 8, 1, 0, 32, 32), 2),
    # runs, with everything that follows the sum; channels and outputs that nothing divides
    ("n=2 h=7 w=9 ci=72 co=40 kh=3 kw=2 padding=1x0x2x1 dtype=bfloat16 bias=true residual=true activation=gelu",
     (6, 9, 2, 1, 32, 64), 2),
    # strides: planes of columns and rows
    ("n=2 h=13 w=18 ci=24 co=64 kh=3 kw=3 padding=1 stride=2 dtype=float16 residual=true",
     (7, 9, 2, 0, 48, 16), 4),
    # squares that warpgroups share, a dilated kernel, groups
    ("n=1 h=17 w=20 ci=48 co=96 kh=2 kw=3 padding=1 dilation=2 stride=1x3 groups=2 dtype=float16",
     (16, 8, 2, 0, 48, 32), 2),
    # taps of a row alone, three warpgroups in turn, an image of a pixel
    ("n=5 h=1 w=1 ci=64 co=16 kh=1 kw=3 padding=0x1 dtype=bfloat16 bias=true",
     (1, 1, 3, 1, 16, 64), 1),
]  # fmt: skip


@pytest.mark.parametrize("text, knobs, blocks", CASES)
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_convolution(
        self, text: str, knobs: tuple[int, ...], blocks: int, tmp_path: Path
    ) -> None:
        work = conv(text)
        tiles = replace(tiles_of(Config.of(**dict(zip(_KNOBS, (*knobs, 1, len(text) % 2)))), H100), multiprocessors=blocks)
        kernel = HaloKernel(ConvShape.of(work), str(work["dtype"]), tiles)
        _, (cubin,) = cuda.compile_module(kernel.module(), H100)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        run = Run.of(work)
        arguments = {**run.arrays, **boxes(work, tiles, run.arrays)}
        emulated(cubin, tmp_path)(kernel.layout.blocks, arguments, shared_bytes=H100.gpu.shared_bytes)
        run.check()


STREAMED = [
    # runs that warpgroups share; more tiles than blocks, channels and outputs that nothing divides
    ("n=3 h=7 w=9 ci=136 co=72 kh=3 kw=3 padding=1 dtype=float16 bias=true residual=true activation=relu",
     (7, 9, 2, 64, 64, 1), 3),
    # squares, groups, strides
    ("n=1 h=15 w=17 ci=96 co=128 kh=3 kw=2 padding=1 stride=2x1 groups=2 dtype=bfloat16 bias=true",
     (8, 16, 1, 64, 16, 1), 2),
    # sums that three blocks share, not evenly, with everything that follows
    ("n=1 h=6 w=5 ci=256 co=96 kh=3 kw=3 padding=1 dtype=bfloat16 bias=true residual=true activation=silu",
     (6, 5, 1, 96, 64, 3), 1),
    ("n=2 h=8 w=9 ci=72 co=64 kh=2 kw=2 dtype=float16", (8, 8, 1, 64, 64, 2), 1),
]  # fmt: skip


@pytest.mark.parametrize("text, knobs, blocks", STREAMED)
class TestStreamedHere:
    pytestmark = needs_emulator

    def test_it_computes_the_convolution(
        self, text: str, knobs: tuple[int, ...], blocks: int, tmp_path: Path
    ) -> None:
        work = conv(text)
        names = ("tile_h", "tile_w", "consumers", "bn", "depth", "split_k")
        tiles = StreamedTiles.of(Config.of(**dict(zip(names, knobs)), beside=1, early=len(text) % 2), H100)
        tiles = replace(tiles, multiprocessors=blocks)
        kernel = StreamedKernel(ConvShape.of(work), str(work["dtype"]), tiles)
        _, (cubin,) = cuda.compile_module(kernel.module(), H100)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        run, layout = Run.of(work), kernel.layout
        arguments = {**run.arrays, **boxes(work, tiles, run.arrays)}
        count = layout.count(int(run.work["n"]), *output_size(work)) * layout.jobs
        grid = count * tiles.split_k if tiles.split_k > 1 else blocks
        emulated(cubin, tmp_path)(grid, arguments, tiles.split_k, shared_bytes=H100.gpu.shared_bytes)
        run.check()
