"""How the result of a tile of queries leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.attention_softmax import Registers
from tvmops.schedules.cuda.kernels.attention_tiles import COLUMNS, ROWS
from tvmops.schedules.cuda.kernels.attention_walk import Walk
from tvmops.schedules.cuda.words import do, pack, ptx, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.attention_flash import FlashKernel


def write_out(kernel: FlashKernel, held: Registers, walk: Walk) -> None:
    """Registers to swizzled shared memory, and from there by the copy engine."""
    leads = (kernel.warp == 0) & (kernel.lane == 0)
    if kernel.tiles.own_out:
        with when(leads):
            ptx("cp.async.bulk.wait_group.read", 0)
        do(T.cuda.warpgroup_sync(kernel.group + 1))
    row = kernel.warp * 16 + kernel.lane % 16
    for part in range(kernel.depth // 16):
        for i in range(4):
            j = part * 8 + i * 2
            low, high = (held.out[j + x] * held.total[i % 2] for x in range(2))
            T.buffer_store(held.weights, pack(kernel.sizes.dtype, low, high), [i])
        chunk = (part % 4 * 2 + T.truncdiv(kernel.lane, 16)) ^ (kernel.lane % 8)
        ptx(
            "stmatrix.sync.aligned.m8n8.x4.shared.b16",
            kernel.out.ptr_to([kernel.group, part // 4, row, chunk * 8]),
            *(held.weights[i] for i in range(4)),
        )
    ptx("fence.proxy.async.shared::cta")
    do(T.cuda.warpgroup_sync(kernel.group + 1))
    place = walk.results(walk.first_row + kernel.group * ROWS)
    with when(leads):
        for block in range(kernel.blocks_of_columns):
            ptx(
                f"cp.async.bulk.tensor.{1 + len(place)}d.global.shared::cta.tile.bulk_group",
                T.address_of(kernel.maps["out"]), block * COLUMNS,
                *place,
                kernel.out.ptr_to([kernel.group, block, 0, 0]),
            )  # fmt: skip
        ptx("cp.async.bulk.commit_group")
        if not kernel.tiles.own_out:
            ptx("cp.async.bulk.wait_group.read", 0)
            kernel.q_empty.arrive(kernel.group)
