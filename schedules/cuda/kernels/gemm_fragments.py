"""A factor of floats whose rows lie across k, on its way to wgmma through registers.

From shared memory wgmma takes floats along k alone. Its first factor may come in registers, where
rows are any: a warp's 16 rows of a block of 64 need not be neighbours of each other. A thread reads
two neighbours in memory at once, of its two values of k, from places such that a warp meets no
bank twice. They come in two sets: one is read while products of the other are made.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from tvmops.schedules.cuda.kernels.gemm_operands import PANEL, ROW_BYTES, AcrossFloats, Operand
from tvmops.schedules.cuda.words import c_call, do

STEPS = 2  # of 8 along k, of a set
_ROWS = 64  # of a wgmma
LOAD_TWO = """
__forceinline__ __device__ void load_two_words(unsigned* to, unsigned from) {
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "r"(from) : "memory");
}
"""


def first_across(warp: Any, lane: Any) -> Any:
    """Return the first of the two neighbouring rows, of 64, that a thread has."""
    own = T.truncdiv(lane, 4)
    piece = own // 2 % 2 * 4 + warp % 2 * 2 + own // 4
    return T.truncdiv(warp, 2) * PANEL + piece * 4 + own % 2 * 2


class Fragments:
    """What a thread multiplies of an `AcrossFloats`, of `blocks` blocks of 64 rows.

    Parameters
    ----------
    base
        The shared-memory address of this warpgroup's rows of the first stage.
    """

    def __init__(self, of: AcrossFloats, blocks: int, base: Any, warp: Any, lane: Any) -> None:
        self.of, self.blocks = of, blocks
        self.words = T.alloc_local((2 * STEPS * blocks * 4,), "uint32")
        first = first_across(warp, lane)
        k = lane % 4
        piece, inside = first % PANEL // 4, first % 4 * 4
        row = T.truncdiv(first, PANEL) * (of.depth * ROW_BYTES) + k * ROW_BYTES + inside
        # of k and of k + 4, whose swizzle differs in one bit
        self.places = [
            base + T.Cast("uint32", row + (piece ^ k) * 16),
            base + T.Cast("uint32", row + 4 * ROW_BYTES + (piece ^ k ^ 4) * 16),
        ]

    def _at(self, half: Any, step: int, block: int) -> Any:
        return ((half % 2 * STEPS + step) * self.blocks + block) * 4

    def load(self, stage: Any, half: Any) -> None:
        """Read `half`-th `STEPS` steps of a stage."""
        for step in range(STEPS):
            for block in range(self.blocks):
                inside = (half * STEPS + step) * (8 * ROW_BYTES) + self.of.group_bytes(block)
                for i, place in enumerate(self.places):
                    address = place + T.Cast("uint32", stage * self.of.stage_bytes + inside)
                    to = T.address_of(self.words[self._at(half, step, block) + i * 2])
                    do(c_call("void", "load_two_words", to, address, source=LOAD_TWO))

    def multiply(
        self, other: Operand, base: Any, stage: Any, half: Any, sums: Any, columns: int, adds: Any
    ) -> None:
        """Begin to multiply what was read by the other factor; unless it `adds`, the sums begin there."""
        name = f"wgmma.mma_async.sync.aligned.m64n{columns}k8.f32.tf32.tf32"
        count = columns // 2
        for step in range(STEPS):
            for block in range(self.blocks):
                words = [self.words[self._at(half, step, block) + i] for i in range(4)]
                own = [sums[block * count + i] for i in range(count)]
                view = other.view(base, stage, half * STEPS + step)
                more = tirx.const(True, "bool") if step else adds
                do(T.ptx[name](*own, *words, view, more, 1, 1))
