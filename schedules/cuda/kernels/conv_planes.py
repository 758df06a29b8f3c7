"""The kernel of `PlanesConv`: `conv_wgmma` on NCHW images.

Where a pixel of the output is one of the image, neighbouring pixels of a channel are read as they
lie: wgmma takes a matrix either way round. Otherwise a kernel before this one copies the pixels that
windows see to a workspace, with channels last, and the weights. Either way results are turned on their
way through shared memory, and leave as runs of pixels, one channel after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm import IRModule, tirx
from tvm.script import tirx as script
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.conv_tiles import ROWS, ConvTiles
from tvmops.schedules.cuda.kernels.channels_last import BESIDE, Place, Turned, turn, whole_vectors
from tvmops.schedules.cuda.kernels.conv_arrays import conv_arrays, conv_module
from tvmops.schedules.cuda.kernels.conv_partials import ClusterSum
from tvmops.schedules.cuda.kernels.conv_plane_results import PlaneClusterSum, PlaneResults
from tvmops.schedules.cuda.kernels.conv_results import Results
from tvmops.schedules.cuda.kernels.conv_wgmma import WgmmaConvKernel
from tvmops.schedules.cuda.words import (
    PROGRAMMATIC_LAUNCH,
    Scalar,
    tensor_map,
    wait_for_kernels_before,
)


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

    def places(self, workspace: Any) -> dict[str, Place]:
        """Return where they lie, by the name of what they are copies of."""
        weights = {"w": self.weights.place(workspace)} if self.weights else {}
        return {"x": self.image.place(workspace), **weights}

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

    def multiplied(self, shape: ConvShape) -> ConvShape:
        if self.copies is None:
            return replace(shape, h=1, w=shape.h * shape.w)
        ci = whole_vectors(shape.ci) if shape.groups == 1 else shape.ci
        if not sees_single_pixels(shape):
            return replace(shape, ci=ci)
        down, across = (replace(each, stride=1, dilation=1) for each in (shape.down, shape.across))
        flat = shape.n * shape.oh * shape.ow
        return replace(shape, ci=ci, n=1, h=1, w=flat, down=down, across=across)

    def module(self) -> IRModule:
        if self.copies is None:
            return super().module()
        module = conv_module(
            self.given, self.dtype, self._begin, self._body, self.tiles.beside, workspace=True
        )
        module["main"] = module["main"].with_attr(*PROGRAMMATIC_LAUNCH)
        return module

    def _begin(self, arrays: dict[str, Any]) -> None:
        super()._begin(arrays)
        if self.copies is not None:
            weights = (arrays["w"], self.copies.weights) if self.copies.weights else None
            blocks = BESIDE * self.tiles.multiprocessors
            turn(arrays["workspace"], (arrays["x"], self.copies.image), weights, blocks)

    def _tensor_maps(self, arrays: dict[str, Any]) -> dict[str, Any]:
        if self.copies is not None:
            arrays = arrays | self.copies.places(arrays["workspace"])
        return super()._tensor_maps(arrays)

    def _seen_map(self, x: Any) -> Any:
        if not self.direct:
            return super()._seen_map(x)
        s = self.shape
        groups = [s.groups] if self.grouped else []
        ones = [1] * len(groups)
        return tensor_map(x, self.dtype, [s.w, s.ci_each, *groups, s.n], [ROWS, self.tiles.depth, *ones, 1])

    def _result_maps(self, arrays: dict[str, Any]) -> dict[str, Any]:
        return {}  # threads store them

    @property
    def counts_residual(self) -> bool:
        return False  # threads fetch it

    def await_arrays(self) -> None:
        if self.copies is not None:
            wait_for_kernels_before()

    def results_of(self, sums: Any) -> Results:
        return PlaneResults(self, sums)

    def cluster_sum(self) -> ClusterSum:
        return PlaneClusterSum(self)

    def place_in_image(self, channel: Any, group: Any, corner: tuple[Any, Any, Any]) -> tuple[Any, ...]:
        if not self.direct:
            return super().place_in_image(channel, group, corner)
        column, _, image = corner
        return (column, channel, *((group,) if self.grouped else ()), image)

    def index_of(self, x: Any, y: Any, image: Any) -> Any:
        """Return the place of a pixel of the output among those of all of y, in its first channel."""
        co, plane = self.given.co, self.given.oh * self.given.ow
        if self.copies is not None and sees_single_pixels(self.given):  # all pixels are one row
            return x + Scalar(T.truncdiv(x, Scalar(plane)()))() * ((co - 1) * plane)
        return image * (co * plane) + y * self.shape.ow + x


def workspace_function(shape: ConvShape, dtype: str, copies: Copies) -> tirx.PrimFunc:
    """Return `main_workspace(x, w, [bias], [residual], y)`: the bytes of workspace that `main` needs."""
    nbytes = copies.nbytes

    @script.prim_func
    def main_workspace() -> None:
        declared = script.meta_var(conv_arrays(shape, dtype))  # noqa: F841
        return nbytes  # type: ignore[no-any-return]  # of the kernel language

    function: tirx.PrimFunc = main_workspace
    return function
