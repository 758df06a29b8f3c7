"""The kernel of `WgmmaGemm`, for Hopper GPUs (sm_90a), in TVM's kernel language.

One thread of a producer warpgroup fills a ring of shared-memory stages through the bulk copy
engine (TMA), 128-byte swizzled; consumer warpgroups multiply from there with wgmma, float32
accumulators in registers. Blocks stay and take tile after tile, neighbours in L2 together;
the producer is by then at work on the next tile. Bias, residual and activation are applied to
the sums in registers. Results go through shared memory and TMA, float32 straight to memory.

A cluster of blocks serves one of two ends. With `cluster` > 1 its blocks, one above the
other, each load a part of their common tile of b for all. With `split_k` > 1 its blocks add
up one tile, each a stretch of k; the partial sums are exchanged through the cluster's shared
memory and added in a fixed order, so that no workspace is needed and results repeat. They take the
place of the ring. Large clusters leave a part of the machine idle: with `parts` > 1 blocks anywhere
leave float32 sums of a stretch of k in a workspace, and a second kernel adds those (`gemm_sums`).
With `streams` blocks share the tiles that fill no wave: they leave sums in a workspace for each other,
tell so by flags that a kernel before this one takes down, and add them up themselves (`gemm_stream_k`).
Who adds up waits for blocks launched before it (stream-K), or for those next to it that hold the same tile.

TMA leaves out what lies beyond an array when it stores, and reads zeros there: no shape needs
to divide. Tiles whose columns end inside 64 that are loaded together are stored warp by warp.
TMA needs rows of a multiple of 16 bytes: of an operand with others a kernel before this one makes
a copy with such rows in a workspace, and results with others are stored row by row.
m, n, k and the batch are known at run time alone: one kernel serves every such shape.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from tvmops.schedules.cuda.gemm_tiles import PARTIAL_PAD, Tiles
from tvmops.schedules.cuda.kernels.gemm_arrays import Arrays, Form, Int8Form
from tvmops.schedules.cuda.kernels.gemm_integers import Columns, IntegerArrays, IntegerResults
from tvmops.schedules.cuda.kernels.gemm_operands import Operand
from tvmops.schedules.cuda.kernels.gemm_operands import multiply as multiply_one
from tvmops.schedules.cuda.kernels.gemm_partials import PartialSums
from tvmops.schedules.cuda.kernels.gemm_results import Consumer, Results, factor_of
from tvmops.schedules.cuda.kernels.gemm_stream_k import LEAVING, SharedSums, again, clear_flags
from tvmops.schedules.cuda.kernels.gemm_sums import add_up
from tvmops.schedules.cuda.kernels.gemm_zero_points import ZeroPoints
from tvmops.schedules.cuda.words import PROGRAMMATIC_LAUNCH


def gemm(form: Form, tiles: Tiles) -> tirx.PrimFunc:
    """Return `main(a, b, [bias], [residual], c)`, float32 inside; of integers what their signature says."""
    integers = isinstance(form, Int8Form)
    arrays_of = IntegerArrays(form) if isinstance(form, Int8Form) else Arrays(form)
    M, N, K, BATCH = arrays_of.m, arrays_of.n, arrays_of.k, arrays_of.batch
    DT = arrays_of.dtype
    BM, BN, BK, STAGES = tiles.bm, tiles.bn, tiles.bk, tiles.stages
    CONSUMERS, WM, BUFFERS = tiles.consumers, tiles.blocks_a_group, tiles.store_buffers
    SHARE, SPLIT, GROUP = tiles.cluster, tiles.split_k, tiles.group
    CLUSTER, CHAINED, PARTS = SHARE * SPLIT, bool(tiles.chained), form.parts
    STREAMS, MEETING, WORKERS = tiles.streams == 1, tiles.streams > 1, tiles.blocks // SHARE
    HOLDERS = max(tiles.streams, 1)  # blocks that share the sum of a tile through a workspace
    sums_form = form if PARTS == 1 else form.sums
    BY_TMA = sums_form.stores_by_tma and BN % 64 == 0
    NACC = BN // 2
    STEP = BK * 2 // form.item  # of k, of a stage
    a_of = Operand(arrays_of, "a", not form.trans_a, BM, tiles)
    b_of = Operand(arrays_of, "b", form.trans_b, BN, tiles, sharers=SHARE)

    def blocks_for(m: Any, n: Any, batch: Any) -> Any:
        """Return how many blocks are launched: for each share of a sum, or as many as stay."""
        if STREAMS or SPLIT == 1 and not CHAINED:
            return WORKERS * CLUSTER
        rows, columns = BM * SHARE, BN
        items = (
            T.truncdiv(m + (rows - 1), rows)
            * T.truncdiv(n + (columns - 1), columns)
            * batch
            * PARTS
            * HOLDERS
        )
        return (items if SPLIT > 1 else T.min(items, WORKERS)) * CLUSTER

    # fmt: off
    @T.prim_func
    def main() -> None:
        arrays = T.meta_var(arrays_of.declare(workspace=bool(form.pads) or PARTS > 1 or tiles.streams > 0))
        C = T.meta_var(arrays["c"])
        a_map = T.meta_var(arrays_of.map_of("a", arrays, a_of.box))
        b_map = T.meta_var(arrays_of.map_of("b", arrays, b_of.box))
        c_map = T.meta_var(arrays_of.map_of_result(C) if BY_TMA else None)
        copied = T.meta_var(arrays_of.make_copies(arrays, 8 * tiles.multiprocessors, CHAINED))
        cleared = T.meta_var(clear_flags(arrays, tiles) if tiles.streams > 0 else None)

        with T.attr(0, "tirx.device_entry", True):
            T.attr({"tirx.launch_bounds_min_blocks_per_sm": tiles.beside})
            bx = T.cta_id([blocks_for(M, N, BATCH)])
            rank = T.cta_id_in_cluster([CLUSTER]) if CLUSTER > 1 else 0
            part = T.meta_var(rank if SHARE > 1 else 0)  # of b, that this block loads for its cluster
            group = T.warpgroup_id([CONSUMERS + 1])
            warp = T.warp_id_in_wg([4])
            lane = T.lane_id([32])

            pool = T.SMEMPool()
            partial = pool.alloc((BM if SPLIT > 1 else 1, BN + PARTIAL_PAD), arrays_of.sums, align=16)
            pool.move_base_to(0)  # it takes the place of the ring, when that has been read
            As = pool.alloc(a_of.shape, DT, align=1024)
            Bs = pool.alloc(b_of.shape, DT, align=1024)
            Cs = pool.alloc((CONSUMERS, BUFFERS, 64, 64) if SPLIT == PARTS == 1 and not form.stores_directly else (1, 1, 1, 8), DT, align=1024)
            zeros = T.meta_var(ZeroPoints(form, arrays, tiles, pool) if isinstance(form, Int8Form) else None)
            columns = T.meta_var(Columns(form, arrays, tiles, pool) if isinstance(form, Int8Form) else None)
            full = pool.alloc((STAGES,), "uint64", align=8)
            empty = pool.alloc((STAGES,), "uint64", align=8)
            pool.commit()

            if (group == 0) & (warp == 0) & (lane == 0):
                for i in T.unroll(STAGES):
                    T.ptx.mbarrier.init.shared.b64(full.ptr_to([i]), T.uint32(1))
                    T.ptx.mbarrier.init.shared.b64(empty.ptr_to([i]), zeros.arrivals(CONSUMERS * SHARE) if integers else T.uint32(CONSUMERS * SHARE))
                if integers:
                    zeros.init()
                if CHAINED:
                    T.ptx.prefetch.tensormap(T.address_of(a_map))
                    T.ptx.prefetch.tensormap(T.address_of(b_map))
                T.ptx.fence.mbarrier_init.release.cluster()
            if CLUSTER > 1:
                T.cuda.cluster_sync()
            else:
                T.cuda.cta_sync()
            # Through variables, lest what the launch computes becomes arguments of the kernel.
            m: T.int32 = M
            n: T.int32 = N
            ROWS: T.int32 = T.truncdiv(m + (BM * SHARE - 1), BM * SHARE)  # of tiles, as clusters see them
            COLUMNS: T.int32 = T.truncdiv(n + (BN - 1), BN)
            TILES: T.int32 = ROWS * COLUMNS * BATCH * PARTS
            DEPTH: T.int32 = T.truncdiv(K + (STEP - 1), STEP)
            stage: T.int32 = 0
            phase: T.int32 = 0
            tile: T.int32 = T.truncdiv(bx, CLUSTER)
            band: T.int32
            height: T.int32
            rest: T.int32
            tm: T.int32
            tn: T.int32
            item: T.int32 = 0
            first: T.int32 = 0  # steps along k, of this block
            last: T.int32 = DEPTH
            if SPLIT > 1:
                first = T.truncdiv(DEPTH * rank, SPLIT)
                last = T.truncdiv(DEPTH * (rank + 1), SPLIT)
            # Tiles that fill no wave. Computed again where it is needed: registers are full while products are made.
            common = T.meta_var(T.truncmod(again(TILES), WORKERS))
            place = T.meta_var(T.truncdiv(bx, CLUSTER))
            begun: T.int32  # of those, if they are shared evenly
            head: T.int32  # steps that who begins such a tile takes of it; the last blocks do
            share: T.int32  # steps of each other block, of what follows the heads
            at: T.int32
            end: T.int32

            @T.inline
            def divide():
                begun = common
                head = T.min(T.max(T.truncdiv(begun * (DEPTH + LEAVING), WORKERS), 1), DEPTH)
                share = T.max(T.truncdiv(begun * (DEPTH - head) + (WORKERS - begun - 1), WORKERS - begun), 1)
                end = T.min((place + 1) * share, begun * (DEPTH - head))

            @T.inline
            def divide_again():
                divide()
                at = tile * (DEPTH - head) + (last - head)
                end = T.if_then_else(first > 0, end, 0)

            if STREAMS:
                divide()
                if tile >= WORKERS - begun:
                    tile = tile + begun - WORKERS
                    last = head
                else:
                    at = tile * share
                    tile = tile + begun
                    if at < end:
                        tile = T.truncdiv(at, DEPTH - head)
                        first = head + T.truncmod(at, DEPTH - head)
                        last = T.min(first + (end - at), DEPTH)
            if MEETING:
                if tile < common * HOLDERS:
                    first = T.truncdiv(DEPTH * T.truncmod(tile, HOLDERS), HOLDERS)
                    last = T.truncdiv(DEPTH * (T.truncmod(tile, HOLDERS) + 1), HOLDERS)
                    tile = T.truncdiv(tile, HOLDERS)
                else:
                    tile = tile + common

            @T.inline
            def locate():
                if form.batched or PARTS > 1:
                    item = T.truncdiv(tile, ROWS * COLUMNS)
                    rest = T.truncmod(tile, ROWS * COLUMNS)
                    band = T.truncdiv(rest, GROUP * COLUMNS)
                    rest = T.truncmod(rest, GROUP * COLUMNS)
                else:
                    band = T.truncdiv(tile, GROUP * COLUMNS)
                    rest = T.truncmod(tile, GROUP * COLUMNS)
                height = T.min(ROWS - band * GROUP, GROUP)
                tn = T.truncdiv(rest, height)
                tm = band * GROUP + T.truncmod(rest, height)
                if SHARE > 1:
                    tm = tm * SHARE + rank
                if PARTS > 1:
                    first = T.truncdiv(DEPTH + (PARTS - 1), PARTS) * item
                    last = T.max(T.min(T.truncdiv(DEPTH + (PARTS - 1), PARTS) * (item + 1), DEPTH), first + 1)  # zeros, beyond the end

            @T.inline
            def go_on():
                if STREAMS:
                    divide_again()
                    if at < end:
                        tile = tile + 1
                        first = head
                        last = T.min(head + (end - at), DEPTH)
                    else:
                        tile = T.if_then_else(end > 0, begun + place, tile + WORKERS)
                        first = 0
                        last = DEPTH
                elif MEETING:
                    tile = T.if_then_else(tile < common, common + place, tile + WORKERS)
                    first = 0
                    last = DEPTH
                else:
                    tile = tile + (TILES if SPLIT > 1 else WORKERS)

            @T.inline
            def advance():
                stage = stage + 1
                if stage == STAGES:
                    stage = 0
                    phase = phase ^ 1

            if CHAINED:
                T.ptx.griddepcontrol.launch_dependents()
                T.ptx.griddepcontrol.wait()
            if integers:
                zeros.begin((warp - 1) * 32 + lane)

            if group == CONSUMERS:
                T.ptx.setmaxnreg.dec.sync.aligned.u32(tiles.producer_registers)
                if warp == 0:
                    if T.cuda.elect_sync():
                        while tile < TILES:
                            locate()
                            for kt in T.serial(last - first):
                                T.cuda.mbarrier_wait(empty.ptr_to([stage]), phase ^ 1)
                                T.ptx.mbarrier.arrive.expect_tx.shared.b64(full.ptr_to([stage]), T.uint32(a_of.stage_bytes + b_of.stage_bytes))
                                a_of.load(As, stage, a_map, tm * BM, (first + kt) * BK, 0, item, full.ptr_to([stage]))
                                b_of.load(Bs, stage, b_map, tn * BN, (first + kt) * BK, part, item, full.ptr_to([stage]))
                                advance()
                            go_on()
                if integers:
                    if (warp > 0) & zeros.needed:
                        while tile < TILES:
                            zeros.clear()
                            for _ in T.serial(last - first):
                                T.cuda.mbarrier_wait(full.ptr_to([stage]), phase)
                                zeros.add(As, Bs, stage)
                                zeros.leave(empty, stage, lane)
                                advance()
                            zeros.publish()
                            go_on()
                if SPLIT > 1:  # until partial sums are there, and until they are read
                    T.cuda.cluster_sync()
                    T.cuda.cluster_sync()
            else:
                T.ptx.setmaxnreg.inc.sync.aligned.u32(tiles.consumer_registers)
                acc = T.alloc_local((WM * NACC,), arrays_of.sums)
                packed = T.alloc_local((4,), "uint32")
                factor = T.alloc_local((1,), "float32")
                if sums_form.has_factor:
                    factor[0] = factor_of(arrays)
                a_base: T.uint32 = T.cuda.cvta_generic_to_shared(As.ptr_to([0, 0, 0, 0])) + T.Cast("uint32", group * a_of.group_bytes(WM))
                b_base: T.uint32 = T.cuda.cvta_generic_to_shared(Bs.ptr_to([0, 0, 0, 0]))
                e_base: T.uint32 = T.cuda.cvta_generic_to_shared(empty.ptr_to([0]))
                if SHARE > 1:
                    # warp i of each consumer releases stages in block i of the cluster
                    T.ptx.mapa.shared__cluster.u32(e_base, T.cuda.cvta_generic_to_shared(empty.ptr_to([0])), T.Cast("uint32", warp % SHARE))
                row: T.let = warp * 16 + lane % 16
                before: T.int32 = 0
                consumer = T.meta_var(Consumer(group, warp, lane, tm, tn, item, row, acc, packed, factor if sums_form.has_factor else None))
                results = T.meta_var(IntegerResults(arrays_of, arrays, tiles, consumer, zeros, columns) if isinstance(arrays_of, IntegerArrays) else Results(sums_form, arrays_of, arrays, tiles, consumer))
                partials = T.meta_var(PartialSums(results, tiles, partial, rank))
                shared = T.meta_var(SharedSums(arrays, tiles, consumer, rank) if tiles.streams > 0 else None)

                @T.inline
                def release():
                    if (lane == 0) & (warp < SHARE):
                        if SHARE > 1:
                            T.ptx.mbarrier.arrive.shared__cluster.b64(e_base + T.Cast("uint32", before * 8))
                        else:
                            T.ptx.mbarrier.arrive.shared.b64(empty.ptr_to([before]), T.uint32(1))

                @T.inline
                def multiply():
                    for kt in T.serial(last - first):
                        T.cuda.mbarrier_wait(full.ptr_to([stage]), phase)
                        T.ptx.wgmma.fence.sync.aligned()
                        for step in T.unroll(BK // 16):
                          for w in T.unroll(WM):
                            multiply_one(form, BN, acc, w * NACC, a_of.view(a_base, stage, step, w), b_of.view(b_base, stage, step), T.Not((kt == 0) & (step == 0)))
                        T.ptx.wgmma.commit_group.sync.aligned()
                        T.ptx.wgmma.wait_group.sync.aligned(1)
                        if kt > 0:
                            release()
                        before = stage
                        advance()
                    T.ptx.wgmma.wait_group.sync.aligned(0)
                    release()

                @T.inline
                def finish():
                    if sums_form.finishes or sums_form.stores_directly:
                        results.finish_all()
                    if BY_TMA:
                        results.store(Cs, c_map)
                    elif not sums_form.stores_directly:
                        results.store_by_warps(Cs)

                @T.inline
                def add_up_streams():
                    at = T.truncdiv(tile * (DEPTH - head), share)
                    while at * share < (tile + 1) * (DEPTH - head):
                        shared.add(tile + at)
                        at = at + 1

                if SPLIT > 1:
                    locate()
                    if integers:
                        results.begin()
                    if first < last:
                        multiply()
                        if integers:
                            results.put_right()
                    T.ptx.bar.sync(T.uint32(1), T.uint32(128 * CONSUMERS))  # others may still read the ring
                    partials.share(first == last)
                    T.cuda.cluster_sync()
                    partials.add()
                    T.cuda.cluster_sync()
                else:
                    while tile < TILES:
                        locate()
                        if integers:
                            results.begin()
                        multiply()
                        if integers:
                            results.put_right()
                        if MEETING:
                            if tile < common:
                                shared.leave(place)
                                shared.meet(results, tile, T.truncmod(place, HOLDERS))
                            else:
                                finish()
                        elif STREAMS:
                            if first > 0:
                                shared.leave(tile + place)
                            else:
                                divide()
                                if tile < begun:
                                    add_up_streams()
                                finish()
                        else:
                            finish()
                        go_on()
                    if BY_TMA:
                        if (warp == 0) & (lane == 0):
                            T.ptx.cp.async_.bulk.wait_group(0)
            if SHARE > 1:
                T.cuda.cluster_sync()
        summed = T.meta_var(add_up(form, arrays_of, arrays) if PARTS > 1 else None)
    # fmt: on
    function: tirx.PrimFunc = main.with_attr(*PROGRAMMATIC_LAUNCH) if CHAINED else main
    return function
