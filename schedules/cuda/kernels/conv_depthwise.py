"""The kernel of `DepthwiseConv`: each channel by itself, on CUDA cores, at the rate of the memory.

A thread computes `pixels` neighbouring columns of a row of the output, for a vector of channels:
what it reads of a row of the image serves all of them, and neighbouring threads read neighbouring
channels. A block takes `vectors` vectors of channels, whose weights it turns and keeps in shared
memory, and `repeats` times as many runs of pixels as it has threads for each. Sums are float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import DataType, IRModule, tirx
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cpu.emit import Extent, ceildiv
from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.kernels.conv_arrays import conv_module
from tvmops.schedules.cuda.row_memory import load_vector, parts_of, store_vector, unpack
from tvmops.schedules.cuda.words import Scalar, c_call, do, when

_AT = """
__forceinline__ __device__ void* item_at_{item}(const void* array, int index) {{
  return const_cast<char*>(static_cast<const char*>(array)) + {item}ll * index;
}}
"""
_TURN = """
__forceinline__ __device__ void turn_{item}(void* to, const void* weights, int first, int channels, int taps,
                                            int width, int thread, int threads) {{
  const {word}* from = static_cast<const {word}*>(weights);
  for (int i = thread; i < width * taps; i += threads) {{
    const int channel = i / taps, tap = i - channel * taps;
    const bool inside = first + channel < channels;
    static_cast<{word}*>(to)[tap * width + channel] = inside ? __ldg(from + first * taps + i) : static_cast<{word}>(0);
  }}
}}
"""
_WORDS = {2: "unsigned short", 4: "unsigned"}


@dataclass(frozen=True)
class DepthwiseTiles:
    pixels: int  # columns of a thread
    vectors: int  # of channels, of a block
    threads: int
    repeats: int
    width: int  # channels of a vector


class DepthwiseKernel:
    """`main(x, w, [bias], [residual], y)`, all NHWC, as many outputs as channels."""

    def __init__(self, shape: ConvShape, dtype: str, tiles: DepthwiseTiles) -> None:
        self.shape, self.dtype, self.tiles = shape, dtype, tiles
        self.item = int(DataType(dtype).itemsize)
        self.taps = shape.down.size * shape.across.size
        self.parts = parts_of(dtype, tiles.width)

    def module(self) -> IRModule:
        return conv_module(self.shape, self.dtype, self._begin, self._body)

    def _begin(self, arrays: dict[str, Any]) -> None:
        self.arrays = arrays

    @property
    def blocks(self) -> tuple[Extent, Extent]:
        """Blocks side by side along the channels, and along the pixels."""
        s, t = self.shape, self.tiles
        runs = ceildiv(s.ow, t.pixels) * s.oh * s.n
        return ceildiv(s.co, t.vectors * t.width), ceildiv(runs, t.threads // t.vectors * t.repeats)

    def _body(self) -> None:
        s, t = self.shape, self.tiles
        chunks, others = self.blocks
        block = T.cta_id([chunks * others])
        warp, lane = T.warp_id([t.threads // 32]), T.lane_id([32])
        thread = Scalar(warp * 32 + lane)()
        pool = SMEMPool()
        self.weights = pool.alloc((self.taps * t.vectors * t.width * self.item // 4 + 4,), "uint32", align=16)
        pool.commit()
        runs = Scalar(T.truncdiv(Scalar(s.ow)() + (t.pixels - 1), t.pixels))()
        columns = T.truncdiv(Scalar(s.co)() + (t.vectors * t.width - 1), t.vectors * t.width)
        row = Scalar(T.truncdiv(block, Scalar(columns)()))()
        first = Scalar((block - row * columns) * (t.vectors * t.width))()
        self._turn_weights(first, thread)
        do(T.cuda.cta_sync())
        vector = T.truncmod(thread, t.vectors)
        self.inside, self.channel = vector * t.width, Scalar(first + vector * t.width)()
        self._allocate()
        with when(self.channel < s.co), T.serial(t.repeats) as repeat:
            own = row * t.repeats + repeat
            run = Scalar(own * (t.threads // t.vectors) + T.truncdiv(thread, t.vectors))()
            with when(run < runs * s.oh * s.n):
                line = Scalar(T.truncdiv(run, runs))()
                image = Scalar(T.truncdiv(line, Scalar(s.oh)()))()
                self._run(image, Scalar(line - image * s.oh)(), Scalar((run - line * runs) * t.pixels)())

    def _turn_weights(self, first: Any, thread: Any) -> None:
        """Bring this block's weights to shared memory, channels innermost."""
        s, t = self.shape, self.tiles
        source = _TURN.format(item=self.item, word=_WORDS[self.item])
        do(
            c_call(
                "void", f"turn_{self.item}", self.weights.ptr_to([0]), self.arrays["w"].data, first, s.co,
                self.taps, t.vectors * t.width, thread, t.threads, source=source,
            )
        )  # fmt: skip

    def _allocate(self) -> None:
        t = self.tiles
        self.sums = T.alloc_local((t.pixels * t.width,), "float32")
        seen = len({offset for p in range(t.pixels) for offset in self._offsets(p)})
        self.words = T.alloc_local((self.parts * seen,), "uint32")
        self.seen = T.alloc_local((t.width,), "float32")
        self.factors = T.alloc_local((self.shape.across.size * t.width,), "float32")

    def _run(self, image: Any, y: Any, x: Any) -> None:
        """Compute a run of pixels, the first of them in column `x` of row `y`."""
        s, t = self.shape, self.tiles
        for i in range(t.pixels * t.width):
            T.buffer_store(self.sums, T.float32(0), [i])
        with T.serial(s.down.size) as r:
            row = Scalar(y * s.down.stride - s.down.before + r * s.down.dilation)()
            self._read_factors(r)
            left = Scalar(x * s.across.stride - s.across.before)()
            self._add_row((image * s.h + row) * s.w, left, tirx.all(row >= 0, row < s.h))
        for p in range(t.pixels):
            with when(x + p < s.ow):
                self._finish(p, ((image * s.oh + y) * s.ow + x + p) * s.co + self.channel)

    def _read_factors(self, r: Any) -> None:
        """Read the weights of a row of the kernel."""
        s, t = self.shape, self.tiles
        for j in range(s.across.size):
            tap = (r * s.across.size + j) * (t.vectors * t.width) + self.inside
            self._load(self.factors, j * t.width, self._at(self.weights.ptr_to([0]), tap), "*")

    def _add_row(self, first: Any, left: Any, within: Any) -> None:
        """Read each vector that the pixels see of a row once; zeros beyond the image."""
        s, t = self.shape, self.tiles
        uses: dict[int, list[tuple[int, int]]] = {}
        for p in range(t.pixels):
            for j, offset in enumerate(self._offsets(p)):
                uses.setdefault(offset, []).append((p, j))
        offsets = sorted(uses)
        for number, offset in enumerate(offsets):  # all are under way before the first is used
            at = number * self.parts
            for i in range(self.parts):
                T.buffer_store(self.words, T.uint32(0), [at + i])
            with when(tirx.all(within, left + offset >= 0, left + offset < s.w)):
                place = (first + left + offset) * s.co + self.channel
                load_vector(
                    self.words, at, self._at(self.arrays["x"].data, place), self.dtype, t.width, "__ldg"
                )
        for number, offset in enumerate(offsets):
            unpack(self.seen, 0, self.words, number * self.parts, self.dtype, t.width)
            for p, j in uses[offset]:
                for c in range(t.width):
                    at = p * t.width + c
                    product = self.seen[c] * self.factors[j * t.width + c]
                    T.buffer_store(self.sums, self.sums[at] + product, [at])

    def _offsets(self, pixel: int) -> list[int]:
        """Return what columns, from the first that a run sees, the window around its `pixel`-th sees."""
        across = self.shape.across
        return [pixel * across.stride + j * across.dilation for j in range(across.size)]

    def _finish(self, p: int, place: Any) -> None:
        s, t = self.shape, self.tiles
        at = Scalar(place)()
        for name, index in (("bias", self.channel), ("residual", at)):
            if name in self.arrays:
                self._load(self.seen, 0, self._at(self.arrays[name].data, index), "__ldg")
                for c in range(t.width):
                    T.buffer_store(self.sums, self.sums[p * t.width + c] + self.seen[c], [p * t.width + c])
        for c in range(t.width):
            value = activate(s.epilogue.activation, self.sums[p * t.width + c])
            T.buffer_store(self.sums, value, [p * t.width + c])
        store_vector(self._at(self.arrays["y"].data, at), self.sums, p * t.width, self.dtype, t.width)

    def _load(self, floats: Any, to: int, pointer: Any, how: str) -> None:
        load_vector(self.words, 0, pointer, self.dtype, self.tiles.width, how)
        unpack(floats, to, self.words, 0, self.dtype, self.tiles.width)

    def _at(self, array: Any, index: Any) -> Any:
        return c_call("handle", f"item_at_{self.item}", array, index, source=_AT.format(item=self.item))
