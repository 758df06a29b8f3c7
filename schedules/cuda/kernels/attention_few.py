"""The kernel of `attention_few`: that of `attention_flash` for few queries against many keys.

Rows of a tile are the queries of all heads that share keys, one head after the other: in memory
they follow each other, so that to the copy engine they are `group * q_len` queries of one head.
`splits` blocks share the keys of a tile of rows (T. Dao et al., Flash-Decoding, 2023). What each has,
unscaled, with its maximum and total, is added in a fixed order: in a cluster's shared memory, row
by row by one of its blocks (`attention_few_meeting`), or it is left in a workspace, which a second
kernel reads (`attention_few_parts`). Blocks of neighbouring tiles of rows read the same keys at a
time, so that the L2 answers all but the first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, ceildiv, minimum
from tvmops.schedules.cuda.kernels.attention_consumer import Consumer
from tvmops.schedules.cuda.kernels.attention_few_meeting import RowsMeeting
from tvmops.schedules.cuda.kernels.attention_few_parts import (
    add_parts,
    leave_part,
    workspace_bytes,
)
from tvmops.schedules.cuda.kernels.attention_flash import FlashKernel
from tvmops.schedules.cuda.kernels.attention_load import Producer
from tvmops.schedules.cuda.kernels.attention_parts import workspace_argument, workspace_function
from tvmops.schedules.cuda.kernels.attention_tiles import COLUMNS, ROWS, Heads, Tiles
from tvmops.schedules.cuda.kernels.attention_walk import Walk
from tvmops.schedules.cuda.words import (
    PROGRAMMATIC_LAUNCH,
    Barriers,
    Ring,
    Scalar,
    ask_for_box,
    do,
    let_next_kernel_begin,
    ptx,
    tensor_map,
    when,
)


class FewKernel(FlashKernel):
    """`main(q, k, v, [lengths], scale, out, [workspace])`."""

    def __init__(self, sizes: Heads, tiles: Tiles, splits: int, cluster: bool) -> None:
        self.given, self.splits = sizes, splits
        self.cluster = cluster  # of the blocks that share keys
        self.q_len = sizes.q_len
        self.resident = 2 if tiles.consumers == 1 else 1
        super().__init__(folded(sizes), tiles)

    @property
    def parts_meet(self) -> bool:
        """True if there are parts, which meet in a workspace."""
        return self.splits > 1 and not self.cluster

    def grid(self) -> Extent:
        return self.pairs * self.q_tiles * self.splits

    def module(self) -> IRModule:
        with IRBuilder() as builder, T.prim_func():
            T.func_name("main")
            self._arguments()
            if self.parts_meet:
                self.workspace = workspace_argument()
            self._describe()
            with (
                T.attr(0, "tirx.device_entry", True),
                T.attr({"tirx.launch_bounds_min_blocks_per_sm": self.resident}),
            ):
                self._body()
            if self.parts_meet:
                add_parts(self)
        main = builder.get().with_attr("global_symbol", "main").with_attr(*PROGRAMMATIC_LAUNCH)
        functions = {"main": main}
        if self.parts_meet:
            functions["main_workspace"] = workspace_function(self._arguments, lambda: workspace_bytes(self))
        return IRModule(functions)

    def _arguments(self) -> None:
        s = self.given
        self.arrays: dict[str, Any] = {}
        for name, heads, length in (("q", s.heads, s.q_len), ("k", s.kv_heads, s.kv_len)):
            self._array(name, heads, length)
        self._array("v", s.kv_heads, s.kv_len)
        if s.lengths:
            self.lengths = T.arg("lengths", T.buffer((s.batch,), "int32", buffer_name="lengths"))
        self.scale = T.arg("scale", T.float32())
        self._array("out", s.heads, s.q_len)

    def _describe(self) -> None:
        """Describe the arrays to the copy engine."""
        s, bn = self.sizes, self.tiles.bn
        rows = {"q": (s.q_len, ROWS), "k": (s.kv_len, bn), "v": (s.kv_len, bn), "out": (s.q_len, ROWS)}
        self.maps = {
            name: tensor_map(self.arrays[name], s.dtype, [s.head_dim, count, self.pairs], [COLUMNS, box, 1])
            for name, (count, box) in rows.items()
        }

    def _body(self) -> None:
        if self.cluster:
            T.cta_id_in_cluster([self.splits])
        super()._body()

    def _shared_memory(self, pool: Any) -> None:
        if self.cluster:
            self.meeting = RowsMeeting(self, pool)
        super()._shared_memory(pool)
        if self.cluster:
            self.all_here = self.meeting.barrier(pool)

    def barriers(self) -> tuple[Barriers | Ring, ...]:
        return (*super().barriers(), *([self.all_here] if self.cluster else []))

    def registers(self) -> tuple[int, int]:
        """Finding a share takes more than copying does."""
        return {1: (40, 216), 2: (40, 232)}[self.tiles.consumers]

    def _produce(self) -> None:
        with when(self.warp == 0), when(T.cuda.elect_sync()):
            walk = self._walk()
            producer = ShareProducer(self, walk)
            if not self.given.lengths:
                producer.ask_ahead()
                ptx("griddepcontrol.wait")
            producer.run()
        if self.cluster:
            do(T.cuda.warp_sync())
            self.meeting.meet()

    def _consume(self) -> None:
        let_next_kernel_begin()
        walk = self._walk()
        if not self.given.lengths:
            ptx("griddepcontrol.wait")
        ShareConsumer(self, walk).run()

    def _walk(self) -> ShareWalk:
        """Find this block's share; kernels before must be done where lengths are read for it."""
        if self.given.lengths:
            ptx("griddepcontrol.wait")
        return ShareWalk(self)


