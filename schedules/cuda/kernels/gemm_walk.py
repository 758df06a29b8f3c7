"""Which tiles a block of a wgmma product takes, and which steps along k of each."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as builder

from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.kernels.gemm_arrays import Arrays, Form
from tvmops.schedules.cuda.kernels.gemm_stream_k import LEAVING, again


def blocks_for(form: Form, tiles: Tiles, m: Any, n: Any, batch: Any) -> Any:
    """Return how many blocks are launched: for each share of a sum, or as many as stay."""
    together = tiles.sharers * tiles.split_k * tiles.neighbours
    workers = tiles.blocks // (tiles.sharers * tiles.neighbours)
    if tiles.streams == 1 or tiles.split_k == 1 and not tiles.chained:
        return workers * together
    rows, columns = tiles.bm * tiles.cluster, tiles.bn * tiles.abreast
    count = T.truncdiv(m + (rows - 1), rows) * T.truncdiv(n + (columns - 1), columns) * batch * form.parts
    items = T.truncdiv(count + (tiles.neighbours - 1), tiles.neighbours) * max(tiles.streams, 1)
    return (items if tiles.split_k > 1 else T.min(items, workers)) * together


class Walk:
    """The tiles that a block takes one after the other, and its place in the ring of stages, as one thread sees them.

    A cluster takes tiles together. Tiles that fill no wave may be shared, by their steps along k, through a
    workspace: each by as many clusters (`streams` > 1), or all of them evenly by all (1). Of those the last
    clusters begin one each and take its first steps, its head; the others divide what follows the heads.
    """

    def __init__(self, form: Form, tiles: Tiles, arrays_of: Arrays, block: Any, rank: Any) -> None:
        self.form, self.tiles, self.rank = form, tiles, rank
        self.workers, self.holders = tiles.blocks // tiles.sharers, max(tiles.streams, 1)
        height, width = tiles.bm * tiles.cluster, tiles.bn * tiles.abreast
        step = tiles.bk * 2 // form.item  # of k, of a stage
        self.place = T.truncdiv(block, tiles.sharers * tiles.split_k)  # of the cluster
        # Through variables, lest what the launch computes becomes arguments of the kernel.
        m, n = variable("m", arrays_of.m), variable("n", arrays_of.n)
        self.rows = variable("ROWS", T.truncdiv(m + (height - 1), height))  # of tiles, as clusters see them
        self.columns = variable("COLUMNS", T.truncdiv(n + (width - 1), width))
        self.count = variable("TILES", self.rows * self.columns * arrays_of.batch * form.parts)
        self.depth = variable("DEPTH", T.truncdiv(arrays_of.k + (step - 1), step))
        self.stage, self.phase = variable("stage", 0), variable("phase", 0)
        self.tile = variable("tile", self.place)
        self.band, self.height, self.rest = variable("band"), variable("height"), variable("rest")
        self.m, self.n, self.top = m, n, variable("top")  # the tile's first row
        self.tm, self.tn, self.item = variable("tm"), variable("tn"), variable("item", 0)
        self.left = variable("left") if self.columns_overlap else self.tn * tiles.bn  # its first column
        self.first, self.last = variable("first", 0), variable("last", self.depth)  # steps along k
        if tiles.split_k > 1:
            builder.buffer_store(self.first.source, T.truncdiv(self.depth * rank, tiles.split_k), [0])
            builder.buffer_store(self.last.source, T.truncdiv(self.depth * (rank + 1), tiles.split_k), [0])
        # Tiles that fill no wave. Computed again where it is needed: registers are full while products are made.
        self.common = T.truncmod(again(self.count), self.workers)
        self.begun = variable("begun")  # of those, if they are shared evenly
        self.head = variable("head")  # steps that who begins such a tile takes of it
        self.share = variable("share")  # steps of each other cluster, of what follows the heads
        self.at, self.end = variable("at"), variable("end")

    @property
    def steps(self) -> Any:
        """How many steps along k this block takes of its tile."""
        return self.last - self.first

    @property
    def overlap(self) -> bool:
        """Whether the last tile begins as many rows above the end as it has, for zeros take long to load.

        Rows that two tiles have are the same in both, if both add up in the same order: not where one of
        them alone is shared. Not so where a residual may lie in c, which one of them has changed by then;
        and a's rows, if they lie across k, may begin where TMA can't. Of many tiles that all blocks share
        the last ones matter little, and registers are scarce.
        """
        many = self.tiles.streams == 1
        turned = self.form.turned and self.form.item != 2
        return not (many or turned or self.form.residual or self.form.trans_a)

    @property
    def columns_overlap(self) -> bool:
        """Whether so does the last tile along a row: of 16 bits, where all rows of c begin alike."""
        plain = self.form.item == 2 and not self.form.loose
        return plain and self.tiles.streams != 1 and not self.form.residual

    @property
    def sharers(self) -> int:
        """Clusters, next to each other, that share a tile, or as many tiles as are neighbours.

        They wait for each other, and so must find room together; neighbours among them are at the same k.
        """
        return self.holders * self.tiles.neighbours

    @property
    def part(self) -> Any:
        """Which of the parts of its first tile this block takes, if that is shared."""
        return T.truncdiv(T.truncmod(self.place, self.sharers), self.tiles.neighbours)

    @property
    def behind(self) -> Any:
        """How many steps of a tile follow its head."""
        return self.depth - self.head

    # fmt: off
    @T.inline
    def begin(self):
        """Find the first tile, where tiles are shared; else it is known."""
        if self.tiles.streams == 1:
            self.divide()
            if self.tile >= self.workers - self.begun:
                self.tile = self.tile + self.begun - self.workers
                self.last = self.head
            else:
                self.at = self.tile * self.share
                self.tile = self.tile + self.begun
                if self.at < self.end:
                    self.tile = T.truncdiv(self.at, self.behind)
                    self.first = self.head + T.truncmod(self.at, self.behind)
                    self.last = T.min(self.first + (self.end - self.at), self.depth)
        if self.tiles.streams > 1:
            self.tile = T.truncdiv(self.place, self.sharers) * self.tiles.neighbours + T.truncmod(self.place, self.tiles.neighbours)
            if self.tile < self.common:
                self.first = T.truncdiv(self.depth * self.part, self.holders)
                self.last = T.truncdiv(self.depth * (self.part + 1), self.holders)
            else:
                self.tile = self.common + self.place

    @T.inline
    def locate(self):
        """Find out where the tile lies: bands of rows of tiles are walked column by column."""
        band_size = T.meta_var(self.tiles.group * self.columns)
        if self.form.batched or self.form.parts > 1:
            self.item = T.truncdiv(self.tile, self.rows * self.columns)
            self.rest = T.truncmod(self.tile, self.rows * self.columns)
            self.band = T.truncdiv(self.rest, band_size)
            self.rest = T.truncmod(self.rest, band_size)
        else:
            self.band = T.truncdiv(self.tile, band_size)
            self.rest = T.truncmod(self.tile, band_size)
        self.height = T.min(self.rows - self.band * self.tiles.group, self.tiles.group)
        self.tn = T.truncdiv(self.rest, self.height)
        self.tm = self.band * self.tiles.group + T.truncmod(self.rest, self.height)
        if self.tiles.cluster > 1:
            self.tm = self.tm * self.tiles.cluster + self.rank
        if self.tiles.abreast > 1:
            self.tn = self.tn * self.tiles.abreast + self.rank
        self.top = self.tm * self.tiles.bm
        if self.overlap:
            self.top = self._whole(self.top, self.m - self.tiles.bm)
        if self.columns_overlap:
            self.left = self._whole(self.tn * self.tiles.bn, self.n - self.tiles.bn)
        if self.form.parts > 1:
            stretch = T.meta_var(T.truncdiv(self.depth + (self.form.parts - 1), self.form.parts))
            self.first = stretch * self.item
            self.last = T.max(T.min(stretch * (self.item + 1), self.depth), self.first + 1)  # zeros, beyond the end

    # fmt: on
    def _whole(self, first: Any, last: Any) -> Any:
        """Return where a tile begins that would at `first`, and begins at `last` at most."""
        whole = T.max(T.min(first, last), 0)
        if self.tiles.streams > 1:
            return T.if_then_else(self.count < self.workers, whole, first)
        return whole

    # fmt: off
    @T.inline
    def go_on(self):
        """Go on to the next tile."""
        if self.tiles.streams == 1:
            self._go_on_evenly()
        elif self.tiles.streams > 1:
            self.tile = T.if_then_else(self.tile < self.common, self.common + self.place, self.tile + self.workers)
            self.first = 0
            self.last = self.depth
        else:
            self.tile = self.tile + (self.count if self.tiles.split_k > 1 else self.workers)

    @T.inline
    def advance(self):
        """Go on to the next stage of the ring."""
        self.stage = self.stage + 1
        if self.stage == self.tiles.stages:
            self.stage = 0
            self.phase = self.phase ^ 1

    @T.inline
    def divide(self):
        """Find the heads and shares of tiles that are shared evenly."""
        self.begun = self.common
        self.head = T.min(T.max(T.truncdiv(self.begun * (self.depth + LEAVING), self.workers), 1), self.depth)
        self.share = T.max(T.truncdiv(self.begun * self.behind + (self.workers - self.begun - 1), self.workers - self.begun), 1)
        self.end = T.min((self.place + 1) * self.share, self.begun * self.behind)

    @T.inline
    def _go_on_evenly(self):
        self.divide()
        self.at = self.tile * self.behind + (self.last - self.head)
        self.end = T.if_then_else(self.first > 0, self.end, 0)
        if self.at < self.end:
            self.tile = self.tile + 1
            self.first = self.head
            self.last = T.min(self.head + (self.end - self.at), self.depth)
        else:
            self.tile = T.if_then_else(self.end > 0, self.begun + self.place, self.tile + self.workers)
            self.first = 0
            self.last = self.depth
    # fmt: on


def variable(name: str, value: Any = None) -> Any:
    """Declare a variable of one thread; `T.inline` assigns to it by name."""
    variable = builder.local_scalar("int32").scalar
    IRBuilder.name(name, variable.source)
    if value is not None:
        builder.buffer_store(variable.source, value, [0])
    return variable
