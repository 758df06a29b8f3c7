"""The two products of attention: of queries and keys, and of weights and values, by wgmma."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.attention_softmax import Registers
from tvmops.schedules.cuda.kernels.attention_tiles import COLUMNS, ROWS
from tvmops.schedules.cuda.words import PTX_TYPES, Scalar, do, ptx, shared_address, swizzled, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.attention_flash import FlashKernel


class Products:
    def __init__(self, kernel: FlashKernel, held: Registers) -> None:
        self.kernel, self.held = kernel, held
        self.q_at = self._base(kernel.q, kernel.group)
        self.k_at, self.v_at = self._base(kernel.k, 0), self._base(kernel.v, 0)

    def _base(self, memory: Any, stage: Any) -> Any:
        return Scalar(shared_address(memory, stage, 0, 0, 0), "uint32")()

    def turn_sign(self) -> None:
        """A negative scale is a positive one of -q."""
        kernel = self.kernel
        with when(kernel.scale < T.float32(0)):
            thread = kernel.warp * 32 + kernel.lane
            with T.serial(kernel.q_words.shape[1] // 128) as step:
                at = [kernel.group, step * 128 + thread]
                T.buffer_store(kernel.q_words, kernel.q_words[tuple(at)] ^ T.uint32(0x80008000), at)
            ptx("fence.proxy.async.shared::cta")
            do(T.cuda.warpgroup_sync(kernel.group + 1))

    def multiply_q_k(self, stage: Any) -> None:
        kernel, bn = self.kernel, self.kernel.tiles.bn
        kind = PTX_TYPES[kernel.sizes.dtype]
        product = f"wgmma.mma_async.sync.aligned.m64n{bn}k16.f32.{kind}.{kind}"
        start = T.Cast("uint32", stage * (bn * kernel.blocks_of_columns * 2 * COLUMNS))
        for part in range(kernel.depth // 16):
            block, inside = part // 4, part % 4 * 32
            ptx(
                product, *(self.held.scores[i] for i in range(bn // 2)),
                swizzled(self.q_at + T.uint32(block * ROWS * 2 * COLUMNS + inside)),
                swizzled(self.k_at + start + T.uint32(block * bn * 2 * COLUMNS + inside)),
                tirx.const(part > 0, "bool"), 1, 1, 0, 0,
            )  # fmt: skip
        ptx("wgmma.commit_group.sync.aligned")

    def multiply_weights_v(self, stage: Any) -> None:
        kernel, bn, depth = self.kernel, self.kernel.tiles.bn, self.kernel.depth
        kind = PTX_TYPES[kernel.sizes.dtype]
        product = f"wgmma.mma_async.sync.aligned.m64n{depth}k16.f32.{kind}.{kind}"
        start = T.Cast("uint32", stage * (bn * kernel.blocks_of_columns * 2 * COLUMNS))
        for part in range(bn // 16):
            ptx(
                product, *(self.held.out[i] for i in range(depth // 2)),
                *(self.held.weights[part * 4 + i] for i in range(4)),
                swizzled(self.v_at + start + T.uint32(part * 16 * 2 * COLUMNS), leading=bn * 8),
                tirx.const(True, "bool"), 1, 1, 1,
            )  # fmt: skip
        ptx("wgmma.commit_group.sync.aligned")
