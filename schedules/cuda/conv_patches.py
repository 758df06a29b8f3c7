"""Patches of the output of a convolution, each of which one wgmma multiplies: boxes of up to 64 pixels."""

from __future__ import annotations

import math
from functools import lru_cache

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.conv_tiles import PANEL, ROWS, ConvTiles
from tvmops.signatures.windows import output_size
from tvmops.workloads import Workload

_MOST_BOX = 256
_MOST_PATCHES = 4  # shapes of a patch that are tried: those that fit the image best
_RUN = 200  # of a patch's stores: what one that is all runs of one pixel takes, in steps of a sum

Patch = tuple[int, int, int]  # columns, rows, images


@lru_cache(maxsize=64)
def patches_of(workload: Workload) -> tuple[Patch, ...]:
    """Return shapes of patches, those that leave the fewest products unused first, then the squarest.

    Of NCHW images, runs of few neighbouring pixels count against a patch, the more the fewer the steps
    of its sum: that is how results are stored.
    """
    (n,) = workload.dims("n")
    oh, ow = output_size(workload)
    shape = ConvShape.of(workload)
    if shape.is_pointwise:
        return ((ROWS, 1, 1),)
    strides = shape.across.stride, shape.down.stride
    found: dict[Patch, float] = {}
    for width in range(1, min(ROWS, ow, _MOST_BOX // strides[0]) + 1):
        for height in range(1, min(ROWS // width, oh, _MOST_BOX // strides[1]) + 1):
            images = min(ROWS // (width * height), n)
            count = math.ceil(ow / width) * math.ceil(oh / height) * math.ceil(n / images)
            run = 0 if workload["layout"] == "NHWC" else width * (height if width == ow else 1)
            found[width, height, images] = (
                count * (steps_of(workload, PANEL) + 1 + _RUN / run) if run else count
            )
    ranked = sorted(found, key=lambda patch: (found[patch], patch[2], abs(patch[0] - patch[1])))
    return tuple(ranked[:_MOST_PATCHES])


def patch_count(workload: Workload, tiles: ConvTiles) -> int:
    (n,) = workload.dims("n")
    oh, ow = output_size(workload)
    if ConvShape.of(workload).is_pointwise:
        return math.ceil(n * oh * ow / tiles.patch_w)
    return math.ceil(ow / tiles.patch_w) * math.ceil(oh / tiles.patch_h) * math.ceil(n / tiles.patch_n)


def steps_of(workload: Workload, depth: int) -> int:
    """Count the steps of a tile's sum: a place of the kernel and `depth` channels each."""
    ci, groups, kh, kw = workload.dims("ci", "groups", "kh", "kw")
    return kh * kw * math.ceil(ci // groups / depth)
