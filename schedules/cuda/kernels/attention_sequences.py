"""Which tiles of queries of packed sequences a block of threads takes, and how many keys they see.

How many tiles there are, and what each costs, is in the offsets, on the device. Tiles go to the
blocks longest first, in order and back again, so that shares come out equal without any meeting
of blocks. The order needs no list: a tile has a level, by the number of keys that it sees, and a
warp counts the tiles of a level among 32 sequences at once. So blocks step through levels, from
the highest to 0, and through sequences within a level, until they have passed as many tiles as
others take. `together` heads are walked side by side, then the next ones, lest keys and values of
all heads at once be more than the L2 holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import ceildiv
from tvmops.schedules.cuda.kernels.attention_tiles import END
from tvmops.schedules.cuda.kernels.attention_walk import Walk
from tvmops.schedules.cuda.words import Scalar, c_call, do, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.attention_packed import PackedKernel

# What `find_tile` keeps, in shared memory, since a producer has few registers: items to pass over (a tile of
# a head is one), the place it has come to, the highest number of keys or level (-1: not looked for yet); and
# what it found.
_LEFT, _PARTY, _LEVEL, _CHUNK, _MOST, _SEQUENCE, _TILE, _HEAD = range(8)

# Causal, tile j of a sequence is at the level of the keys before it, in tiles; all that are below 0 count
# as 0. Otherwise all tiles of a sequence are at one of 8 levels.
_FIND = """
__forceinline__ __device__ void find_tile(int* at, int step, const void* ends_of_q, const void* ends_of_k,
                                          int batch, int heads, int together, int rows, int causal,
                                          int below_right, int are_lengths) {
  const int* q_ends = static_cast<const int*>(ends_of_q);
  const int* k_ends = static_cast<const int*>(ends_of_k);
  const int lane = threadIdx.x % 32, chunks = (batch + 31) / 32;
  int tiles, keys, first;
  auto look = [&](int chunk, int most) {
    const int s = min(chunk * 32 + lane, batch - 1), is_one = chunk * 32 + lane < batch;
    const int queries = is_one * max(q_ends[s + 1] - q_ends[s], 0);
    keys = is_one * max(are_lengths ? k_ends[s] : k_ends[s + 1] - k_ends[s], 0);
    tiles = (queries + rows - 1) / rows;
    const int before = below_right ? keys - queries : 0;
    first = causal ? (before + (before < 0 ? 1 - rows : 0)) / rows : static_cast<int>(keys * (7.0f / max(most, 1)));
  };
  int left = at[0] + step, party = at[1], level = at[2], chunk = at[3], most = at[4];
  int sequence = 0, found = 0, head = 0;
  if (most < 0) {
    for (int each = 0; each < chunks; ++each) {
      look(each, 0);
      most = max(most, __reduce_max_sync(0xFFFFFFFFu, causal ? (tiles ? first + tiles - 1 : 0) : keys));
    }
    most = max(most, 0);
    level = causal ? most : 7;
  }
  while (party * together < heads) {
    look(chunk, most);
    int own = first == level ? tiles : 0;
    if (causal) own = level > 0 ? first <= level && level < first + tiles : max(0, min(1 - first, tiles));
    const int side_by_side = min(together, heads - party * together);
    const int all = __reduce_add_sync(0xFFFFFFFFu, own) * side_by_side;
    if (left < all) {
      const int wanted = left / side_by_side;
      int counted = own;
      for (int by = 1; by < 32; by *= 2) {
        const int other = __shfl_up_sync(0xFFFFFFFFu, counted, by);
        if (lane >= by) counted += other;
      }
      const int owner = __ffs(__ballot_sync(0xFFFFFFFFu, wanted < counted)) - 1;
      const int tile = wanted - (counted - own) + (causal && level > 0 ? level - first : 0);
      sequence = chunk * 32 + owner;
      found = __shfl_sync(0xFFFFFFFFu, tile, owner);
      head = party * together + left % side_by_side;
      break;
    }
    left -= all;
    if (++chunk < chunks) continue;
    chunk = 0;
    if (--level >= 0) continue;
    level = causal ? most : 7;
    ++party;
  }
  __syncwarp();
  const int kept[8] = {left, party, level, chunk, most, sequence, found, head};
  for (int i = 0; i < 8; ++i)
    if (lane == 0) at[i] = kept[i];
  __syncwarp();
}
"""


class _Told(NamedTuple):
    """What a warpgroup is told of a tile of queries."""

    key_tiles: Any  # 0: there are no more tiles of queries
    first_row: Any  # of the sequence
    first_query: Any  # of the sequence, in the array
    queries: Any  # of the sequence
    length: Any
    head: Any


class SequenceWalk(Walk):
    """The tiles of queries that a block takes, one after the other, as a warp finds them."""

    kernel: PackedKernel

    def __init__(self, kernel: PackedKernel) -> None:
        self.kernel = kernel
        self._at = kernel.found
        with when(kernel.lane == 0):
            for place, value in ((_LEFT, kernel.block), (_PARTY, 0), (_LEVEL, 0), (_CHUNK, 0), (_MOST, -1)):
                T.buffer_store(self._at, value, [place])
        do(T.cuda.warp_sync())
        self._stride = Scalar(2 * kernel.tiles.blocks - 1 - 2 * kernel.block)
        self._first_query, self._queries, self.first_key = Scalar(0), Scalar(0), Scalar(0)
        self._length, self._count = Scalar(0), Scalar(0)
        self._find(0)

    @property
    def sequence(self) -> Any:
        return self._at[_SEQUENCE]

    @property
    def head(self) -> Any:
        return self._at[_HEAD]

    @property
    def length(self) -> Any:
        return self._length()

    @property
    def offset(self) -> Any:
        sizes = self.kernel.sizes
        return self.length - self._queries() if sizes.causal and sizes.below_right else 0

    @property
    def first_row(self) -> Any:
        return self._at[_TILE] * self.kernel.tiles.bm

    def results(self, row: Any) -> tuple[Any, ...]:
        return rows_of_sequence(self.head, self._first_query(), self._queries(), row)

    def more(self) -> Any:
        return self._at[_PARTY] < ceildiv(self.kernel.sizes.heads, self.kernel.tiles.together)

    def advance(self) -> None:
        self._find(self._stride())
        self._stride.set(2 * self.kernel.tiles.blocks - self._stride())

    def locate(self) -> None:
        sequence, q_ends = self.sequence, self.kernel.q_ends
        first, count = self.kernel.keys_of(sequence)
        self._first_query.set(q_ends[sequence])
        self._queries.set(tirx.max(q_ends[sequence + 1] - self._first_query(), 0))
        self.first_key.set(first)
        self._length.set(tirx.max(count, 0))
        self._find_count()

    def tell(self, group: int, phase: Any) -> None:
        """Tell a warpgroup what it gets."""
        told = _Told(self.count, self.first_row, self._first_query(), self._queries(), self.length, self.head)
        for place, value in enumerate(told):
            T.buffer_store(self.kernel.told, value, [group, phase, place])

    def tell_end(self, group: int, phase: Any) -> None:
        """Tell a warpgroup that there are no more tiles."""
        T.buffer_store(self.kernel.told, 0, [group, phase, 0])

    def _find(self, step: Any) -> None:
        """Go on by `step` items."""
        kernel, sizes = self.kernel, self.kernel.sizes
        of_keys, are_lengths = kernel.keys_for_finding()
        do(
            c_call(
                "void", "find_tile", T.address_of(self._at[0]), step, kernel.q_ends.data, of_keys,
                kernel.offsets - 1, sizes.heads, kernel.tiles.together, kernel.tiles.bm, int(sizes.causal),
                int(sizes.below_right), are_lengths, source=_FIND,
            )
        )  # fmt: skip


class ToldWalk(Walk):
    """The same tiles as a warpgroup is told of them, when their queries have come."""

    kernel: PackedKernel

    def __init__(self, kernel: PackedKernel) -> None:
        self.kernel = kernel
        self._told = _Told(*(Scalar(0) for _ in _Told._fields))
        self._count, self._phase = self._told.key_tiles, Scalar(0)
        self._hear()

    def _hear(self) -> None:
        kernel = self.kernel
        kernel.q_full.wait(kernel.group, self._phase())
        for place, value in enumerate(self._told):
            value.set(kernel.told[kernel.group, self._phase(), place])
        self._phase.set(self._phase() ^ 1)

    @property
    def first_row(self) -> Any:
        return self._told.first_row()

    @property
    def length(self) -> Any:
        return self._told.length()

    @property
    def offset(self) -> Any:
        sizes = self.kernel.sizes
        return self.length - self._told.queries() if sizes.causal and sizes.below_right else 0

    def results(self, row: Any) -> tuple[Any, ...]:
        told = self._told
        return rows_of_sequence(told.head(), told.first_query(), told.queries(), row)

    def more(self) -> Any:
        return self.count > 0

    def locate(self) -> None:
        """Nothing is left to find."""

    def advance(self) -> None:
        self._hear()


def rows_of_sequence(head: Any, first: Any, length: Any, row: Any) -> tuple[Any, ...]:
    """Return where rows of a sequence, from its `row` on, lie to the copy engine."""
    return head, END - length + row, first + length, END


__all__ = ["SequenceWalk", "ToldWalk", "rows_of_sequence"]
