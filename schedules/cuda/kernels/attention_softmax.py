"""Online softmax: scores in a thread's registers to weights, and what was summed to the new maximum.

Register i of a thread is column (i // 4) * 8 + lane % 4 * 2 + i % 2 of row i // 2 % 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import minimum
from tvmops.schedules.cuda.kernels.attention_tiles import ROWS, least_scale, masked, unseen
from tvmops.schedules.cuda.kernels.attention_walk import Walk
from tvmops.schedules.cuda.words import Scalar, exp2, pack, shuffle_xor

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.attention_flash import FlashKernel


class Registers:
    """What a thread holds of two rows of a tile of queries."""

    def __init__(self, kernel: FlashKernel) -> None:
        bn = kernel.tiles.bn
        self.scores = T.alloc_local((bn // 2,), "float32")
        self.out = T.alloc_local((kernel.depth // 2,), "float32")
        self.weights = T.alloc_local((bn // 4,), "uint32")  # two to a register
        self.most = T.alloc_local((2,), "float32")  # the maximum so far, times the scale
        self.base = T.alloc_local((2,), "float32")  # the same, but 0 where no key was seen
        self.total = T.alloc_local((2,), "float32")  # of the weights in this thread's columns
        self.shrink = T.alloc_local((2,), "float32")  # what the last maximum's weights are worth now
        self.scale = Scalar(least_scale(kernel.scale), "float32")


class Softmax:
    def __init__(self, kernel: FlashKernel, held: Registers, walk: Walk) -> None:
        self.kernel, self.held, self.walk = kernel, held, walk

    def clear(self) -> None:
        for i in range(self.kernel.depth // 2):
            T.buffer_store(self.held.out, T.float32(0), [i])
        for row in range(2):
            T.buffer_store(self.held.most, unseen(), [row])
            T.buffer_store(self.held.total, T.float32(0), [row])

    def apply_mask(self, tile: Any) -> None:
        """Add the mask to the scores, or make those that it excludes -inf."""
        kernel, sizes = self.kernel, self.kernel.sizes
        column = tile * kernel.tiles.bn + kernel.lane % 4 * 2
        batch, head = T.truncdiv(self.walk.pair, sizes.heads), T.truncmod(self.walk.pair, sizes.heads)
        first = self.walk.first_row + kernel.group * ROWS + kernel.warp * 16 + T.truncdiv(kernel.lane, 4)
        rows = [Scalar(tirx.min(first + row * 8, sizes.q_len - 1)) for row in range(2)]
        for i in range(kernel.tiles.bn // 2):
            at = (batch, head, rows[i // 2 % 2](), column + (i // 4 * 8 + i % 2))
            score = masked(self.held.scores[i], kernel.mask, sizes, self.held.scale(), at)
            T.buffer_store(self.held.scores, score, [i])

    def mask(self, tile: Any) -> None:
        """Make the scores of keys that are not seen -inf."""
        kernel, sizes = self.kernel, self.kernel.sizes
        column = tile * kernel.tiles.bn + self.kernel.lane % 4 * 2
        limits = []
        for row in range(2):
            own = kernel.group * ROWS + kernel.warp * 16 + T.truncdiv(kernel.lane, 4) + row * 8
            last = self.walk.query(self.walk.first_row + own) + self.walk.offset
            seen = minimum(last + 1, self.walk.length) if sizes.causal else self.walk.length
            limits.append(Scalar(seen - column)())
        for i in range(kernel.tiles.bn // 2):
            seen = i // 4 * 8 + i % 2 < limits[i // 2 % 2]
            T.buffer_store(self.held.scores, tirx.Select(seen, self.held.scores[i], unseen()), [i])

    def raise_maximum(self) -> None:
        bn = self.kernel.tiles.bn
        for row in range(2):
            mine = [i for i in range(bn // 2) if i // 2 % 2 == row]
            found = Scalar(self.held.scores[mine[0]], "float32")
            other = Scalar(self.held.scores[mine[1]], "float32")  # two chains, half the latency
            for i, j in zip(mine[2::2], mine[3::2]):
                found.set(tirx.max(found(), self.held.scores[i]))
                other.set(tirx.max(other(), self.held.scores[j]))
            found.set(tirx.max(found(), other()))
            for mask in (1, 2):
                found.set(tirx.max(found(), shuffle_xor(found(), mask)))
            found.set(tirx.max(self.held.most[row], found() * self.held.scale()))
            T.buffer_store(self.held.base, tirx.Select(found() == unseen(), T.float32(0), found()), [row])
            T.buffer_store(self.held.shrink, exp2(self.held.most[row] - self.held.base[row]), [row])
            T.buffer_store(self.held.most, found(), [row])

    def exponentiate(self) -> None:
        for row in range(2):
            T.buffer_store(self.held.total, self.held.total[row] * self.held.shrink[row], [row])
        for i in range(0, self.kernel.tiles.bn // 2, 2):
            row = i // 2 % 2
            for j in (i, i + 1):
                T.buffer_store(
                    self.held.scores, exp2(self.held.scores[j] * self.held.scale() - self.held.base[row]), [j]
                )
            T.buffer_store(
                self.held.total, self.held.total[row] + (self.held.scores[i] + self.held.scores[i + 1]), [row]
            )

    def pack_weights(self) -> None:
        for i in range(self.kernel.tiles.bn // 4):
            pair = pack(self.kernel.sizes.dtype, self.held.scores[2 * i], self.held.scores[2 * i + 1])
            T.buffer_store(self.held.weights, pair, [i])

    def shrink_out(self) -> None:
        """Bring what was summed to the new maximum."""
        for i in range(self.kernel.depth // 2):
            T.buffer_store(self.held.out, self.held.out[i] * self.held.shrink[(i // 2) % 2], [i])

    def invert_totals(self) -> None:
        """Turn this thread's totals to the factors that divide out by the rows' totals."""
        for row in range(2):
            self.add_total(row)
            factor = tirx.Select(self.held.total[row] == 0, T.float32(0), T.float32(1) / self.held.total[row])
            T.buffer_store(self.held.total, factor, [row])

    def add_total(self, row: int) -> None:
        """Turn this thread's total to that of all its row."""
        for mask in (1, 2):
            T.buffer_store(
                self.held.total, self.held.total[row] + shuffle_xor(self.held.total[row], mask), [row]
            )
