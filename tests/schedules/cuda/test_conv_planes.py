from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import IRModule

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.convolutions import COVERED, H100, POISON, Run, aligned, config
from tests.schedules.cuda.emulated import TensorMap, emulated, needs_emulator
from tvmops.measure import cuda
from tvmops.measure.build import compile_module as compile_for_cpu
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.conv_planes import PlanesConv, may_be_direct, multiplied, turns_weights
from tvmops.schedules.cuda.conv_tiles import ROWS, ConvTiles
from tvmops.schedules.cuda.conv_wgmma import tiles_of
from tvmops.schedules.cuda.kernels.conv_planes import Copies, PlanesConvKernel, workspace_function
from tvmops.signatures.windows import output_size
from tvmops.suites import read_specs
from tvmops.targets import target
from tvmops.workloads import Workload

TEMPLATE = PlanesConv()
BEHIND = 128  # bytes of a workspace that nothing may write


def conv(text: str) -> Workload:
    return Workload.parse(f"conv2d {text} layout=NCHW")


FLAT = (64, 1, 1)
CASES = [
    # planes as they lie: the last 64 pixels of an image are cut short, as are channels
    ("n=3 h=8 w=11 ci=72 co=72 kh=1 kw=1 dtype=float16 bias=true activation=relu",
     FLAT, (1, 1, 0, 64, 1, 1, 1, 1), 3),
    # everything that follows the sum, two patches of two warpgroups, whole buffers of residual
    ("n=2 h=12 w=12 ci=64 co=136 kh=1 kw=1 dtype=bfloat16 bias=true residual=true activation=gelu",
     FLAT, (2, 2, 0, 128, 1, 1, 1, 1), 2),
    # blocks that share weights; three buffers' worth of results in two
    ("n=5 h=4 w=14 ci=96 co=200 kh=1 kw=1 dtype=float16", FLAT, (1, 2, 0, 192, 1, 1, 1, 1), 2),
    ("n=5 h=4 w=14 ci=96 co=104 kh=1 kw=1 groups=1 dtype=float16 residual=true",
     FLAT, (1, 2, 1, 64, 2, 1, 1, 1), 4),
    ("n=2 h=4 w=20 ci=48 co=144 kh=1 kw=1 groups=3 dtype=bfloat16 bias=true",
     FLAT, (1, 2, 0, 64, 1, 1, 1, 1), 4),
    ("n=2 h=4 w=6 ci=320 co=72 kh=1 kw=1 dtype=float16 bias=true residual=true activation=silu",
     FLAT, (1, 1, 0, 64, 1, 4, 1, 1), 1),
    # copies: planes of odd size, of which no pair is aligned, all images in one row
    ("n=3 h=7 w=7 ci=64 co=72 kh=1 kw=1 dtype=float16 bias=true residual=true",
     FLAT, (1, 2, 0, 64, 1, 1, 1, 0), 2),
    # pixels that no window sees, channels that are no vector
    ("n=2 h=11 w=9 ci=68 co=64 kh=1 kw=1 stride=2 dtype=bfloat16 residual=true activation=relu",
     FLAT, (1, 1, 0, 64, 1, 1, 2, 0), 2),
    # patches that the image cuts short, planes of even size; more tiles than blocks
    ("n=3 h=10 w=11 ci=72 co=72 kh=3 kw=3 padding=1 dtype=float16", (4, 3, 2), (1, 1, 0, 64, 1, 1, 1, 0), 3),
    # rows of whole images, two patches, all that follows the sum, an uneven window
    (
        "n=2 h=7 w=9 ci=70 co=136 kh=3 kw=2 padding=1x0x2x1 stride=2x1 dtype=bfloat16 "
        "bias=true residual=true activation=gelu",
        (9, 5, 1), (2, 2, 0, 128, 1, 1, 1, 0), 2,
    ),
    ("n=1 h=12 w=10 ci=48 co=144 kh=2 kw=3 stride=1x3 dilation=2 groups=3 dtype=float16 residual=true",
     (3, 8, 1), (1, 2, 1, 64, 1, 1, 1, 0), 4),
    # sums that four blocks share
    ("n=2 h=5 w=6 ci=64 co=72 kh=1 kw=3 padding=1 dtype=bfloat16 bias=true residual=true activation=silu",
     (6, 5, 2), (1, 1, 0, 32, 1, 4, 1, 0), 1),
]  # fmt: skip


