"""The kernel of `attention_varlen`: that of `attention_flash`, on packed sequences of any lengths.

Tiles of queries and of keys begin with their sequence and end anywhere in it. What lies behind it
is the next sequence, which must not be written, and whose values may be anything. So the copy
engine sees the rows of an array twice, as dimensions of the same pitch, of which the first, x,
ends at `END`: rows `row`, `row + 1`, ... of a sequence of `length` rows from `first` on are

    x = END - length + row, ...    y = first + length    w = END

and those from `length` on lie beyond its end: they are read as zeros and not written. The pitch of
w takes END times that of x away again, modulo 2**64, as the copy engine computes addresses (the
ragged descriptors of Triton and its tools do the same).
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.kernels.attention_consumer import Consumer
from tvmops.schedules.cuda.kernels.attention_flash import FlashKernel
from tvmops.schedules.cuda.kernels.attention_load import Producer
from tvmops.schedules.cuda.kernels.attention_sequences import (
    SequenceWalk,
    ToldWalk,
    rows_of_sequence,
)
from tvmops.schedules.cuda.kernels.attention_tiles import COLUMNS, END, FOUND, ROWS, TOLD, Heads, Tiles
from tvmops.schedules.cuda.words import Position, tensor_map, when


class PackedKernel(FlashKernel):
    """`main(q, k, v, cu_seqlens_q, cu_seqlens_k, scale, out)`."""

    def __init__(self, sizes: Heads, tiles: Tiles, total_q: Extent, total_k: Extent) -> None:
        super().__init__(sizes, tiles)
        self.total_q, self.total_k = total_q, total_k
        self.offsets = tirx.Var("offsets", "int32")  # one more than sequences

    def _arguments(self) -> None:
        s = self.sizes
        self.arrays = {"q": self._rows("q", self.total_q, s.heads)}
        self.arrays |= {name: self._keys(name) for name in "kv"}
        self.q_ends = self._ends("cu_seqlens_q")
        self._ends_of_keys()
        self.scale = T.arg("scale", T.float32())
        self.arrays["out"] = self._rows("out", self.total_q, s.heads)
        of_keys = self._rows_of_box()
        boxes = {"q": ROWS, "k": of_keys, "v": of_keys, "out": ROWS}
        totals = {"q": self.total_q, "k": self.total_k, "v": self.total_k, "out": self.total_q}
        heads = {name: s.heads if name in ("q", "out") else s.kv_heads for name in totals}
        self.maps = {
            name: rows_map(self.arrays[name], s, heads[name], totals[name], boxes[name]) for name in totals
        }

    def _rows(self, name: str, total: Extent, heads: Extent) -> Any:
        shape = (total, heads, self.sizes.head_dim)
        return T.arg(name, T.buffer(shape, self.sizes.dtype, align=16, buffer_name=name))

    def _keys(self, name: str) -> Any:
        return self._rows(name, self.total_k, self.sizes.kv_heads)

    def _ends_of_keys(self) -> None:
        self.k_ends = self._ends("cu_seqlens_k")

    def _rows_of_box(self) -> int:
        """Count the rows of keys that are copied at once."""
        return self.tiles.bn

    def keys_for_finding(self) -> tuple[Any, int]:
        """Return what tells the lengths of keys, and whether it does without subtracting."""
        return self.k_ends.data, 0

    def keys_of(self, sequence: Any) -> tuple[Any, Any]:
        """Return where the keys of a sequence begin, and how many they are."""
        return self.k_ends[sequence], self.k_ends[sequence + 1] - self.k_ends[sequence]

    def _ends(self, name: str) -> Any:
        return T.arg(name, T.buffer((self.offsets,), "int32", buffer_name=name))

    def _shared_memory(self, pool: Any) -> None:
        super()._shared_memory(pool)
        self.found = pool.alloc((FOUND,), "int32", align=4)
        self.told = pool.alloc((self.tiles.consumers, 2, TOLD), "int32", align=4)

    def registers(self) -> tuple[int, int]:
        """Finding tiles takes more than copying does."""
        return {2: (40, 232), 3: (32, 160)}[self.tiles.consumers]

    def _produce(self) -> None:
        with when(self.warp == 0):
            self.producer(PackedProducer).run()

    def producer(self, kind: type[PackedProducer]) -> PackedProducer:
        return kind(self, SequenceWalk(self))

    def _consume(self) -> None:
        Consumer(self, ToldWalk(self)).run()


def rows_map(array: Any, sizes: Heads, heads: Extent, total: Extent, rows: int) -> Any:
    """Describe `total` rows of `heads` heads to the copy engine, which copies `rows` at once."""
    pitch = tirx.Cast("int64", heads) * (2 * sizes.head_dim)
    return tensor_map(
        array,
        sizes.dtype,
        [sizes.head_dim, heads, END, total + 1, END + 1],
        [COLUMNS, 1, rows, 1, 1],
        pitches=[2 * sizes.head_dim, pitch, pitch, tirx.const(2**64 // END, "int64") - pitch],
    )


class PackedProducer(Producer):
    """A warp, since it takes one to find tiles; one of its threads loads."""

    walk: SequenceWalk

    def run(self) -> None:
        super().run()
        with when(self.kernel.lane == 0):
            for group in range(self.kernel.tiles.consumers):
                self._await_place(group)
                self.walk.tell_end(group, self.q_phase())
                self.kernel.q_full.arrive(group)

    def _locate_keys(self) -> None:
        sizes = self.kernel.sizes
        self.kv_head = T.Bind(T.truncdiv(self.walk.head, T.truncdiv(sizes.heads, sizes.kv_heads)))

    def _keys(self, row: Any) -> tuple[Any, ...]:
        return rows_of_sequence(self.kv_head, self.walk.first_key(), self.walk.length, row)

    def _load(self, name: str, at: Position, tile: Any) -> None:
        with when(self.kernel.lane == 0):
            super()._load(name, at, tile)

    def _load_q(self) -> None:
        with when(self.kernel.lane == 0):
            super()._load_q()

    def _await_place(self, group: int) -> None:
        super()._await_place(group)
        self.walk.tell(group, self.q_phase())
