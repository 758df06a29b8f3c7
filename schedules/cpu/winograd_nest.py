"""The loops of a Winograd convolution. `tvmops.schedules.cpu.winograd` says what each knob means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvKernel, ConvShape
from tvmops.schedules.cpu.emit import (
    Extent,
    Span,
    branch,
    broadcast,
    ceildiv,
    chunk,
    chunks,
    computed,
    divides,
    lanes,
    minimum,
    registers,
    zeros,
)
from tvmops.schedules.cpu.winograd_grid import Block, Grid
from tvmops.schedules.cpu.winograd_image import Image
from tvmops.schedules.cpu.winograd_result import Result
from tvmops.schedules.cpu.winograd_weight import transform_weight
from tvmops.signatures.winograd import CHANNELS
from tvmops.space import Config

_DTYPE = "float32"
_WAY = 1024  # floats after which addresses share a set of the first cache


@dataclass(frozen=True)
class Blocking:
    """The knobs, as numbers."""

    mr: int
    nb: int
    rows: int
    columns: int
    panels: int
    ku: int
    shared: bool
    parallel: bool

    @classmethod
    def of(cls, config: Config) -> Blocking:
        return cls(**config.as_dict())  # type: ignore[arg-type]


class WinogradNest:
    """y = activation(conv(x, w) + bias + residual), by tiles of m x m outputs.

    At each of the (m + 2)**2 places in a tile, the transformed tiles of a block make a matrix
    v[tile, ci], to be multiplied by the transformed weights of that place, u[ci, co].
    """

    def __init__(self, shape: ConvShape, m: int, width: int, blocking: Blocking) -> None:
        self.kernel = ConvKernel(shape, _DTYPE, width)
        self.shape, self.m, self.width, self.blocking = shape, m, width, blocking
        self.places = (m + 2) ** 2
        self.ci, self.co = shape.ci, shape.co
        self.grid = Grid.of(shape, m, blocking.rows, blocking.columns)
        self.blocks_of_co = ceildiv(self.co, CHANNELS)
        self.panels = ceildiv(self.blocks_of_co, blocking.nb)

    def module(self) -> IRModule:
        return self.kernel.module(self._run)

    def _run(self) -> None:
        grid, blocking = self.grid, self.blocking
        kernel = self.kernel
        image = Image(kernel.x, self.shape, grid, self.width)
        result = Result(kernel.y, kernel.bias, kernel.residual, self.shape, grid, self.width)
        u = self._transformed()
        groups = chunks(Span(0, self.panels), blocking.panels)
        if blocking.shared:
            v = self._alloc_v(grid.blocks)
            with self._tasks(grid.blocks * image.vectors) as task:
                at, vector = self._both(task, image.vectors)
                image.transform(grid.block(at), vector, v, at)
            with self._tasks(grid.blocks * groups) as task:
                at, group = self._both(task, groups)
                self._multiply(grid.block(at), group, u, v, at, result)
        else:
            with self._tasks(grid.blocks) as task:
                block = grid.block(task)
                v = self._alloc_v(1)
                with T.serial(image.vectors) as vector:
                    image.transform(block, vector, v, 0)
                with T.serial(groups) as group:
                    self._multiply(block, group, u, v, 0, result)

    def _both(self, task: Extent, parts: Extent) -> tuple[Extent, Extent]:
        """Return the block and the part of it that `task` is."""
        both = task // parts, task % parts
        if isinstance(self.grid.blocks, int):
            return both
        return computed(both[0]), computed(both[1])  # else LLVM works at each address ten times as long

    def _tasks(self, count: Extent) -> Any:
        return T.parallel(count) if self.blocking.parallel else T.serial(count)

    def _transformed(self) -> Any:
        """Return u[block of co, place, ci, channel], made of w where that is not it already."""
        if self.shape.packed:
            return self.kernel.w
        u = T.alloc_buffer((self.blocks_of_co, self.places, self.ci, CHANNELS), _DTYPE)
        with self._tasks(self.blocks_of_co) as block:
            sizes = self.co, self.ci
            transform_weight(self.kernel.w, u, block, sizes, self.shape.channels_last, self.m, self.width)
        return u

    def _alloc_v(self, blocks: Extent) -> Any:
        """Allocate v[block, place, tile, channel].

        Rows of tiles beyond the last, up to a whole register tile, are multiplied as they are
        and the products not read.
        """
        tiles = self._capacity
        pitch = ceildiv(self.ci, self.width) * self.width + CHANNELS
        return T.alloc_buffer((blocks, self.places, tiles, _uneven(pitch, tiles)), _DTYPE)

    @property
    def _capacity(self) -> int:
        return -(-self.grid.tiles // self.blocking.mr) * self.blocking.mr

    def _multiply(self, block: Block, group: Extent, u: Any, v: Any, at: Extent, result: Result) -> None:
        """Multiply one block of tiles by one group of panels of weights, and write what results."""
        blocking, width = self.blocking, self.width
        panels = chunk(Span(0, self.panels), group, blocking.panels)
        most = self._most_panels * blocking.nb * CHANNELS
        products = T.alloc_buffer(
            (self.places, self._capacity, _uneven(most + CHANNELS, self._capacity)), _DTYPE
        )
        with T.serial(self.places) as place, T.serial(panels.count) as index:
            panel = panels.start + index

            def tiles(blocks: int) -> None:
                with T.serial(ceildiv(block.tiles, blocking.mr)) as step:
                    sums = self._sums(u, v, at, place, step * blocking.mr, panel * blocking.nb, blocks)
                    for i in range(blocking.mr):
                        for k in range(blocks * CHANNELS // width):
                            column = lanes(index * (blocking.nb * CHANNELS) + k * width, width)
                            value = sums[i, lanes(k * width, width)]
                            T.buffer_store(products, value, [place, step * blocking.mr + i, column])

            self._in_whole_blocks(panel, tiles)
        first = panels.start * (blocking.nb * CHANNELS)
        vectors = ceildiv(self.co - first, width)
        if not isinstance(self.co, int) or most < self.co:
            vectors = minimum(vectors, panels.count * (blocking.nb * CHANNELS // width))
        with T.serial(vectors) as vector:
            result.transform(block, first + vector * width, products, vector * width)

    @property
    def _most_panels(self) -> int:
        """Of a group."""
        most = self.blocking.panels
        return min(most or self.panels, self.panels) if isinstance(self.panels, int) else most

    def _in_whole_blocks(self, panel: Extent, multiply: Callable[[int], None]) -> None:
        """Call `multiply` with the number of blocks that `panel` has; the last may have fewer."""
        nb, blocks = self.blocking.nb, self.blocks_of_co
        if not isinstance(blocks, int):
            self._as_many_as(blocks - panel * nb, nb, multiply)
        elif blocks % nb == 0:
            multiply(nb)
        elif blocks < nb:
            multiply(blocks)
        else:
            branch(panel < self.panels - 1, lambda: multiply(nb), lambda: multiply(blocks % nb))

    def _as_many_as(self, left: tirx.Expr, most: int, multiply: Callable[[int], None]) -> None:
        """Call `multiply` with `left`, from 1 to `most`, as a number that is known."""
        if most == 1:
            multiply(1)
        else:
            branch(left >= most, lambda: multiply(most), lambda: self._as_many_as(left, most - 1, multiply))

    def _sums(
        self, u: Any, v: Any, at: Extent, place: Extent, tile: Extent, first: Extent, blocks: int
    ) -> Any:
        """Return the products of mr rows of v and `blocks` blocks of u, in registers."""
        mr, ku, width = self.blocking.mr, self.blocking.ku, self.width
        vectors = range(blocks * CHANNELS // width)
        sums = registers((mr, blocks * CHANNELS), _DTYPE)
        for i in range(mr):
            for k in vectors:
                T.buffer_store(sums, zeros(_DTYPE, width), [i, lanes(k * width, width)])

        def step(c: Extent) -> None:
            weights = []
            for k in vectors:
                block, column = divmod(k * width, CHANNELS)
                weights.append(u[first + block, place, c, lanes(column, width)])
            for i in range(mr):
                pixel = broadcast(v[at, place, tile + i, c], width)
                for k in vectors:
                    column = lanes(k * width, width)
                    T.buffer_store(sums, sums[i, column] + pixel * weights[k], [i, column])

        with T.serial(self.ci // ku) as unrolled:
            for k in range(ku):
                step(unrolled * ku + k)
        if not divides(ku, self.ci):
            with T.serial(self.ci % ku) as k:
                step(self.ci // ku * ku + k)
        return sums


def _uneven(pitch: Extent, rows: int) -> Extent:
    """Return `pitch`, or a little more, so that matrices of `rows` rows do not share sets of a cache."""
    if isinstance(pitch, int):
        return pitch if pitch * rows % _WAY else pitch + CHANNELS
    return pitch + tirx.Select(pitch * rows % _WAY == 0, CHANNELS, 0)