def folded(sizes: Heads) -> Heads:
    """Return `sizes` with the queries of heads that share keys as those of one head."""
    group = T.truncdiv(sizes.heads, sizes.kv_heads)
    return replace(sizes, heads=sizes.kv_heads, q_len=sizes.q_len * group)


class ShareWalk(Walk):
    """One tile of rows, and a block's share of the tiles of keys that these see: none, at times."""

    kernel: FewKernel

    def __init__(self, kernel: FewKernel) -> None:
        self.kernel = kernel
        sizes, tiles, splits = kernel.sizes, kernel.tiles, kernel.splits
        block = T.Bind(T.truncdiv(kernel.block, splits)) if kernel.cluster else kernel.block
        rest = T.Bind(T.truncdiv(block, kernel.q_tiles))
        self._q_tile = Scalar(T.truncmod(block, kernel.q_tiles))
        if kernel.cluster:
            self._pair, self.part = Scalar(rest), T.Bind(T.truncmod(kernel.block, splits))
        else:
            self._pair, self.part = Scalar(T.truncdiv(rest, splits)), T.Bind(T.truncmod(rest, splits))
        if sizes.lengths:
            self._length = Scalar(0)
            self._find_length()
        length = self._length() if sizes.lengths else sizes.kv_len
        offset = kernel.given.offset(length)
        seen = length
        self._near = T.Bind(self.query(self.first_row)) if sizes.causal else 0  # the first row's query
        if sizes.causal:
            seen = minimum(minimum(self._near + tiles.bm, kernel.q_len) + offset, length)
        whole = T.Bind(tirx.max(ceildiv(seen, tiles.bn), int(splits == 1)))
        first = T.Bind(T.truncdiv(whole * self.part, splits))
        self._count = Scalar(T.truncdiv(whole * (self.part + 1), splits) - first)
        self.first_key = T.Bind(first * tiles.bn)
        self._own_length = T.Bind(length - self.first_key)
        self._own_offset = T.Bind(offset - self.first_key) if sizes.causal else 0
        self._left = Scalar(tirx.min(self._count(), 1))

    @property
    def length(self) -> Any:
        """How many keys of this sequence there are from this share's first on."""
        return self._own_length

    @property
    def offset(self) -> Any:
        """The last key that query 0 sees, counted from this share's first."""
        return self._own_offset

    def query(self, row: Any) -> Any:
        return T.truncmod(row, self.kernel.q_len)

    def more(self) -> Any:
        return self._left() > 0

    def advance(self) -> None:
        self._left.set(0)

    def locate(self) -> None:
        """Nothing is left to find."""

    def whole(self) -> Any:
        """Count the tiles of keys that all these rows see whole."""
        crosses = self._near + self.kernel.tiles.bm > self.kernel.q_len
        least = tirx.Select(crosses, 0, self._near)
        seen = minimum(least + self.offset + 1, self.length)
        return tirx.max(T.truncdiv(seen, self.kernel.tiles.bn), 0)


class ShareProducer(Producer):
    walk: ShareWalk

    def _keys(self, row: Any) -> tuple[Any, ...]:
        return self.walk.first_key + row, self.walk.pair

    def ask_ahead(self) -> None:
        """Have what fills the rings at first brought to the L2, while kernels before may still run."""
        tiles = self.kernel.tiles
        for step in range(tiles.stages):
            with when(step < self.walk.count):
                place = self._keys((self.walk.count - 1 - step) * tiles.bn)
                for block in range(self.kernel.blocks_of_columns):
                    for name in "kv":
                        ask_for_box(self.kernel.maps[name], block * COLUMNS, *place)


class ShareConsumer(Consumer):
    kernel: FewKernel
    walk: ShareWalk

    def run(self) -> None:
        super().run()
        if self.kernel.splits == 1:
            return
        with when(self.walk.count == 0):
            self.softmax.clear()
        if self.kernel.cluster:
            self.kernel.meeting.join(self.held, self.walk)
        else:
            leave_part(self.kernel, self.held, self.walk)

    def _add_totals(self) -> None:
        if self.kernel.splits == 1:
            super()._add_totals()
            return
        for row in range(2):
            self.softmax.add_total(row)

    def _leave(self) -> None:
        if self.kernel.splits == 1:
            super()._leave()


__all__ = ["FewKernel", "ShareWalk", "folded"]
