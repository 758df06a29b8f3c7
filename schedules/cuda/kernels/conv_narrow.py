"""The kernel of `NarrowConv`: images of few channels, as a first layer sees them, by mma.sync.

Such pixels are too short to be copied one by one. What a block of pixels of the output sees of the
image comes to shared memory as it lies, once, and each row of the kernel is a run of kw * ci
neighbouring elements there, of which mma's pairs are read straight away: the matrix of windows is
never made. The next tile's share of it is on its way while one is multiplied. A run is taken for a multiple of 8 long; what is too much is masked. Where pixels begin
at odd elements, a second copy of the image is shifted by one. Weights stay in shared memory; blocks
stay and take tile after tile. Results leave through shared memory, 16 bytes at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.kernels.conv_arrays import conv_module
from tvmops.schedules.cuda.pairs import element_at, high_of, load_pair, low_of
from tvmops.schedules.cuda.words import PTX_TYPES, Scalar, c_call, do, pack, ptx, when

PAD = 8  # elements behind a row of weights or results, so that rows start in different banks
_PIECE = 8  # elements of 16 bytes

# A thread's share of what a tile sees, in two steps: to registers, and from there.
_FETCH = """
__forceinline__ __device__ void fetch_image_{steps}(unsigned* raw, const void* x, int first, int top, int left,
                                                    int h, int width, int rows, int columns, int thread,
                                                    int threads) {{
  const unsigned short* from = static_cast<const unsigned short*>(x);
#pragma unroll
  for (int step = 0; step < {steps}; ++step) {{
    const int i = step * threads + thread, row = i / columns, column = i - row * columns;
    const int y = top + row, z = left + column;
    const bool inside = row < rows && y >= 0 && y < h && z >= 0 && z < width;
    raw[step] = inside ? __ldg(from + static_cast<long long>(first + y) * width + z) : 0;
  }}
}}
"""
_PLACE = """
__forceinline__ __device__ void place_image_{copies}_{steps}(void* to, const unsigned* raw, int rows, int columns,
                                                             int pitch, int copy, int thread, int threads) {{
  unsigned short* at = static_cast<unsigned short*>(to);
#pragma unroll
  for (int step = 0; step < {steps}; ++step) {{
    const int i = step * threads + thread, row = i / columns, column = i - row * columns;
    if (row < rows) {{
      at[row * pitch + column] = static_cast<unsigned short>(raw[step]);
      if ({copies} > 1) at[copy + row * pitch + column + 1] = static_cast<unsigned short>(raw[step]);
    }}
  }}
}}
"""
_STAGE_WEIGHTS = """
__forceinline__ __device__ void stage_weights(void* to, const void* w, int first, int channels, int rows, int run,
                                              int padded, int depth, int count, int thread, int threads) {
  unsigned short* at = static_cast<unsigned short*>(to);
  const unsigned short* from = static_cast<const unsigned short*>(w);
  for (int i = thread; i < count * depth; i += threads) {
    const int n = i / depth, k = i - n * depth, r = k / padded, j = k - r * padded;
    const bool inside = first + n < channels && r < rows && j < run;
    at[n * (depth + 8) + k] = inside ? __ldg(from + ((first + n) * rows + r) * run + j) : 0;
  }
}
"""
_LOAD_WORD = """
__forceinline__ __device__ unsigned load_word(const void* array, int index) {
  return *reinterpret_cast<const unsigned*>(static_cast<const unsigned short*>(array) + index);
}
"""
_PLACE_WORD = """
__forceinline__ __device__ void place_word(void* array, int index, unsigned word) {
  *reinterpret_cast<unsigned*>(static_cast<unsigned short*>(array) + index) = word;
}
"""
_MOVE_PIECE = """
__forceinline__ __device__ void move_piece(void* to, const void* from) {
  *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
}
"""


@dataclass(frozen=True)
class NarrowTiles:
    tile_h: int  # rows of the output that a block computes at once
    tile_w: int
    warps: int  # each takes as many of the tile's pixels
    bn: int  # output channels
    beside: int  # blocks that share a multiprocessor
    multiprocessors: int

    @property
    def pixels(self) -> int:
        return self.tile_h * self.tile_w

    @property
    def parts(self) -> int:
        """Parts of 16 pixels of a warp."""
        return self.pixels // (16 * self.warps)


class NarrowKernel:
    """`main(x, w, [bias], [residual], y)`, all NHWC; channels of the output are a multiple of 8."""

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
        self.results = pool.alloc((t.pixels * (t.bn + PAD),), self.dtype, align=16)
        pool.commit()
        self.base = Scalar(T.cuda.cvta_generic_to_shared(self.weights.ptr_to([0])), "uint32")()
        column = Scalar(T.truncmod(block, layout.columns) * t.bn)()
        do(
            c_call(
                "void", "stage_weights", self.weights.ptr_to([0]), self.arrays["w"].data, column, s.co, s.down.size,
                layout.run, layout.padded, layout.depth, t.bn, self.thread, t.warps * 32, source=_STAGE_WEIGHTS,
            )
        )  # fmt: skip
        self._prepare()
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
            self._fetch(*(each() for each in here))
        with T.While(index() < count):
            image, y, x = (Scalar(each())() for each in here)
            do(T.cuda.cta_sync())  # the last tile has been read
            self._stage()
            do(T.cuda.cta_sync())
            index.set(index() + stride)
            with when(index() < count):  # what the next tile sees is on its way while this one is multiplied
                locate()
                self._fetch(*(each() for each in here))
            self._multiply()
            self._store(image, y, x, column)

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
        left = layout.run % _PIECE - self.lane % 4 * 2
        low = tirx.Select(left > 0, T.uint32(0xFFFF), T.uint32(0))
        self.mask = Scalar(tirx.Select(left > 1, T.uint32(0xFFFFFFFF), low), "uint32")()
        self.sums = T.alloc_local((t.parts * (t.bn // 8) * 4,), "float32")
        self.raw = T.alloc_local((layout.steps,), "uint32")
        self.a_parts, self.b_parts = T.alloc_local((4,), "uint32"), T.alloc_local((t.bn // 4,), "uint32")

    def _fetch(self, image: Any, y: Any, x: Any) -> None:
        s, t, layout = self.shape, self.tiles, self.layout
        do(
            c_call(
                "void", f"fetch_image_{layout.steps}", T.address_of(self.raw[0]), self.arrays["x"].data, image * s.h,
                y * s.down.stride - s.down.before, (x * s.across.stride - s.across.before) * s.ci, s.h,
                s.w * s.ci, layout.rows, layout.width, self.thread, t.warps * 32,
                source=_FETCH.format(steps=layout.steps),
            )
        )  # fmt: skip

    def _stage(self) -> None:
        t, layout = self.tiles, self.layout
        name, source = (
            f"place_image_{layout.copies}_{layout.steps}",
            {"copies": layout.copies, "steps": layout.steps},
        )
        do(
            c_call(
                "void", name, self.image.ptr_to([0]), T.address_of(self.raw[0]), layout.rows, layout.width,
                layout.pitch, layout.copy, self.thread, t.warps * 32, source=_PLACE.format(**source),
            )
        )  # fmt: skip

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
        row, inside = divmod(piece, layout.padded // _PIECE)
        if row >= s.down.size:
            return T.uint32(0)
        offset = row * s.down.dilation * layout.pitch + inside * _PIECE
        word = c_call("uint32", "load_word", self.image.ptr_to([0]), start + offset, source=_LOAD_WORD)
        return word & self.mask if (inside + 1) * _PIECE > layout.run else word

    def _store(self, image: Any, y: Any, x: Any, column: Any) -> None:
        """Finish the sums of a warp's pixels; they leave row by row."""
        s, t = self.shape, self.tiles
        first = Scalar(self.warp * (16 * t.parts))()
        for j in range(t.bn // 8):
            channel = Scalar(column + j * 8 + self.lane % 4 * 2)()
            bias = None
            if "bias" in self.arrays:
                place = tirx.min(channel, s.co - 2)
                bias = Scalar(load_pair(element_at(self.arrays["bias"], place)), "uint32")()
            for part in range(t.parts):
                for below in range(2):
                    own = Scalar(first + part * 16 + below * 8 + T.truncdiv(self.lane, 4))()
                    at = (part * (t.bn // 8) + j) * 4 + below * 2
                    place = own * (t.bn + PAD) + j * 8 + self.lane % 4 * 2
                    self._finish(image, y, x, own, channel, at, bias, place)
        do(T.cuda.warp_sync())
        with T.serial(16 * t.parts * (t.bn // 8) // 32) as step:
            piece = Scalar(step * 32 + self.lane)()
            own = Scalar(first + T.truncdiv(piece, t.bn // 8))()
            channel = Scalar(T.truncmod(piece, t.bn // 8) * _PIECE)()
            within, place = self._place(image, y, x, own, column + channel)
            with when(within):
                source = self.results.ptr_to([own * (t.bn + PAD) + channel])
                do(
                    c_call(
                        "void", "move_piece", element_at(self.arrays["y"], place), source, source=_MOVE_PIECE
                    )
                )

    def _finish(
        self, image: Any, y: Any, x: Any, own: Any, channel: Any, at: int, bias: Any, place: Any
    ) -> None:
        low, high = self.sums[at], self.sums[at + 1]
        activation = self.shape.epilogue.activation
        pairs = [] if bias is None else [bias]
        if "residual" in self.arrays:
            within, index = self._place(image, y, x, own, channel)
            word = Scalar(0, "uint32")
            with when(within):
                word.set(load_pair(element_at(self.arrays["residual"], index)))
            pairs.append(word())
        for pair in pairs:
            low, high = low + low_of(self.dtype, pair), high + high_of(self.dtype, pair)
        word = pack(self.dtype, activate(activation, low), activate(activation, high))
        do(c_call("void", "place_word", self.results.ptr_to([0]), place, word, source=_PLACE_WORD))

    def _place(self, image: Any, y: Any, x: Any, own: Any, channel: Any) -> tuple[Any, Any]:
        """Return whether a pixel of the tile is one of the image, and the place of a channel of it in y."""
        s, t = self.shape, self.tiles
        row = Scalar(y + T.truncdiv(own, t.tile_w))()
        column = Scalar(x + T.truncmod(own, t.tile_w))()
        within = tirx.all(row < s.oh, column < s.ow, channel < s.co)
        return within, ((image * s.oh + row) * s.ow + column) * s.co + channel


class NarrowLayout:
    """How a tile lies in shared memory, in elements."""

    def __init__(self, shape: ConvShape, tiles: NarrowTiles) -> None:
        ci, co = int(shape.ci), int(shape.co)
        down, across = shape.down, shape.across
        self.run = across.size * ci
        self.padded = -(-self.run // _PIECE) * _PIECE
        self.depth = -(-down.size * self.padded // 16) * 16
        self.rows = (tiles.tile_h - 1) * down.stride + down.reach
        self.width = ((tiles.tile_w - 1) * across.stride + across.size) * ci
        self.pitch = (self.width + self.padded - self.run + 3) // 2 * 2
        self.copies = 1 if across.stride * ci % 2 == 0 else 2  # whether all pixels begin at even elements
        self.steps = -(-self.rows * self.width // (32 * tiles.warps))  # elements of a thread
        self.copy = self.rows * self.pitch
        self.columns = -(-co // tiles.bn)
        self.blocks = max(1, tiles.multiprocessors * tiles.beside // self.columns) * self.columns

    def shared_bytes(self, tiles: NarrowTiles) -> int:
        elements = tiles.bn * (self.depth + PAD) + self.copies * self.copy + tiles.pixels * (tiles.bn + PAD)
        return 2 * elements + 64
