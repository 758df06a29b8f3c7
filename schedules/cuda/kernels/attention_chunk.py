"""What a warp computes of a chunk: scores, weights, and the weighted sum of values, by mma.sync."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.attention_copies import Copies
from tvmops.schedules.cuda.kernels.attention_shares import COLUMNS, KEYS, pitch
from tvmops.schedules.cuda.kernels.attention_tiles import least_scale, masked, unseen
from tvmops.schedules.cuda.words import PTX_TYPES, Scalar, exp2, pack, ptx, shuffle_xor, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.attention_split import SplitKernel

_ONES = {"float16": 0x3C003C00, "bfloat16": 0x3F803F80}  # two of them in a register
_CHAINS = 4  # products at a time: each waits for the one before it that adds to the same scores


class Chunk:
    """The registers of a thread. Its columns are heads, lane % 4 * 2 and the next of each product."""

    def __init__(self, kernel: SplitKernel, copies: Copies) -> None:
        self.kernel, self.copies = kernel, copies
        tiles, steps = kernel.tiles, kernel.split.keys // KEYS
        self.chains = max(1, _CHAINS // (steps * tiles))
        self.scores = T.alloc_local((self.chains * steps * tiles * 4,), "float32")
        self.rows = T.alloc_local((tiles * kernel.parts * 4,), "float32")  # of out^T
        self.most = T.alloc_local((tiles * 2,), "float32")
        self.totals = T.alloc_local((tiles * 4,), "float32")  # rows of a product with ones: all the same
        self.a = T.alloc_local((4,), "uint32")
        self.weights = T.alloc_local((tiles * steps * 2,), "uint32")
        for i in range(tiles * kernel.parts * 4):
            T.buffer_store(self.rows, T.float32(0), [i])
        for i in range(tiles * 2):
            T.buffer_store(self.most, unseen(), [i])
        for i in range(tiles * 4):
            T.buffer_store(self.totals, T.float32(0), [i])
        self.factor = Scalar(least_scale(kernel.scale), "float32")

    def consume(self, stage: Any, first_key: Any) -> None:
        self._multiply_k(stage)
        if self.kernel.sizes.mask:
            self._apply_mask(first_key)
        with when(first_key + self.kernel.split.keys > self.kernel.length):
            self._mask(first_key)
        for tile in range(self.kernel.tiles):
            for column in range(2):
                self._exponentiate(tile, column)
        self._pack_weights()
        self._multiply_v(stage)

    def _multiply_k(self, stage: Any) -> None:
        size = self.kernel.split.keys // KEYS * self.kernel.tiles * 4
        for i in range(self.chains * size):
            T.buffer_store(self.scores, T.float32(0), [i])
        for step in range(self.kernel.split.keys // KEYS):
            row = step * KEYS + self.kernel.lane % 16
            for part in range(self.kernel.parts):
                piece = (part * 2 + T.truncdiv(self.kernel.lane, 16)) ^ (row % 8)
                self._load_matrix("", self.copies.place(stage, 0), row, piece)
                for tile in range(self.kernel.tiles):
                    at = part % self.chains * size + (step * self.kernel.tiles + tile) * 4
                    b = (tile * self.kernel.parts + part) * 2
                    self._multiply(self.scores, at, self.kernel.queries, b)
        for i in range(size):
            for chain in range(1, self.chains):
                T.buffer_store(self.scores, self.scores[i] + self.scores[chain * size + i], [i])

    def _multiply_v(self, stage: Any) -> None:
        for step in range(self.kernel.split.keys // KEYS):
            self._add_weights(step)
            row = step * KEYS + T.truncdiv(self.kernel.lane, 16) * 8 + self.kernel.lane % 8
            for part in range(self.kernel.parts):
                piece = (part * 2 + T.truncdiv(self.kernel.lane, 8) % 2) ^ (row % 8)
                self._load_matrix(".trans", self.copies.place(stage, 1), row, piece)
                for tile in range(self.kernel.tiles):
                    at = (tile * self.kernel.parts + part) * 4
                    self._multiply(self.rows, at, self.weights, (step * self.kernel.tiles + tile) * 2)

    def _load_matrix(self, how: str, base: Any, row: Any, piece: Any) -> None:
        address = base + T.Cast("uint32", row * pitch(self.kernel.sizes.head_dim) + piece * 16)
        ptx(f"ldmatrix.sync.aligned.m8n8.x4{how}.shared.b16", *(self.a[i] for i in range(4)), address)

    def _add_weights(self, step: int) -> None:
        """Multiply ones by the weights: no thread need ask others for its heads' totals."""
        for i in range(4):
            T.buffer_store(self.a, T.uint32(_ONES[self.kernel.sizes.dtype]), [i])
        for tile in range(self.kernel.tiles):
            self._multiply(self.totals, tile * 4, self.weights, (step * self.kernel.tiles + tile) * 2)

    def _multiply(self, sums: Any, at: int, b: Any, b_at: int) -> None:
        kind = PTX_TYPES[self.kernel.sizes.dtype]
        own = [sums[at + i] for i in range(4)]
        ptx(
            f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32",
            *own, *(self.a[i] for i in range(4)), b[b_at], b[b_at + 1], *own,
        )  # fmt: skip

    def _apply_mask(self, first_key: Any) -> None:
        kernel = self.kernel
        for i in range(kernel.split.keys // KEYS * kernel.tiles * 4):
            key = first_key + i // 4 // kernel.tiles * KEYS + i % 4 // 2 * 8 + T.truncdiv(kernel.lane, 4)
            own = i // 4 % kernel.tiles * COLUMNS + kernel.lane % 4 * 2 + i % 2
            head = kernel.head * kernel.group + tirx.min(own, kernel.group - 1)
            at = (kernel.sequence, head, 0, key)
            score = masked(self.scores[i], kernel.mask, kernel.sizes, self.factor(), at)
            T.buffer_store(self.scores, score, [i])

    def _mask(self, first_key: Any) -> None:
        for i in range(self.kernel.split.keys // KEYS * self.kernel.tiles * 4):
            key = i // 4 // self.kernel.tiles * KEYS + i % 4 // 2 * 8 + T.truncdiv(self.kernel.lane, 4)
            seen = first_key + key < self.kernel.length
            T.buffer_store(self.scores, tirx.Select(seen, self.scores[i], unseen()), [i])

    def _exponentiate(self, tile: int, column: int) -> None:
        """Scores of one head to weights; the sums so far to the new maximum."""
        own = [
            (step * self.kernel.tiles + tile) * 4 + half * 2 + column
            for step in range(self.kernel.split.keys // KEYS)
            for half in range(2)
        ]
        head = tile * 2 + column
        found = Scalar(self.scores[own[0]], "float32")
        for i in own[1:]:
            found.set(tirx.max(found(), self.scores[i]))
        for distance in (4, 8, 16):
            found.set(tirx.max(found(), shuffle_xor(found(), distance)))
        found.set(tirx.max(self.most[head], found() * self.factor()))
        base = Scalar(finite(found()), "float32")
        shrink = Scalar(exp2(self.most[head] - base()), "float32")
        T.buffer_store(self.most, found(), [head])
        for i in own:
            T.buffer_store(self.scores, exp2(self.scores[i] * self.factor() - base()), [i])
        total = tile * 4 + column
        T.buffer_store(self.totals, self.totals[total] * shrink(), [total])
        for part in range(self.kernel.parts):
            for half in range(2):
                i = (tile * self.kernel.parts + part) * 4 + half * 2 + column
                T.buffer_store(self.rows, self.rows[i] * shrink(), [i])

    def _pack_weights(self) -> None:
        """Round weights and turn each 8 x 8 of them, keys x heads, to heads x keys."""
        for i in range(self.kernel.split.keys // KEYS * self.kernel.tiles * 2):
            pair = pack(self.kernel.sizes.dtype, self.scores[2 * i], self.scores[2 * i + 1])
            T.buffer_store(self.weights, pair, [i])
            ptx("movmatrix.sync.aligned.m8n8.trans.b16", self.weights[i], self.weights[i])


def finite(value: Any) -> Any:
    """Return a maximum that others can be compared with: 0 where no key was seen."""
    return tirx.Select(value == unseen(), T.float32(0), value)
