"""What kernels that copy what a tile sees of an image once for all taps share: how it is copied and read."""

from __future__ import annotations

from typing import Any

from tvm import IRModule
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.halo_tiles import ROWS, SIDE, HaloLayout, HaloTiles
from tvmops.schedules.cuda.kernels.conv_arrays import conv_module
from tvmops.schedules.cuda.kernels.conv_producer import LOAD
from tvmops.schedules.cuda.words import (
    PROGRAMMATIC_LAUNCH,
    Ring,
    Scalar,
    c_call,
    ptx,
    shared_address,
    tensor_map,
)

_VIEW_OF_NOW = """
__forceinline__ __device__ unsigned long long view_of_now(unsigned long long view) {
  asm volatile("" : "+l"(view));
  return view;
}
"""


class HaloImage:
    """The frame of such a kernel; `images` of shared memory, `ring` and `group` are its own to say."""

    images: Any
    ring: Ring
    group: Any

    def __init__(self, shape: ConvShape, dtype: str, tiles: HaloTiles, layout: HaloLayout) -> None:
        self.shape, self.dtype, self.tiles, self.layout = shape, dtype, tiles, layout
        self.grouped = shape.groups > 1
        self.epilogue = shape.epilogue

    def module(self) -> IRModule:
        module = conv_module(self.shape, self.dtype, self._begin, self._body, self.tiles.beside)
        module["main"] = module["main"].with_attr(*PROGRAMMATIC_LAUNCH)
        return module

    def _body(self) -> None:
        raise NotImplementedError

    def _begin(self, arrays: dict[str, Any]) -> None:
        """Describe the arrays to the copy engine."""
        s, t, layout = self.shape, self.tiles, self.layout
        self.arrays = arrays
        self.bias, self.residual, self.y = (arrays.get(name) for name in ("bias", "residual", "y"))
        groups = [s.groups] if self.grouped else []
        ones, strides = [1] * len(groups), (s.across.stride, s.down.stride)
        self.x = tensor_map(
            arrays["x"],
            self.dtype,
            [s.ci_each, *groups, s.w, s.h, s.n],
            [t.depth, *ones, layout.w * strides[0], layout.h * strides[1], 1],
            [1, *ones, *strides, 1],
        )
        self.w = tensor_map(arrays["w"], self.dtype, [s.ci_each, len(layout.taps), s.co], [t.depth, 1, t.bn])

    def count_tiles(self) -> None:
        s, t = self.shape, self.tiles
        self.across, self.down = _over(s.ow, t.tile_w), _over(s.oh, t.tile_h)
        self.count = Scalar(self.across * self.down * s.n)()

    def locate(self, index: Any) -> tuple[Any, Any, Any]:
        """Return the first column and row of a tile, and its image."""
        row = Scalar(T.truncdiv(index, self.across))()
        image = Scalar(T.truncdiv(row, self.down))()
        x, y = (index - row * self.across) * self.tiles.tile_w, (row - image * self.down) * self.tiles.tile_h
        return Scalar(x)(), Scalar(y)(), image

    def seen(self, x: Any, y: Any, image: Any) -> tuple[Any, Any, Any]:
        """Return where what a tile sees begins."""
        s = self.shape
        left, top = x * s.across.stride - s.across.before, y * s.down.stride - s.down.before
        return Scalar(left)(), Scalar(top)(), image

    def load_planes(self, stage: Any, begin: int, chunk: Any, seen: tuple[Any, Any, Any]) -> None:
        """Begin to copy what a tile sees of `depth` channels to a stage, from its `begin`-th byte on."""
        (left, top, image), groups = seen, (self.group,) if self.grouped else ()
        for plane, (row, column) in enumerate(self.layout.phases):
            place = (chunk * self.tiles.depth, *groups, left + column, top + row, image)
            to = self.images.ptr_to([stage, (begin + plane * self.layout.plane_bytes) // 2])
            ptx(LOAD.format(rank=len(place)), to, T.address_of(self.x), *place, self.ring.full.at(stage))

    def starts(self, first_patch: Any) -> list[Any]:
        """Return where patches from the first on begin in a plane, of the first stage."""
        base, row_bytes = shared_address(self.images, 0, 0), self.tiles.row_bytes
        return [
            Scalar(base + T.Cast("uint32", self._start(first_patch + i) * row_bytes), "uint32")()
            for i in range(self.layout.patches)
        ]

    def views(self, starts: list[Any], stage: Any) -> list[Any]:
        """Return wgmma's views of the patches of a stage, seen from its first plane's first pixel."""
        row_bytes = self.tiles.row_bytes
        offset = T.Cast("uint32", stage * self.layout.stage_bytes)
        apart = self.layout.groups_apart * row_bytes
        return [Scalar(view(start + offset, row_bytes, apart), "uint64")() for start in starts]

    def _start(self, patch: Any) -> Any:
        """Return the pixel of a plane with which a patch begins."""
        t = self.tiles
        if not t.is_boxed:
            return patch * ROWS
        abreast = t.tile_w // SIDE
        row = patch // abreast if isinstance(patch, int) else T.truncdiv(patch, abreast)
        return (row * self.layout.w + patch - row * abreast) * SIDE


def view(address: Any, row_bytes: int, apart: int) -> Any:
    """Return wgmma's view of rows that are swizzled by their bytes, 8 of them `apart` from the next 8.

    It swizzles by addresses, as the copy engine does, so the first row may be any.
    """
    swizzle = {128: 1, 64: 2, 32: 3}[row_bytes]
    fixed = T.uint64(swizzle << 30 | apart >> 4) << T.uint64(32) | T.uint64(
        1 << 16
    )  # of 63 bits are literals
    return fixed | T.Cast("uint64", (address >> T.uint32(4)) & T.uint32(0x3FFF))


def of_now(view: Any) -> Any:
    """Return a view; what is computed of it takes no registers before, nor from tile to tile."""
    return Scalar(c_call("uint64", "view_of_now", view, source=_VIEW_OF_NOW), "uint64")()


def _over(extent: Extent, size: int) -> Any:
    if isinstance(extent, int):
        return -(-extent // size)
    return T.truncdiv(extent + (size - 1), size)
