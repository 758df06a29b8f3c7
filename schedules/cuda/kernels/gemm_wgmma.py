"""The kernel of `WgmmaGemm`, for Hopper GPUs (sm_90a), in TVM's kernel language.

One thread of a producer warpgroup fills a ring of shared-memory stages through the bulk copy
engine (TMA), 128-byte swizzled; consumer warpgroups multiply from there with wgmma, float32
accumulators in registers (`gemm_products`). Blocks stay and take tile after tile, neighbours
in L2 together (`gemm_walk`); the producer is by then at work on the next tile. Bias, residual
and activation are applied to the sums in registers. Results go through shared memory and TMA,
float32 straight to memory.

A cluster of blocks serves one of two ends. With `cluster` > 1 its blocks, one above the
other, each load a part of their common tile of b for all; with `abreast` > 1, side by side, of a.
With `split_k` > 1 its blocks add up one tile, each a stretch of k; the partial sums are exchanged
through the cluster's shared memory and added in a fixed order, so that no workspace is needed and
results repeat. They take the place of the ring; or (`sends`) each block finishes a stretch of the tile, which the
others send it theirs of (`gemm_stretches`). Large clusters leave a part of the machine idle: with `parts` > 1 blocks anywhere
leave float32 sums of a stretch of k in a workspace, and a second kernel adds those (`gemm_sums`).
With `streams` blocks share the tiles that fill no wave: they leave sums in a workspace for each other,
tell so by flags, and add them up themselves (`gemm_stream_k`).
Who adds up waits for blocks launched before it (stream-K), or for those next to it that hold the same tile.

What neighbouring multiprocessors ask the L2 for at about the same time, it answers at once: of few rows,
tiles one above the other are walked together (`group`). That saves as much as multicast, which is not
answered so, and no block waits for another. Blocks of a kernel that is launched early begin wherever the
one before leaves room: there pairs are launched as a cluster, only to lie side by side.

wgmma takes floats (tf32) from shared memory along k alone. One factor whose rows lie across k comes
through registers (`gemm_fragments`), where it is the first: if it is b, c^T = b^T a^T is what is
multiplied, and stored as c. If both do, a kernel before this one turns the second in a copy
(`turn_floats`): loads that turned it on its way were slower. So are products of few rows, whose columns then fill a wgmma's 64 rows,
and those of 16 bits whose tiles shall have other rows than multiples of 64: what becomes rows of c is
turned on its way to shared memory (`gemm_turned_results`).

Warpgroups that multiply lie one above the other, or side by side (`aside`): each then takes all rows of a
tile, an odd number of 64 among them, and a part of its columns.

TMA leaves out what lies beyond an array when it stores, and reads zeros there: no shape needs
to divide. But zeros take longer than what is there: the last tiles begin where they are whole if what
they share with others is the same in both, and boxes are no higher than an operand that lies along k.
Tiles whose columns end inside 64 that are loaded together are stored warp by warp.
TMA needs rows of a multiple of 16 bytes: of an operand with others a kernel before this one makes
a copy with such rows in a workspace, and results with others are stored row by row. Of large products a
part of it is copied beside the first tiles, which don't need it (`late_copies`).
m, n, k and the batch are known at run time alone: one kernel serves every such shape.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from tvmops.schedules.cuda.gemm_tiles import PARTIAL_PAD, Tiles
from tvmops.schedules.cuda.kernels.gemm_arrays import Arrays, Form, Int8Form
from tvmops.schedules.cuda.kernels.gemm_integers import Columns, IntegerArrays, IntegerResults
from tvmops.schedules.cuda.kernels.gemm_operands import AcrossFloats, Operand
from tvmops.schedules.cuda.kernels.gemm_partials import PartialSums
from tvmops.schedules.cuda.kernels.gemm_products import Factor, Products, RingBarriers
from tvmops.schedules.cuda.kernels.gemm_results import Consumer, Results, factor_of
from tvmops.schedules.cuda.kernels.gemm_stream_k import SharedSums
from tvmops.schedules.cuda.kernels.gemm_stretches import Stretches
from tvmops.schedules.cuda.kernels.gemm_sums import add_up
from tvmops.schedules.cuda.kernels.gemm_turned_results import TurnedResults
from tvmops.schedules.cuda.kernels.gemm_walk import Walk, blocks_for
from tvmops.schedules.cuda.kernels.gemm_zero_points import ZeroPoints
from tvmops.schedules.cuda.kernels.late_copies import LateCopies
from tvmops.schedules.cuda.words import PROGRAMMATIC_LAUNCH, Barriers, meet_in_cluster


def gemm(form: Form, tiles: Tiles, arrays_of: Arrays | None = None) -> tirx.PrimFunc:
    """Return `main(a, b, [bias], [residual], c)`, float32 inside; of others what `arrays_of` declare."""
    integers = isinstance(form, Int8Form)
    arrays_of = arrays_of or (IntegerArrays(form) if isinstance(form, Int8Form) else Arrays(form))
    DT = arrays_of.dtype
    BM, BN, BK, STAGES = tiles.bm, tiles.bn, tiles.bk, tiles.stages
    CONSUMERS, WM, BUFFERS = tiles.consumers, tiles.blocks_a_group, tiles.store_buffers
    SHARE, SPLIT, ASIDE, SENDS = tiles.sharers, tiles.split_k, bool(tiles.aside), bool(tiles.sends)
    CLUSTER, CHAINED, PARTS = SHARE * SPLIT, bool(tiles.chained), form.parts
    sums_form = form if PARTS == 1 else form.sums
    BY_TMA = sums_form.turns_back or sums_form.stores_by_tma and not form.turned and BN % 64 == 0
    HEIGHT = BN if form.turned else BM  # of a tile of c
    a_of = (
        AcrossFloats(arrays_of, "a", BM, tiles)
        if form.across
        else Operand(arrays_of, "a", not form.trans_a, BM, tiles, sharers=tiles.abreast)
    )
    b_of = Operand(arrays_of, "b", form.trans_b, BN, tiles, sharers=tiles.cluster)

    # fmt: off
    @T.prim_func
    def main() -> None:
        arrays = T.meta_var(arrays_of.declare(workspace=bool(form.copied) or PARTS > 1 or tiles.streams > 0))
        C = T.meta_var(arrays["c"])
        a_map = T.meta_var(arrays_of.map_of("a", arrays, a_of.box, tiles.abreast > 1))
        b_map = T.meta_var(arrays_of.map_of("b", arrays, b_of.box, tiles.abreast > 1))
        c_map = T.meta_var(arrays_of.map_of_result(C) if BY_TMA else None)
        late = T.meta_var(LateCopies(arrays_of, arrays, tiles) if form.late else None)
        copied = T.meta_var((late or arrays_of).make_copies(arrays, 8 * tiles.multiprocessors, CHAINED))

        with T.attr(0, "tirx.device_entry", True):
            T.attr({"tirx.launch_bounds_min_blocks_per_sm": tiles.beside})
            bx = T.cta_id([blocks_for(form, tiles, arrays_of.m, arrays_of.n, arrays_of.batch)])
            rank = T.cta_id_in_cluster([CLUSTER]) if CLUSTER > 1 else 0
            beside = T.cta_id_in_cluster([tiles.neighbours]) if tiles.neighbours > 1 else 0  # noqa: F841
            part = T.meta_var(rank if SHARE > 1 else 0)  # of a tile, that this block loads for its cluster
            group = T.warpgroup_id([CONSUMERS + 1])
            warp = T.warp_id_in_wg([4])
            lane = T.lane_id([32])

            pool = T.SMEMPool()
            partial = pool.alloc((SPLIT - 1, CONSUMERS, 2 * tiles.most_units, 512) if SENDS else (HEIGHT if SPLIT > 1 else 1, BM + BN - HEIGHT + PARTIAL_PAD), arrays_of.sums, align=16)
            pool.move_base_to(0)  # it takes the place of the ring, when that has been read
            As = pool.alloc(a_of.shape, DT, align=1024)
            Bs = pool.alloc(b_of.shape, DT, align=1024)
            Cs = pool.alloc((CONSUMERS, BUFFERS, 64, 64) if (SPLIT == 1 or SENDS) and PARTS == 1 and not form.stores_directly else (1, 1, 1, 8), DT, align=1024)
            zeros = T.meta_var(ZeroPoints(form, arrays, tiles, pool) if isinstance(form, Int8Form) else None)
            columns = T.meta_var(Columns(form, arrays, tiles, pool) if isinstance(form, Int8Form) else None)
            full = pool.alloc((STAGES,), "uint64", align=8)
            empty = pool.alloc((STAGES,), "uint64", align=8)
            here = T.meta_var(Barriers(pool, CONSUMERS, 1) if SENDS else None)
            pool.commit()

            if (group == 0) & (warp == 0) & (lane == 0):
                for i in T.unroll(STAGES):
                    T.ptx.mbarrier.init.shared.b64(full.ptr_to([i]), T.uint32(1))
                    T.ptx.mbarrier.init.shared.b64(empty.ptr_to([i]), zeros.arrivals(CONSUMERS * SHARE) if integers else T.uint32(CONSUMERS * SHARE))
                if SENDS:
                    here.init()
                if integers:
                    zeros.init()
                if CHAINED:
                    T.ptx.prefetch.tensormap(T.address_of(a_map))
                    T.ptx.prefetch.tensormap(T.address_of(b_map))
                T.ptx.fence.mbarrier_init.release.cluster()
            if CLUSTER > 1:
                meet_in_cluster()
            else:
                T.cuda.cta_sync()
            walk = T.meta_var(Walk(form, tiles, arrays_of, bx, rank))
            walk.begin()

            if tiles.chained > 1:
                if (group == CONSUMERS) & (warp == 0):
                    if T.cuda.elect_sync():
                        walk.locate()
                        for kt in T.serial(T.min(walk.steps, tiles.chained)):
                            b_of.ask(b_map, walk.left, (walk.first + kt) * BK, part if tiles.cluster > 1 else 0, walk.item)
            if CHAINED:
                T.ptx.griddepcontrol.launch_dependents()
                T.ptx.griddepcontrol.wait()
            if integers:
                zeros.begin((warp - 1) * 32 + lane)

            if group == CONSUMERS:
                T.ptx.setmaxnreg.dec.sync.aligned.u32(tiles.producer_registers)
                if warp == 0:
                    if T.cuda.elect_sync():
                        while walk.tile < walk.count:
                            walk.locate()
                            if form.late:
                                late.wait(walk)
                            for kt in T.serial(walk.steps):
                                T.cuda.mbarrier_wait(empty.ptr_to([walk.stage]), walk.phase ^ 1)
                                T.ptx.mbarrier.arrive.expect_tx.shared.b64(full.ptr_to([walk.stage]), T.uint32(a_of.loaded_bytes(walk.m) + b_of.loaded_bytes(walk.n)))
                                a_of.load(As, walk.stage, a_map, walk.top, (walk.first + kt) * BK, part if tiles.abreast > 1 else 0, walk.item, full.ptr_to([walk.stage]))
                                b_of.load(Bs, walk.stage, b_map, walk.left, (walk.first + kt) * BK, part if tiles.cluster > 1 else 0, walk.item, full.ptr_to([walk.stage]))
                                walk.advance()
                            walk.go_on()
                if form.late:
                    if warp > 0:
                        late.copy_rest(lane)
                if integers:
                    if (warp > 0) & zeros.needed:
                        while walk.tile < walk.count:
                            zeros.clear()
                            for _ in T.serial(walk.steps):
                                T.cuda.mbarrier_wait(full.ptr_to([walk.stage]), walk.phase)
                                zeros.add(As, Bs, walk.stage)
                                zeros.leave(empty, walk.stage, lane)
                                walk.advance()
                            zeros.publish()
                            walk.go_on()
                if SPLIT > 1:  # until partial sums are there, and until they are read
                    if not SENDS:
                        T.cuda.cluster_sync()
                    meet_in_cluster()
            else:
                T.ptx.setmaxnreg.inc.sync.aligned.u32(tiles.consumer_registers)
                acc = T.alloc_local((tiles.sums,), arrays_of.sums)
                packed = T.alloc_local((4,), "uint32")
                factor = T.alloc_local((1,), "float32")
                if sums_form.has_factor:
                    factor[0] = factor_of(arrays)
                a_base: T.uint32 = T.cuda.cvta_generic_to_shared(As.ptr_to([0, 0, 0, 0])) + T.Cast("uint32", 0 if ASIDE else group * a_of.group_bytes(WM))
                b_base: T.uint32 = T.cuda.cvta_generic_to_shared(Bs.ptr_to([0, 0, 0, 0]))
                if ASIDE:
                    b_base = b_base + T.Cast("uint32", group * b_of.columns_bytes(tiles.columns_a_group))
                e_base: T.uint32 = T.cuda.cvta_generic_to_shared(empty.ptr_to([0]))
                if SHARE > 1:
                    # warp i of each consumer releases stages in block i of the cluster
                    T.ptx.mapa.shared__cluster.u32(e_base, T.cuda.cvta_generic_to_shared(empty.ptr_to([0])), T.Cast("uint32", warp % SHARE))
                row: T.let = warp * 16 + lane % 16
                consumer = T.meta_var(Consumer(group, warp, lane, walk.top, walk.left + group * tiles.columns_a_group if ASIDE else walk.left, walk.item, row, acc, packed, factor if sums_form.has_factor else None))
                products = T.meta_var(Products(form, tiles, walk, consumer, (Factor(a_of, a_base), Factor(b_of, b_base)), RingBarriers(full, empty, e_base)))
                results = T.meta_var(IntegerResults(arrays_of, arrays, tiles, consumer, zeros, columns) if isinstance(arrays_of, IntegerArrays) else (TurnedResults if form.turned else Results)(sums_form, arrays_of, arrays, tiles, consumer))
                partials = T.meta_var(PartialSums(results, tiles, partial, rank))
                stretches = T.meta_var(Stretches(tiles, consumer, partial, here, rank) if SENDS else None)
                shared = T.meta_var(SharedSums(arrays, tiles, consumer, rank) if tiles.streams > 0 else None)

                @T.inline
                def finish():
                    if sums_form.finishes or sums_form.stores_directly:
                        results.finish_all()
                    if BY_TMA:
                        results.store(Cs, c_map)
                    elif not sums_form.stores_directly:
                        results.store_by_warps(Cs)

                if SENDS:
                    walk.locate()
                    products.multiply()
                    meet_in_cluster()  # others may still read their rings
                    stretches.send()
                    stretches.add()
                    if sums_form.finishes:
                        results.finish_all()
                    stretches.store(results, Cs, c_map)
                    if (warp == 0) & (lane == 0):
                        T.ptx.cp.async_.bulk.wait_group(0)
                elif SPLIT > 1:
                    walk.locate()
                    if integers:
                        results.begin()
                    if walk.first < walk.last:
                        products.multiply()
                        if integers:
                            results.put_right()
                    T.ptx.bar.sync(T.uint32(1), T.uint32(128 * CONSUMERS))  # others may still read the ring
                    partials.share(walk.first == walk.last)
                    T.cuda.cluster_sync()
                    partials.add()
                    meet_in_cluster()
                else:
                    while walk.tile < walk.count:
                        walk.locate()
                        if integers:
                            results.begin()
                        products.multiply()
                        if integers:
                            results.put_right()
                        if tiles.streams > 1:
                            if walk.tile < walk.common:
                                shared.meet(results, walk.tile, walk.part)
                            else:
                                finish()
                        elif tiles.streams == 1:
                            if walk.first > 0:
                                shared.leave(walk.tile + walk.place)
                            else:
                                walk.divide()
                                if walk.tile < walk.begun:
                                    shared.add_all(walk)
                                finish()
                        else:
                            finish()
                        walk.go_on()
                    if BY_TMA:
                        if (warp == 0) & (lane == 0):
                            T.ptx.cp.async_.bulk.wait_group(0)
            if SHARE > 1:
                meet_in_cluster()
        summed = T.meta_var(add_up(form, arrays_of, arrays) if PARTS > 1 else None)
    # fmt: on
    function: tirx.PrimFunc = main.with_attr(*PROGRAMMATIC_LAUNCH) if CHAINED else main
    return function
