"""A tile of `tvmops.schedules.cpu.conv2d_pixels`: channels of neighbouring pixels, in registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvKernel
from tvmops.schedules.cpu.conv2d_direct import Tiling
from tvmops.schedules.cpu.emit import (
    Extent,
    branch,
    broadcast,
    divides,
    lanes,
    load,
    minimum,
    registers,
    zeros,
)
from tvmops.signatures.layouts import PANEL


@dataclass(frozen=True)
class PixelTiling(Tiling):
    """Those and one more."""

    pack_w: bool


@dataclass(frozen=True)
class Piece:
    """Some neighbouring lanes of a tile: a vector, or what is left over at the end."""

    at: int
    width: int
    limit: Extent | None = None  # pixels from here on are not there


Pixels: TypeAlias = "Callable[[Extent, Extent, int, Piece], tirx.Expr]"  # under (c, r, s) of the kernel


@dataclass(frozen=True)
class Tile:
    """mr output channels of `group`, from `first` on, by nv vectors of pixels."""

    kernel: ConvKernel
    tiling: PixelTiling
    group: Extent
    first: Extent  # among the channels of the group; those beyond its last repeat it

    def channel(self, i: int) -> Extent:
        """Return which output channel row `i` reads the weights of."""
        shape, index = self.kernel.shape, self.first + i
        if not divides(self.tiling.mr, shape.co_each):
            index = minimum(index, shape.co_each - 1)
        return self.group * shape.co_each + index

    def pack_w(self) -> Any:
        """Copy the weights of the channels to rows whose pitch is no power of two."""
        shape, mr, width = self.kernel.shape, self.tiling.mr, self.kernel.width
        assert isinstance(shape.ci_each, int)
        length = shape.ci_each * shape.down.size * shape.across.size
        whole = length // width * width
        packed = T.alloc_buffer((mr, -(-length // width) * width + 16), self.kernel.dtype)
        for i in range(mr):
            at = [self.channel(i), 0, 0]
            with T.serial(whole // width) as v:
                value = load(self.kernel.w, at, v * width, width, None)
                T.buffer_store(packed, value, [i, lanes(v * width, width)])
            with T.serial(length - whole) as k:
                T.buffer_store(packed, self.kernel.w[(*at, whole + k)], [i, whole + k])
        return packed

    def sums(self, pieces: list[Piece], packed: Any | None, x: Pixels, unroll_rows: bool) -> Any:
        """Sum over the channels and the kernel for the pixels of `pieces`.

        With `unroll_rows`, `x` gets each row of the kernel as a number; otherwise where they are few.
        """
        mr, dtype = self.tiling.mr, self.kernel.dtype
        accumulators = registers((mr, self.tiling.nv * self.kernel.width), dtype)
        for i in range(mr):
            for piece in pieces:
                T.buffer_store(accumulators, zeros(dtype, piece.width), [i, lanes(piece.at, piece.width)])
        weight = self._weights(packed)

        def step(c: Extent, r: Extent, s: int) -> None:
            pixels = [x(c, r, s, piece) for piece in pieces]
            for i in range(mr):
                scalar = weight(i, c, r, s)
                for piece, values in zip(pieces, pixels):
                    at = lanes(piece.at, piece.width)
                    total = accumulators[i, at] + broadcast(scalar, piece.width) * values
                    T.buffer_store(accumulators, total, [i, at])

        self._over_k(step, unroll_rows)
        return accumulators

    def _weights(self, packed: Any | None) -> Callable[[int, Extent, Extent, int], tirx.Expr]:
        """Return what reads a weight: (row, c, r, s) to a scalar."""
        shape, w = self.kernel.shape, self.kernel.w
        channels = [self.channel(i) for i in range(self.tiling.mr)]

        def k(c: Extent, r: Extent, s: int) -> Extent:
            return c * (shape.down.size * shape.across.size) + r * shape.across.size + s

        def weight(i: int, c: Extent, r: Extent, s: int) -> tirx.Expr:
            channel = channels[i]
            if shape.packed is not None:
                return w[channel // PANEL, k(c, r, s), channel % PANEL]
            return w[channel, c, r, s] if packed is None else packed[i, k(c, r, s)]

        return weight

    def _over_k(self, step: Callable[[Extent, Extent, int], None], unroll_rows: bool) -> None:
        """Call `step` for each (c, r, s)."""
        shape, cu = self.kernel.shape, self.tiling.cu
        kh, kw = shape.down.size, shape.across.size

        def taps(c: Extent) -> None:
            if unroll_rows or kh * kw <= 9:
                for r in range(kh):
                    for s in range(kw):
                        step(c, r, s)
            else:
                with T.serial(kh) as r:
                    for s in range(kw):
                        step(c, r, s)

        channels = shape.ci_each
        with T.serial(channels // cu) as outer:
            for u in range(cu):
                taps(outer * cu + u)
        if not divides(cu, channels):
            with T.serial(channels % cu) as rest:
                taps(channels // cu * cu + rest)


@dataclass(frozen=True)
class Cut:
    """How a run of pixels is cut into tiles of `count` vectors."""

    width: int
    count: int
    masks: bool  # True if what lies beyond the run may be neither read nor written

    @property
    def step(self) -> int:
        """Pixels of a tile."""
        return self.count * self.width

    def at(self, start: Extent, end: Extent, emit: Callable[[list[Piece]], None]) -> None:
        """Call `emit` with the pieces of a tile at pixel `start` of `end`: a whole one, or the last."""
        whole = [Piece(v * self.width, self.width) for v in range(self.count)]
        if divides(self.step, end):
            emit(whole)
        elif isinstance(end, int):
            last = self._last(end)
            if end < self.step:
                emit(last)
            else:
                branch(start + self.step <= end, lambda: emit(whole), lambda: emit(last))
        elif self.masks:
            limited = [Piece(piece.at, piece.width, end) for piece in whole]
            branch(start + self.step <= end, lambda: emit(whole), lambda: emit(limited))
        else:
            emit(whole)

    def _last(self, end: int) -> list[Piece]:
        """Cut what is left of `end` pixels into whole vectors and one as short as can hold the rest."""
        width, left = self.width, end % self.step
        pieces = [Piece(at, width) for at in range(0, left - width + 1, width)]
        rest = left % width
        if rest:
            short = 1 << (rest - 1).bit_length()
            pieces.append(Piece(left - rest, short, end if self.masks and short != rest else None))
        return pieces
