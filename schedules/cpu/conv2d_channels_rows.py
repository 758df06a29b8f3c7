"""Rows of x as `tvmops.schedules.cpu.conv2d_channels` reads them: where they lie, or from a copy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvKernel
from tvmops.schedules.cpu.emit import Extent, Span, branch, divides, lanes, zeros

_LINE = 16  # elements of a cache line

# place in the kernel (r, s), pixel and channel, to a value of x
Value: TypeAlias = "Callable[[Extent, Extent, Extent, Extent], tirx.Expr]"


@dataclass(frozen=True)
class Row:
    """Pixels of the output that lie in a row, and where their inputs are."""

    image: Extent
    row: Extent  # of y
    count: Extent
    x: Value
    joined: bool  # (s, ci) runs through memory without a gap


class Rows(ABC):
    """What gives the rows of the output, for channels of one group, their inputs."""

    def __init__(self, kernel: ConvKernel, group: Extent) -> None:
        self.kernel, self.shape = kernel, kernel.shape
        self.channel = group * kernel.shape.ci_each  # of x, the first

    @abstractmethod
    def begin(self, image: Extent, rows: Span) -> None:
        """Emit what is to be done before any of `rows` is asked for."""

    @abstractmethod
    def row(self, image: Extent, rows: Span, i: Extent) -> Row:
        """Return the `i`-th of `rows`."""


class DirectRows(Rows):
    """x is read where it lies: nothing is around the image."""

    def begin(self, image: Extent, rows: Span) -> None:
        pass

    def row(self, image: Extent, rows: Span, i: Extent) -> Row:
        shape, x, row = self.shape, self.kernel.x, rows.start + i
        down, across = shape.down, shape.across

        def value(r: Extent, s: Extent, j: Extent, c: Extent) -> tirx.Expr:
            at = (image, row * down.stride + r * down.dilation, j * across.stride + s * across.dilation)
            return x[(*at, self.channel + c)]

        return Row(image, row, shape.ow, value, across.dilation == 1 and shape.groups == 1)


class CopiedRows(Rows):
    """A copy of the rows of x under `most` rows of the output at a time, with zeros around the image.

    For a kernel of one row (column) only the rows (columns) that it reads are copied.
    """

    def __init__(self, kernel: ConvKernel, group: Extent, most: Extent) -> None:
        super().__init__(kernel, group)
        down, across = self.shape.down, self.shape.across
        self.steps = (down.stride if down.reach > 1 else 1, across.stride if across.reach > 1 else 1)
        self.skips = (down.stride // self.steps[0], across.stride // self.steps[1])
        self.columns = (self.shape.ow - 1) * self.steps[1] + across.reach
        self.pixel = apart(self.shape.ci_each)
        count = (most - 1) * self.steps[0] + down.reach
        self.memory = T.alloc_buffer((count * self.columns * self.pixel,), kernel.dtype)

    def begin(self, image: Extent, rows: Span) -> None:
        shape, down, across = self.shape, self.shape.down, self.shape.across
        count = (rows.count - 1) * self.steps[0] + down.reach
        with T.serial(count) as i, T.serial(self.columns) as j:
            row = (rows.start * self.steps[0] + i) * self.skips[0] - down.before
            column = j * self.skips[1] - across.before
            target = (i * self.columns + j) * self.pixel
            at = [image, row, column]
            branch(
                tirx.all(row >= 0, row < shape.h, column >= 0, column < shape.w),
                lambda: copy_channels(self.kernel, at, self.channel, self.memory, [target]),
                lambda: self._zeros(target),
            )

    def _zeros(self, target: Extent) -> None:
        width, ci, dtype = self.kernel.width, self.shape.ci_each, self.kernel.dtype
        with T.serial(ci // width) as v:
            T.buffer_store(self.memory, zeros(dtype, width), [lanes(target + v * width, width)])
        if not divides(width, ci):
            with T.serial(ci % width) as c:
                T.buffer_store(self.memory, tirx.const(0, dtype), [target + ci // width * width + c])

    def row(self, image: Extent, rows: Span, i: Extent) -> Row:
        down, across = self.shape.down, self.shape.across

        def value(r: Extent, s: Extent, j: Extent, c: Extent) -> tirx.Expr:
            y, x = i * self.steps[0] + r * down.dilation, j * self.steps[1] + s * across.dilation
            return self.memory[(y * self.columns + x) * self.pixel + c]

        joined = across.dilation == 1 and not _lie_apart(self.shape.ci_each)
        return Row(image, rows.start + i, self.shape.ow, value, joined)


def copy_channels(
    kernel: ConvKernel, at: list[Extent], channel: Extent, to: Any, where: list[Extent]
) -> None:
    """Copy a pixel's channels of a group, `channel` and those behind it, to `where` and what follows."""
    x, width, count = kernel.x, kernel.width, kernel.shape.ci_each
    *outer, start = where
    with T.serial(count // width) as v:
        value = x[(*at, lanes(channel + v * width, width))]
        T.buffer_store(to, value, [*outer, lanes(start + v * width, width)])
    if not divides(width, count):
        whole = count // width * width
        with T.serial(count - whole) as c:
            T.buffer_store(to, x[(*at, channel + whole + c)], [*outer, start + whole + c])


def apart(channels: Extent) -> Extent:
    """Return a pitch for rows of `channels`: no power of two, lest they share a few cache lines."""
    return channels + _LINE if _lie_apart(channels) else channels


def _lie_apart(channels: Extent) -> bool:
    return not isinstance(channels, int) or channels % 64 == 0
