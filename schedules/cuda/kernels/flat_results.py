"""Results of whole rows on their way: where a block has all columns, its rows are one stretch of memory.

They are put together in shared memory as they lie there, modulo 16 bytes, and stored in vectors: rows
that begin at odd elements cost no more than others.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.gemm_mma import STORE_PAIR
from tvmops.schedules.cuda.pieces import PIECE
from tvmops.schedules.cuda.words import c_call, do, when

_BANKS = 32
_TURNED = 8  # pairs, at most, that lanes of different rows store in different orders

# Two neighbours where words may begin at any element; `count` of them are of the row.
_STORE_HALVES = """
__forceinline__ __device__ void store_halves_of(void* memory, unsigned pair, int count) {
  unsigned short* to = static_cast<unsigned short*>(memory);
  to[0] = pair;
  if (count > 1) to[1] = pair >> 16;
}
"""
# The i-th becomes the (i ^ own)-th: registers can't be chosen by number.
_TURN_PAIRS = """
__forceinline__ __device__ void turn_pairs(unsigned* pairs, int count, int own) {
#pragma unroll
  for (int bit = 1; bit < count; bit *= 2) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (i & bit) continue;
      const unsigned low = pairs[i], high = pairs[i ^ bit];
      pairs[i] = own & bit ? high : low, pairs[i ^ bit] = own & bit ? low : high;
    }
  }
}
"""
# `count` elements from `start` on, which lie in shared memory as far from 16 bytes as in the array.
_STORE_FLAT = """
__forceinline__ __device__ void store_flat(void* c, long long start, const void* results, int count, int thread,
                                           int threads) {
  const int phase = start % 8, end = phase + count;
  const unsigned short* from = static_cast<const unsigned short*>(results);
  unsigned short* to = static_cast<unsigned short*>(c) + (start - phase);
#pragma unroll 4
  for (int at = 8 * thread; at < end; at += 8 * threads) {
    if (at >= phase && at + 8 <= end)
      *reinterpret_cast<uint4*>(to + at) = *reinterpret_cast<const uint4*>(from + at);
    else
      for (int i = max(at, phase); i < min(at + 8, end); ++i) to[i] = from[i];
  }
}
"""


class FlatResults:
    """Rows of `n` elements in shared memory, one behind the other, the first of them at element `phase`."""

    def __init__(self, memory: Any, n: int, phase: Any) -> None:
        self.memory, self.n, self.phase = memory, n, phase
        self.pairs = T.alloc_local((_TURNED,), "uint32")
        self.turns = _wavefronts(n, True) < _wavefronts(n, False)

    def put(self, row: Any, column: Any, own: Any, pairs: list[Any]) -> None:
        """Put pairs of a row, 8 elements from one to the next; `own` tells rows of a warp apart."""
        first = 0
        while first < len(pairs):
            count = _TURNED if self.turns else 1
            while count > len(pairs) - first:
                count //= 2
            for i in range(count):
                T.buffer_store(self.pairs, pairs[first + i], [i])
            if count > 1:
                do(c_call("void", "turn_pairs", T.address_of(self.pairs[0]), count, own, source=_TURN_PAIRS))
            for i in range(count):
                place = (i ^ own % count) if count > 1 else 0
                self._put(row, T.Bind(column + (first + place) * 8), self.pairs[i])
            first += count

    def _put(self, row: Any, column: Any, pair: Any) -> None:
        memory = self.memory.ptr_to([(self.phase + row * self.n + column) * 2])
        with when(column < self.n):
            if self.n % 2 == 0:
                do(c_call("void", "store_pair", memory, pair, source=STORE_PAIR))
            else:
                count = self.n - column
                do(c_call("void", "store_halves_of", memory, pair, count, source=_STORE_HALVES))

    def store(self, c: Any, start: Any, rows: Any, thread: Any, threads: int) -> None:
        """Store them to `c` from element `start` on; all threads have put theirs."""
        whole = (c.data, start, self.memory.ptr_to([0]), rows * self.n, thread, threads)
        do(c_call("void", "store_flat", *whole, source=_STORE_FLAT))


def flat_bytes(rows: int, n: int) -> int:
    return -(-(rows * n + PIECE) * 2 // 16) * 16


def _wavefronts(n: int, turns: bool) -> int:
    """Count the turns that a warp's words take, 8 rows of 4, because some lie in the same bank."""
    places = {(row * n + 2 * at + 8 * row * turns) // 2 for row in range(8) for at in range(4)}
    return max(Counter(place % _BANKS for place in places).values())