@pytest.mark.parametrize(
    "text, machine, covered",
    [
        *COVERED,
        ("n=1 h=7 w=7 ci=3 co=64 kh=3 kw=3 dtype=float16", "nvidia-h100", True),  # copies have zeros
        ("n=1 h=7 w=7 ci=64 co=60 kh=3 kw=3 dtype=float16", "nvidia-h100", False),
        ("n=1 h=99 w=99 ci=64 co=64 kh=1 kw=1 dtype=float16 stride=9", "nvidia-h100", True),
    ],
)
def test_what_it_covers(text: str, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(conv(text), target(machine)) is covered


def test_nhwc_is_for_others() -> None:
    work = conv("n=1 h=7 w=7 ci=64 co=64 kh=3 kw=3 dtype=float16")
    names = [each.name for each in templates_for(work, H100)]
    assert names[:2] == ["cuda.conv_planes", "cuda.conv_mma"]
    assert not TEMPLATE.covers(work.replace(layout="NHWC"), H100)


def test_it_is_not_the_usual_one_for_few_channels() -> None:
    work = conv("n=1 h=99 w=99 ci=3 co=64 kh=7 kw=7 stride=2 padding=3 dtype=float16")
    assert [each.name for each in templates_for(work, H100)][:2] == ["cuda.conv_narrow", "cuda.conv_planes"]


@pytest.mark.parametrize(
    "text, direct, turns",
    [
        ("n=3 h=28 w=28 ci=64 co=64 kh=1 kw=1", True, False),
        ("n=3 h=14 w=14 ci=64 co=64 kh=1 kw=1", False, False),  # planes of 392 bytes
        ("n=3 h=28 w=28 ci=60 co=64 kh=1 kw=1", False, True),  # weights of 120 bytes
        ("n=3 h=28 w=28 ci=64 co=64 kh=1 kw=1 stride=2", False, False),
        ("n=3 h=28 w=28 ci=64 co=64 kh=1 kw=1 padding=1", False, False),
        ("n=3 h=28 w=28 ci=64 co=64 kh=3 kw=3 padding=1", False, True),
    ],
)
def test_only_what_needs_it_is_copied(text: str, direct: bool, turns: bool) -> None:
    work = conv(f"{text} dtype=float16")
    assert (may_be_direct(work), turns_weights(work)) == (direct, turns)
    shared = TEMPLATE.kernel_workload(work)  # one kernel for all that need the same
    assert shared == TEMPLATE.kernel_workload(shared) and turns_weights(shared) == turns
    assert any(each["direct"] for each in TEMPLATE.space(work, H100)) == direct


def test_ranges_of_images_are_copied() -> None:
    work = conv("n=1 h=8 w=8 ci=64 co=64 kh=1 kw=1 dtype=float16")
    space = TEMPLATE.space(work, H100)
    assert any(each["direct"] for each in TEMPLATE.symbolic_space(space, work.replace(n="*")))
    assert not any(each["direct"] for each in TEMPLATE.symbolic_space(space, work.replace(h="*")))


RESNET = [each for each in read_specs(["resnet50"]) if each.op == "conv2d"]


@pytest.mark.parametrize("images", [1, 32])
@pytest.mark.parametrize("layer", RESNET, ids=str)
def test_the_default_is_legal(layer: Workload, images: int) -> None:
    work = layer.replace(n=images, layout="NCHW", dtype="bfloat16")
    assert TEMPLATE.default(work, H100) in TEMPLATE.space(work, H100)


def test_the_workspace_holds_the_copies() -> None:
    work = conv("n=2 h=5 w=6 ci=9 co=16 kh=3 kw=2 dtype=float16")
    general = work.replace(n="*", h="*", w="*", ci="*", co="*")
    shape = ConvShape.of(general)
    function = workspace_function(shape, "float16", Copies.of(shape, True))
    size = compile_for_cpu(IRModule({"main_workspace": function}), target("x86-64-v3"))["main_workspace"]
    inputs = op_of(work).random_inputs(work, seed=1)
    y = np.zeros((2, 16, 3, 5), np.float16)
    assert size(*inputs, y) == 2 * (2 * 5 * 6 * 16 + 16 * 3 * 2 * 16)


@needs_nvcc
def test_random_configs_compile_without_spills() -> None:
    rng = random.Random(0)
    for kernel in ("1 kw=1", "3 kw=3 padding=1"):
        work = conv(f"n=8 h=16 w=16 ci=256 co=256 kh={kernel} dtype=float16 bias=true residual=true")
        for _ in range(2):
            drawn = TEMPLATE.space(work, H100).sample(rng)
            assert drawn is not None
            cubin = compiled(TEMPLATE, work, H100, drawn)
            assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
            assert "wgmma.mma_async" in cubin.source
            assert ("turn_images(" in cubin.source) is not bool(drawn["direct"])


@needs_nvcc
@pytest.mark.parametrize("groups", ["ci=* co=*", "ci=96 co=96 groups=4"])
def test_the_generic_kernel_compiles(groups: str) -> None:
    work = conv(f"n=* h=* w=* {groups} kh=3 kw=3 dtype=float16 bias=true")
    (kernel,) = TEMPLATE.generic(work, H100)
    assert kernel.multiples == ({} if "groups" in groups else {"co": 8})
    cubin = compiled(TEMPLATE, work, H100, kernel.config)
    assert "turn_weights(" in cubin.source and "store_planes(" in cubin.source


@needs_nvcc
@pytest.mark.parametrize("direct, waits", [(0, 2), (1, 0)])
def test_what_is_copied_is_waited_for(direct: int, waits: int) -> None:
    work = conv("n=8 h=16 w=16 ci=256 co=256 kh=1 kw=1 dtype=float16")
    cubin = compiled(TEMPLATE, work, H100, config(FLAT, 1, 1, 0, 64, 1, 1, 1, direct))
    calls = [line for line in cubin.source.splitlines() if line.endswith("griddepcontrol_wait();")]
    assert len(calls) == waits  # the kernel that copies, for the caller's; the one that multiplies, for it


def boxes(work: Workload, tiles: ConvTiles, x: NDArray[Any], w: NDArray[Any]) -> dict[str, TensorMap]:
    """Describe what is multiplied as the host's code does, in the order in which the kernel takes it."""
    n, h, width, ci, co, kh, kw, groups = work.dims("n", "h", "w", "ci", "co", "kh", "kw", "groups")
    many = [groups] if groups > 1 else []
    ones = [1] * len(many)
    weights = TensorMap.of(w, [ci // groups, kh * kw, co], [tiles.depth, 1, tiles.bn // tiles.cluster])
    if tiles.direct:
        box = [ROWS, tiles.depth, *ones, 1]
        return {"v": TensorMap.of(x, [h * width, ci // groups, *many, n], box), "v_1": weights}
    down, across = work["stride"]  # type: ignore[misc]
    if kh * kw == 1:
        n, h, width = 1, 1, n * h * width
    box = [tiles.depth, *ones, tiles.patch_w * across, tiles.patch_h * down, tiles.patch_n]
    image = TensorMap.of(x, [ci // groups, *many, width, h, n], box, [1, *ones, across, down, 1])
    return {"v": image, "v_1": weights}


@pytest.mark.parametrize("text, patch, knobs, blocks", CASES)
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_convolution(
        self, text: str, patch: tuple[int, int, int], knobs: tuple[int, ...], blocks: int, tmp_path: Path
    ) -> None:
        work = conv(text)
        assert TEMPLATE.covers(work, H100)
        tiles = replace(tiles_of(work, H100, config(patch, *knobs)), multiprocessors=blocks, beside=1)
        dtype, turns = str(work["dtype"]), turns_weights(work)
        kernel = PlanesConvKernel(ConvShape.of(work), dtype, tiles, turns)
        _, (cubin,) = cuda.compile_module(kernel.module(), H100)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        run = Run.of(work)
        x, w = run.arrays["x"], run.arrays["w"]
        if not tiles.direct:
            x, w = self.copied(work, turns, run.arrays, emulated(cubin, tmp_path), 8 * blocks)
        arguments = {**run.arrays, **boxes(multiplied(work), tiles, x, w)}
        grid = int(kernel.tile_count) * tiles.split_k if tiles.split_k > 1 else blocks
        multiply = emulated(cubin, tmp_path, number=0 if tiles.direct else 1)
        multiply(grid, arguments, tiles.meeting, shared_bytes=H100.gpu.shared_bytes)
        run.check()

    def copied(
        self, work: Workload, turns: bool, arrays: dict[str, NDArray[Any]], run: Any, grid: int
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Copy the image and the weights, see that they are whole, and return them."""
        x, w, seen = arrays["x"], arrays["w"], multiplied(work)
        n, h, width, ci = seen.dims("n", "h", "w", "ci")
        (sy, sx), channels = work["stride"], w.shape[1]  # type: ignore[misc]
        taken = x[:, :, :: sy if h < x.shape[2] else 1, :: sx if width < x.shape[3] else 1]
        (groups,) = work.dims("groups")
        image, weights = n * h * width * ci, w.size // channels * (ci // groups)
        memory = aligned(2 * (image + weights * turns) + BEHIND)
        run(grid, {**arrays, "workspace": memory}, shared_bytes=8192)
        items = memory.view(x.dtype)
        assert (memory[-BEHIND:] == POISON).all()
        made = items[:image].reshape(n, h, width, ci)
        assert (made[..., : x.shape[1]] == taken.transpose(0, 2, 3, 1)).all() and not made[
            ..., x.shape[1] :
        ].any()
        if not turns:
            return made, w
        turned = items[image : image + weights].reshape(w.shape[0], *w.shape[2:], -1)
        assert (turned[..., :channels] == w.transpose(0, 2, 3, 1)).all()
        assert not turned[..., channels:].any()
        return made, turned


def test_results_of_whole_images_are_large_runs() -> None:
    work = conv("n=32 h=28 w=28 ci=128 co=128 kh=3 kw=3 padding=1 dtype=float16")
    oh, ow = output_size(work)
    assert (oh, ow) == (28, 28)
    assert TEMPLATE.default(work, H100).as_dict()["patch_w"] == 28
