"""The loops of a Winograd convolution. `tvmops.schedules.cpu.winograd` says what each knob means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import (
    Extent,
    Span,
    branch,
    broadcast,
    ceildiv,
    chunk,
    chunks,
    divides,
    lanes,
    minimum,
    refuse_overlap,
    registers,
    zeros,
)
from tvmops.schedules.cpu.epilogue import Epilogue
from tvmops.schedules.cpu.winograd_grid import Block, Grid
from tvmops.schedules.cpu.winograd_image import Image
from tvmops.schedules.cpu.winograd_result import Result
from tvmops.schedules.cpu.winograd_weight import transform_weight
from tvmops.signatures import SIGNATURES
from tvmops.signatures.conv2d import output_size
from tvmops.signatures.winograd import CHANNELS
from tvmops.space import Config
from tvmops.workloads import Workload

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

    @classmethod
    def of(cls, config: Config) -> Blocking:
        return cls(**config.as_dict())  # type: ignore[arg-type]


class WinogradNest:
    """y = activation(conv(x, w) + bias + residual), by tiles of m x m outputs.

    At each of the t * t places in a tile, the transformed tiles of a block make a matrix
    v[tile, ci], to be multiplied by the transformed weights of that place, u[ci, co].
    """

    def __init__(self, workload: Workload, m: int, width: int, blocking: Blocking) -> None:
        self.workload, self.m, self.width, self.blocking = workload, m, width, blocking
        self.places = (m + 2) ** 2
        self.ci, self.co = workload.dims("ci", "co")
        self.grid = Grid.of(workload, m, blocking.rows, blocking.columns)
        self.blocks_of_co = Span(0, -(-self.co // CHANNELS))  # of CHANNELS
        self.panels = chunks(self.blocks_of_co, blocking.nb)

    def module(self) -> IRModule:
        signature = SIGNATURES["conv2d"]
        inputs, outputs = signature.inputs(self.workload), signature.outputs(self.workload)
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                T.func_attr({"tirx.noalias": True})
                handles = [T.arg(spec.name, T.handle()) for spec in (*inputs, *outputs)]
                # align=4: a caller's array may start at any element
                buffers = {
                    spec.name: T.match_buffer(handle, spec.shape, _DTYPE, align=4)
                    for spec, handle in zip((*inputs, *outputs), handles)
                }
                refuse_overlap(buffers["y"], {spec.name: buffers[spec.name] for spec in inputs})
                self._run(buffers)
        return IRModule({"main": builder.get()})

    def _run(self, buffers: dict[str, Any]) -> None:
        workload, grid, blocking = self.workload, self.grid, self.blocking
        channels_last = workload["layout"] == "NHWC"
        h, w = workload.dims("h", "w")
        image = Image(buffers["x"], (h, w, self.ci), channels_last, grid, self.width)
        sizes = (*output_size(workload), self.co)
        result = Result(buffers, sizes, channels_last, Epilogue.of(workload), grid, self.width)
        u = buffers["w"] if self.is_packed else self._transformed(buffers["w"], channels_last)
        groups = chunks(Span(0, self.panels), blocking.panels)
        if blocking.shared:
            v = self._alloc_v(grid.blocks)
            with T.parallel(grid.blocks * image.vectors) as task:
                at, vector = task // image.vectors, task % image.vectors
                image.transform(grid.block(at), vector, v, at)
            with T.parallel(grid.blocks * groups) as task:
                at, group = task // groups, task % groups
                self._multiply(grid.block(at), group, u, v, at, result)
        else:
            with T.parallel(grid.blocks) as task:
                block = grid.block(task)
                v = self._alloc_v(1)
                with T.serial(image.vectors) as vector:
                    image.transform(block, vector, v, 0)
                with T.serial(groups) as group:
                    self._multiply(block, group, u, v, 0, result)

    @property
    def is_packed(self) -> bool:
        return self.workload["packed"] != "none"

    def _transformed(self, w: Any, channels_last: bool) -> Any:
        shape = (self.blocks_of_co.count, self.places, self.ci, CHANNELS)
        u = T.alloc_buffer(shape, _DTYPE)
        with T.parallel(self.blocks_of_co.count) as block:
            transform_weight(w, u, block, (self.co, self.ci), channels_last, self.m, self.width)
        return u

    def _alloc_v(self, blocks: int) -> Any:
        """Allocate v[block, place, tile, channel].

        Rows of tiles beyond the last, up to a whole register tile, are multiplied as they are
        and the products not read.
        """
        tiles = self._capacity
        pitch = -(-self.ci // self.width) * self.width + CHANNELS
        return T.alloc_buffer((blocks, self.places, tiles, _uneven(pitch, tiles)), _DTYPE)

    @property
    def _capacity(self) -> int:
        return -(-self.grid.tiles // self.blocking.mr) * self.blocking.mr

    def _multiply(self, block: Block, group: Extent, u: Any, v: Any, at: Extent, result: Result) -> None:
        """Multiply one block of tiles by one group of panels of weights, and write what results."""
        blocking, width = self.blocking, self.width
        panels = chunk(Span(0, self.panels), group, blocking.panels)
        most = min(blocking.panels or self.panels, self.panels) * blocking.nb * CHANNELS
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

            rest = self.blocks_of_co.count % blocking.nb
            if rest == 0:
                tiles(blocking.nb)
            elif self.panels == 1:
                tiles(rest)
            else:
                branch(panel < self.panels - 1, lambda: tiles(blocking.nb), lambda: tiles(rest))
        first = panels.start * (blocking.nb * CHANNELS)
        vectors = ceildiv(self.co - first, width)
        if most < self.co:
            vectors = minimum(vectors, panels.count * (blocking.nb * CHANNELS // width))
        with T.serial(vectors) as vector:
            result.transform(block, first + vector * width, products, vector * width)

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


def _uneven(pitch: int, rows: int) -> int:
    """Return `pitch`, or a little more, so that matrices of `rows` rows do not share sets of a cache."""
    return pitch if pitch * rows % _WAY else pitch + CHANNELS
