"""The kernel of `SmallGemm`: small products with mma.sync, of which a block has all of k at once.

Most of what a small product takes is waiting: for the launch, for memory, for each other. So a
block asks for all that it multiplies at once, and waits once. Sizes are known when the kernel is
made, so that no thread divides to find its part.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.gemm_mma import MmaKernel, MmaTiles
from tvmops.schedules.cuda.kernels.mma_operand import Operand
from tvmops.schedules.cuda.kernels.product import Product
from tvmops.schedules.cuda.kernels.whole_operand import STEP, WholeOperand
from tvmops.schedules.cuda.words import do, let_next_kernel_begin, ptx


class SmallKernel(MmaKernel):
    """`main(a, b, [bias], [residual], c)`; of the sizes the batch alone may be unknown."""

    operand = WholeOperand

    def __init__(self, product: Product, tiles: MmaTiles, chained: int) -> None:
        super().__init__(product, tiles, bool(chained))
        self.launches_next = chained  # 1: when all is asked for; 2: when it has come

    def _locate(self, block: Any, rows: Any, columns: Any) -> None:
        self.item = T.Bind(T.truncdiv(block, rows * columns))
        at = T.Bind(T.truncmod(block, rows * columns))
        self.row = T.Bind(T.truncdiv(at, columns) * self.tiles.bm)
        self.column = T.Bind(T.truncmod(at, columns) * self.tiles.bn)

    def _slice(self, operand: Operand, name: str) -> Any:
        assert isinstance(operand, WholeOperand)
        p = self.product
        elements = int(operand.extent) * int(operand.k)
        alone = not p.is_batched or p.shared == name
        operand.first = T.Cast("int64", 0 if alone else self.item) * elements
        operand.size = T.Cast("int64", 1 if alone else p.batch) * elements
        return super()._slice(operand, name)

    def _wait(self) -> None:
        ptx(
            "griddepcontrol.wait"
        )  # whose blocks would take the places of this one's, were they launched here

    def _multiply_all(self) -> None:
        operands = ((self.a, self.row), (self.b, self.column))
        for each, origin in operands:
            if each.in_two_steps:
                each.fetch(origin, 0)
            else:
                each.copy(0, origin, 0)
        ptx("cp.async.commit_group")
        if self.launches_next == 1:
            let_next_kernel_begin()
        for each, _ in operands:
            if each.in_two_steps:
                each.place(0)
        ptx("cp.async.wait_group", 0)
        do(T.cuda.cta_sync())
        if self.launches_next == 2:
            let_next_kernel_begin()
        for k in range(-(-int(self.product.k) // STEP)):
            self._load_parts(0, k)
            self._multiply()


def shared_bytes(product: Product, tiles: MmaTiles) -> int:
    """Return the bytes of shared memory of a block."""
    sizes = ((not product.trans_a, tiles.bm), (product.trans_b, tiles.bn))
    return sum(
        WholeOperand(None, block, product.k, k_inner, block, 1).stage_bytes for k_inner, block in sizes
    )
