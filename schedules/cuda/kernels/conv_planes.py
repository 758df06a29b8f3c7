"""The kernel of `PlanesConv`: `conv_wgmma` on NCHW images.

Where a pixel of the output is one of the image, neighbouring pixels of a channel are read as they
lie: wgmma takes a matrix either way round. Otherwise a kernel before this one copies the pixels that
windows see to a workspace, with channels last, and the weights. Either way results are turned on their
way through shared memory, and leave as runs of pixels, one channel after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from tvm import IRModule, tirx
from tvm.script import tirx as script
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.conv_tiles import DEPTH, ROWS, ConvTiles
from tvmops.schedules.cuda.kernels.channels_last import Turned, turn, whole_vectors
from tvmops.schedules.cuda.kernels.conv_arrays import conv_arrays, conv_module
from tvmops.schedules.cuda.kernels.conv_partials import ClusterSum
from tvmops.schedules.cuda.kernels.conv_plane_results import PlaneClusterSum, PlaneResults
from tvmops.schedules.cuda.kernels.conv_results import Results
from tvmops.schedules.cuda.kernels.conv_wgmma import WgmmaConvKernel
from tvmops.schedules.cuda.words import PROGRAMMATIC_LAUNCH, Scalar, tensor_map

_COPYING_BLOCKS = 8  # a multiprocessor


@dataclass(frozen=True)
class Copies:
    """What is copied before it is multiplied."""

    image: Turned
    weights: Turned | None

    @classmethod
    def of(cls, shape: ConvShape, weights: bool) -> Copies:
        """Return the copies of a convolution's image and, unless they lie as they should, its weights."""
        s = shape
        if sees_single_pixels(s):
            strides = s.down.stride, s.across.stride
            image = Turned(s.n, s.ci, s.h, s.w, s.oh, s.ow, *strides)
        else:
            image = Turned(s.n, s.ci, s.h, s.w, s.h, s.w)
        taps = s.down.size, s.across.size
        return cls(image, Turned(s.co, s.ci_each, *taps, *taps, offset=image.end) if weights else None)

    @property
    def nbytes(self) -> Any:
        return (self.weights or self.image).end


def sees_single_pixels(shape: ConvShape) -> bool:
    """Say whether windows are pixels of the image, maybe not all of them."""
    return all((each.size, each.before, each.after) == (1, 0, 0) for each in (shape.down, shape.across))


class PlanesConvKernel(WgmmaConvKernel):
    """`main(x, w, [bias], [residual], y, [workspace])`, all NCHW; unless `tiles.direct`, with a workspace.

    Parameters
    ----------
    turns_weights
        Whether they have other places than 1x1, or channels that TMA can't take.
    """

    def __init__(self, shape: ConvShape, dtype: str, tiles: ConvTiles, turns_weights: bool) -> None:
        self.direct = bool(tiles.direct)
        self.copies = None if self.direct else Copies.of(shape, turns_weights)
        super().__init__(shape, dtype, tiles)
        self.plane = shape.oh * shape.ow

    def multiplied(self, shape: ConvShape) -> ConvShape:
        if self.copies is None:
            return replace(shape, h=1, w=shape.h * shape.w)
        ci = shape.ci if self.grouped_by(shape) else whole_vectors(shape.ci)
        if not sees_single_pixels(shape):
            return replace(shape, ci=ci)
        down, across = (replace(each, stride=1, dilation=1) for each in (shape.down, shape.across))
        flat = shape.n * shape.oh * shape.ow
        return replace(shape, ci=ci, n=1, h=1, w=flat, down=down, across=across)

    def module(self) -> IRModule:
        if self.copies is None:
            return super().module()
        module = conv_module(self.given, self.dtype, self._begin, self._body, self.tiles.beside, workspace=True)
        module["main"] = module["main"].with_attr(*PROGRAMMATIC_LAUNCH)
        return module

    def _begin(self, arrays: dict[str, Any]) -> None:
        super()._begin(arrays)
        if self.copies is not None:
            weights = self.copies.weights and (arrays["w"], self.copies.weights)
            blocks = _COPYING_BLOCKS * self.tiles.multiprocessors
            turn(arrays["workspace"], (arrays["x"], self.copies.image), weights, blocks)
