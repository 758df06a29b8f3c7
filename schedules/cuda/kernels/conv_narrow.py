"""The kernel of `NarrowConv`: images of few channels, as a first layer sees them, by mma.sync.

Such pixels are too short to be copied one by one. What a block of pixels of the output sees of the
image comes to shared memory as it lies, once, and each row of the kernel is a run of kw * ci
neighbouring elements there, of which mma's pairs are read straight away: the matrix of windows is
never made. The next tile's share of it is on its way while one is multiplied. A run is taken for a
multiple of 8 long; what is too much is masked. Where pixels begin at odd elements, a second copy of
the image is shifted by one. Weights stay in shared memory; blocks stay and take tile after tile.
Results leave through shared memory. NCHW differs in what comes there and what leaves alone.
"""

from __future__ import annotations

from typing import Any

from tvm import IRModule, tirx
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.kernels.conv_arrays import conv_module
from tvmops.schedules.cuda.kernels.conv_narrow_image import Image, PlanesImage
from tvmops.schedules.cuda.kernels.conv_narrow_results import PlanesResults, Results
from tvmops.schedules.cuda.kernels.conv_narrow_tiles import PAD, PIECE, NarrowLayout, NarrowTiles
from tvmops.schedules.cuda.words import PTX_TYPES, Scalar, c_call, do, ptx, when

_LOAD_WORD = """
__forceinline__ __device__ unsigned load_word(const void* array, int index) {
  return *reinterpret_cast<const unsigned*>(static_cast<const unsigned short*>(array) + index);
}
"""


class NarrowKernel:
    """`main(x, w, [bias], [residual], y)`; channels of the output are a multiple of 8."""

    def __init__(self, shape: ConvShape, dtype: str, tiles: NarrowTiles) -> None:
        self.shape, self.dtype, self.tiles = shape, dtype, tiles
        self.layout = NarrowLayout(shape, tiles)

    def module(self) -> IRModule:
        return conv_module(self.shape, self.dtype, self._begin, self._body, self.tiles.beside)

    def _begin(self, arrays: dict[str, Any]) -> None:
        self.arrays = arrays

    def _body(self) -> None:
        s, t, layout = self.shape, self.tiles, self.layout
        block = T.cta_id([layout.blocks])
        self.warp, self.lane = T.warp_id([t.warps]), T.lane_id([32])
        self.thread = Scalar(self.warp * 32 + self.lane)()
        pool = SMEMPool()
        self.weights = pool.alloc((t.bn * (layout.depth + PAD),), self.dtype, align=16)
        self.image = pool.alloc((layout.copies * layout.copy,), self.dtype, align=16)
        self.results = pool.alloc((layout.results,), self.dtype, align=16)
        pool.commit()
        self.base = Scalar(T.cuda.cvta_generic_to_shared(self.weights.ptr_to([0])), "uint32")()
        column = Scalar(T.truncmod(block, layout.columns) * t.bn)()
        staged = Image(self) if s.channels_last else PlanesImage(self)
        staged.stage_weights(column)
        self._prepare()
        results = Results(self) if s.channels_last else PlanesResults(self)
        across = Scalar(T.truncdiv(Scalar(s.ow)() + (t.tile_w - 1), t.tile_w))()
        down = Scalar(T.truncdiv(Scalar(s.oh)() + (t.tile_h - 1), t.tile_h))()
        count, stride = Scalar(across * down * s.n)(), layout.blocks // layout.columns
        index = Scalar(T.truncdiv(block, layout.columns))
        here = [Scalar(0) for _ in range(3)]  # image, row, column

        def locate() -> None:
            row = Scalar(T.truncdiv(index(), across))()
            image = Scalar(T.truncdiv(row, down))()
            corner = image, (row - image * down) * t.tile_h, (index() - row * across) * t.tile_w
            for each, value in zip(here, corner):
                each.set(value)

        with when(index() < count):
            locate()
            staged.fetch(*(each() for each in here))
        with T.While(index() < count):
            image, y, x = (Scalar(each())() for each in here)
            do(T.cuda.cta_sync())  # the last tile has been read
            staged.stage()
            do(T.cuda.cta_sync())
            index.set(index() + stride)
            with when(index() < count):  # what the next tile sees is on its way while this one is multiplied
                locate()
                staged.fetch(*(each() for each in here))
            self._multiply()
            results.store(image, y, x, column)

    def _prepare(self) -> None:
        """Find what stays: where this thread's pixels begin in the image, and what is too much of a run."""
        s, t, layout = self.shape, self.tiles, self.layout
        self.starts = []
        for part in range(2 * t.parts):
            pixel = Scalar(self.warp * (16 * t.parts) + part * 8 + T.truncdiv(self.lane, 4))()
            y, x = T.truncdiv(pixel, t.tile_w), T.truncmod(pixel, t.tile_w)
            first = Scalar(y * (s.down.stride * layout.pitch) + x * (s.across.stride * s.ci))()
            if layout.copies > 1:
                first = tirx.Select(T.truncmod(first, 2) == 0, first, first + 1 + layout.copy)
            self.starts.append(Scalar(first + self.lane % 4 * 2)())
        left = layout.run % PIECE - self.lane % 4 * 2
        low = tirx.Select(left > 0, T.uint32(0xFFFF), T.uint32(0))
        self.mask = Scalar(tirx.Select(left > 1, T.uint32(0xFFFFFFFF), low), "uint32")()
        self.sums = T.alloc_local((t.parts * (t.bn // 8) * 4,), "float32")
        self.raw = T.alloc_local((layout.steps,), "uint32")
        self.a_parts, self.b_parts = T.alloc_local((4,), "uint32"), T.alloc_local((t.bn // 4,), "uint32")

    def _multiply(self) -> None:
        t, layout = self.tiles, self.layout
        parts_n, kind = t.bn // 8, PTX_TYPES[self.dtype]
        for i in range(t.parts * parts_n * 4):
            T.buffer_store(self.sums, T.float32(0), [i])
        inner, outer = T.truncdiv(self.lane, 8) % 2, T.truncdiv(self.lane, 16) * 8 + self.lane % 8
        for step in range(layout.depth // 16):
            for pair in range(parts_n // 2):
                at = (pair * 16 + outer) * (layout.depth + PAD) + step * 16 + inner * 8
                registers = (self.b_parts[pair * 4 + i] for i in range(4))
                address = self.base + T.Cast("uint32", at * 2)
                ptx("ldmatrix.sync.aligned.m8n8.x4.shared.b16", *registers, address)
            for part in range(t.parts):
                for half in range(2):
                    for below in range(2):
                        word = self._word(step * 2 + half, self.starts[part * 2 + below])
                        T.buffer_store(self.a_parts, word, [half * 2 + below])
                for j in range(parts_n):
                    own = [self.sums[(part * parts_n + j) * 4 + i] for i in range(4)]
                    ptx(
                        f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32",
                        *own, *(self.a_parts[i] for i in range(4)),
                        self.b_parts[j * 2], self.b_parts[j * 2 + 1], *own,
                    )  # fmt: skip

    def _word(self, piece: int, start: Any) -> Any:
        """Return a pair of a piece of 8 along k."""
        s, layout = self.shape, self.layout
        row, inside = divmod(piece, layout.padded // PIECE)
        if row >= s.down.size:
            return T.uint32(0)
        offset = row * s.down.dilation * layout.pitch + inside * PIECE
        word = c_call("uint32", "load_word", self.image.ptr_to([0]), start + offset, source=_LOAD_WORD)
        return word & self.mask if (inside + 1) * PIECE > layout.run else word
