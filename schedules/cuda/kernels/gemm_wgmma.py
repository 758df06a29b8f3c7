"""The kernel of `WgmmaGemm`, for Hopper GPUs (sm_90a), in TVM's kernel language.

One thread of a producer warpgroup fills a ring of shared-memory stages through the bulk copy
engine (TMA), 128-byte swizzled; consumer warpgroups multiply from there with wgmma, float32
accumulators in registers. Blocks stay and take tile after tile, neighbours in L2 together;
the producer is by then at work on the next tile. Results go through shared memory and TMA.

A cluster of blocks serves one of two ends. With `cluster` > 1 its blocks, one above the
other, each load a part of their common tile of b for all. With `split_k` > 1 its blocks add
up one tile, each a stretch of k; the partial sums are exchanged through the cluster's shared
memory and added in a fixed order, so that no workspace is needed and results repeat.

TMA leaves out what lies beyond an array when it stores, and reads zeros there: no shape needs
to divide. It needs rows of a multiple of 16 bytes. m, n and k are known at run time alone:
one kernel serves every such shape.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from tvmops.schedules.cuda.gemm_tiles import PARTIAL_PAD, Tiles

_SHORT = {"float16": "f16", "bfloat16": "bf16"}
_LOAD = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
_MULTICAST = _LOAD + ".multicast::cluster"
_STORE = "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group"
_TENSOR_MAP = "runtime.cuTensorMapEncodeTiled"
# The end of a tensor map's arguments: steps of 1, no interleaving, 128-byte swizzle, L2 promotion, zeros.
_SWIZZLED = (1, 1, 0, 3, 2, 0)
_STORED = (1, 1, 0, 3, 0, 0)
# wgmma's view of swizzled shared memory: swizzle of 128 bytes, 1024 bytes from 8 rows to the next 8.
_BY_K = (1 << 62) | (64 << 32) | (1 << 16)

_READ_PARTIAL = """
__device__ __forceinline__ void tvmops_add_partial(float* sums, const void* mine, int rank) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(mine)), remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  for (int half = 0; half < 2; ++half) {
    float x, y, z, w;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x), "=f"(y), "=f"(z), "=f"(w) : "r"(remote + 16 * half) : "memory");
    sums[4 * half] += x; sums[4 * half + 1] += y; sums[4 * half + 2] += z; sums[4 * half + 3] += w;
  }
}
"""


def _by_columns(depth: int) -> int:
    """Return wgmma's view of a matrix that lies with k along its rows, `depth` of them a stage."""
    return (1 << 62) | (64 << 32) | ((depth * 8) << 16)


def gemm(dtype: str, trans_a: bool, trans_b: bool, tiles: Tiles) -> tirx.PrimFunc:
    """Return `main(a, b, c)`: c = a @ b in `dtype`, float32 inside."""
    M, N, K = (tirx.Var(name, "int32") for name in "mnk")
    DT, MMA_TYPE = dtype, _SHORT[dtype]
    BM, BN, BK, STAGES = tiles.bm, tiles.bn, tiles.bk, tiles.stages
    CONSUMERS, WM, BUFFERS = tiles.consumers, tiles.blocks_a_group, tiles.store_buffers
    SHARE, SPLIT, GROUP = tiles.cluster, tiles.split_k, tiles.group
    CLUSTER = SHARE * SPLIT
    PANELS = BK // 64  # swizzled columns of a stage
    NACC = BN // 2
    STAGE_BYTES = (BM + BN) * BK * 2
    SHARED_B = BN // SHARE  # columns of b that this block loads for its cluster
    EVERYONE = (1 << SHARE) - 1
    THREADS = 128 * CONSUMERS
    RUNS = BN // 8  # of 16 bytes in a row of a tile
    PITCH = BN + PARTIAL_PAD

    A_SHAPE, B_SHAPE = ((K, M) if trans_a else (M, K)), ((N, K) if trans_b else (K, N))
    A_SMEM = (STAGES, BM // 64, BK, 64) if trans_a else (STAGES, PANELS, BM, 64)
    B_SMEM = (STAGES, PANELS, BN, 64) if trans_b else (STAGES, BN // 64, BK, 64)
    A_BOX = (64, BK) if trans_a else (64, BM)
    B_BOX = (64, SHARED_B) if trans_b else (64, BK)
    A_DESC = _by_columns(BK) if trans_a else _BY_K
    B_DESC = _BY_K if trans_b else _by_columns(BK)
    A_LOADS = BM // 64 if trans_a else PANELS
    B_LOADS = PANELS if trans_b else SHARED_B // 64
    MMA = f"wgmma.mma_async.sync.aligned.m64n{BN}k16.f32.{MMA_TYPE}.{MMA_TYPE}"
    ROUND = f"cvt.rn.{MMA_TYPE}x2.f32"

    def accumulators(acc: Any, block: int) -> list[Any]:
        return [acc[block * NACC + i] for i in range(NACC)]

    def a_offset(step: int, block: int) -> int:
        """Return where, in bytes, step `step` of 16 along k begins for 64 rows of a."""
        if trans_a:
            return block * (BK * 128) + step * 2048
        return (step // 4) * (BM * 128) + block * 8192 + (step % 4) * 32

    def b_offset(step: int) -> int:
        return (step // 4) * (BN * 128) + (step % 4) * 32 if trans_b else step * 2048

    A_GROUP = WM * BK * 128 if trans_a else WM * 8192  # bytes from one consumer's rows to the next's

    # fmt: off
    @T.prim_func
    def main(a_arg: T.handle, b_arg: T.handle, c_arg: T.handle):
        A = T.match_buffer(a_arg, A_SHAPE, DT, align=16)
        B = T.match_buffer(b_arg, B_SHAPE, DT, align=16)
        C = T.match_buffer(c_arg, (M, N), DT, align=16)
        a_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        T.call_packed(_TENSOR_MAP, a_map, DT, 2, A.data, A_SHAPE[1], A_SHAPE[0], A_SHAPE[1] * 2, *A_BOX, *_SWIZZLED)
        b_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        T.call_packed(_TENSOR_MAP, b_map, DT, 2, B.data, B_SHAPE[1], B_SHAPE[0], B_SHAPE[1] * 2, *B_BOX, *_SWIZZLED)
        c_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        T.call_packed(_TENSOR_MAP, c_map, DT, 2, C.data, N, M, N * 2, 64, 64, *_STORED)

        T.device_entry()
        T.attr({"tirx.launch_bounds_min_blocks_per_sm": tiles.beside})
        ROWS = T.meta_var(T.truncdiv(M + (BM * SHARE - 1), BM * SHARE))  # of tiles, as clusters see them
        COLUMNS = T.meta_var(T.truncdiv(N + (BN - 1), BN))
        TILES = T.meta_var(ROWS * COLUMNS)
        CLUSTERS = T.meta_var(TILES if SPLIT > 1 else tiles.blocks // SHARE)
        DEPTH = T.meta_var(T.truncdiv(K + (BK - 1), BK))
        bx = T.cta_id([CLUSTERS * CLUSTER])
        rank = T.cta_id_in_cluster([CLUSTER]) if CLUSTER > 1 else 0
        group = T.warpgroup_id([CONSUMERS + 1])
        warp = T.warp_id_in_wg([4])
        lane = T.lane_id([32])

        pool = T.SMEMPool()
        As = pool.alloc(A_SMEM, DT, align=1024)
        Bs = pool.alloc(B_SMEM, DT, align=1024)
        Cs = pool.alloc((CONSUMERS, BUFFERS, 64, 64), DT, align=1024)
        partial = pool.alloc((BM if SPLIT > 1 else 1, PITCH), "float32", align=16)
        full = pool.alloc((STAGES,), "uint64", align=8)
        empty = pool.alloc((STAGES,), "uint64", align=8)
        pool.commit()

        if (group == 0) & (warp == 0) & (lane == 0):
            for i in T.unroll(STAGES):
                T.ptx.mbarrier.init.shared.b64(full.ptr_to([i]), T.uint32(1))
                T.ptx.mbarrier.init.shared.b64(empty.ptr_to([i]), T.uint32(CONSUMERS * SHARE))
            T.ptx.fence.mbarrier_init.release.cluster()
        if CLUSTER > 1:
            T.cuda.cluster_sync()
        else:
            T.cuda.cta_sync()

        stage: T.int32 = 0
        phase: T.int32 = 0
        tile: T.int32 = T.truncdiv(bx, CLUSTER)
        band: T.int32
        height: T.int32
        rest: T.int32
        tm: T.int32
        tn: T.int32
        first: T.int32 = 0  # steps along k, of this block
        last: T.int32 = DEPTH
        if SPLIT > 1:
            first = T.truncdiv(DEPTH * rank, SPLIT)
            last = T.truncdiv(DEPTH * (rank + 1), SPLIT)

        @T.inline
        def locate():
            band = T.truncdiv(tile, GROUP * COLUMNS)
            rest = T.truncmod(tile, GROUP * COLUMNS)
            height = T.min(ROWS - band * GROUP, GROUP)
            tn = T.truncdiv(rest, height)
            tm = band * GROUP + T.truncmod(rest, height)
            if SHARE > 1:
                tm = tm * SHARE + rank

        @T.inline
        def advance():
            stage = stage + 1
            if stage == STAGES:
                stage = 0
                phase = phase ^ 1

        @T.inline
        def load_a(kt):
            for i in T.unroll(A_LOADS):
                if trans_a:
                    T.ptx[_LOAD](As.ptr_to([stage, i, 0, 0]), T.address_of(a_map), tm * BM + i * 64, kt * BK, full.ptr_to([stage]))
                else:
                    T.ptx[_LOAD](As.ptr_to([stage, i, 0, 0]), T.address_of(a_map), kt * BK + i * 64, tm * BM, full.ptr_to([stage]))

        @T.inline
        def load_b(kt):
            for i in T.unroll(B_LOADS):
                if trans_b:
                    if SHARE > 1:
                        T.ptx[_MULTICAST](Bs.ptr_to([stage, i, rank * SHARED_B, 0]), T.address_of(b_map), kt * BK + i * 64, tn * BN + rank * SHARED_B, full.ptr_to([stage]), EVERYONE)
                    else:
                        T.ptx[_LOAD](Bs.ptr_to([stage, i, 0, 0]), T.address_of(b_map), kt * BK + i * 64, tn * BN, full.ptr_to([stage]))
                else:
                    if SHARE > 1:
                        T.ptx[_MULTICAST](Bs.ptr_to([stage, rank * B_LOADS + i, 0, 0]), T.address_of(b_map), tn * BN + (rank * B_LOADS + i) * 64, kt * BK, full.ptr_to([stage]), EVERYONE)
                    else:
                        T.ptx[_LOAD](Bs.ptr_to([stage, i, 0, 0]), T.address_of(b_map), tn * BN + i * 64, kt * BK, full.ptr_to([stage]))

        if group == CONSUMERS:
            T.ptx.setmaxnreg.dec.sync.aligned.u32(tiles.producer_registers)
            if warp == 0:
                if T.cuda.elect_sync():
                    while tile < TILES:
                        locate()
                        for kt in T.serial(last - first):
                            T.cuda.mbarrier_wait(empty.ptr_to([stage]), phase ^ 1)
                            T.ptx.mbarrier.arrive.expect_tx.shared.b64(full.ptr_to([stage]), T.uint32(STAGE_BYTES))
                            load_a(first + kt)
                            load_b(first + kt)
                            advance()
                        tile = tile + CLUSTERS
        else:
            T.ptx.setmaxnreg.inc.sync.aligned.u32(tiles.consumer_registers)
            acc = T.alloc_local((WM * NACC,), "float32")
            packed = T.alloc_local((4,), "uint32")
            a_base: T.uint32 = T.cuda.cvta_generic_to_shared(As.ptr_to([0, 0, 0, 0])) + T.Cast("uint32", group * A_GROUP)
            b_base: T.uint32 = T.cuda.cvta_generic_to_shared(Bs.ptr_to([0, 0, 0, 0]))
            e_base: T.uint32 = T.cuda.cvta_generic_to_shared(empty.ptr_to([0]))
            if SHARE > 1:
                # warp i of each consumer releases stages in block i of the cluster
                T.ptx.mapa.shared__cluster.u32(e_base, T.cuda.cvta_generic_to_shared(empty.ptr_to([0])), T.Cast("uint32", warp % SHARE))
            row: T.let = warp * 16 + lane % 16
            before: T.int32 = 0

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
                            T.ptx[MMA](*accumulators(acc, w),
                                       T.uint64(A_DESC) | T.Cast("uint64", ((a_base + T.Cast("uint32", stage * (BM * BK * 2) + a_offset(step, w))) >> 4) & T.uint32(0x3FFF)),
                                       T.uint64(B_DESC) | T.Cast("uint64", ((b_base + T.Cast("uint32", stage * (BN * BK * 2) + b_offset(step))) >> 4) & T.uint32(0x3FFF)),
                                       T.Not((kt == 0) & (step == 0)), 1, 1, int(trans_a), int(not trans_b))
                    T.ptx.wgmma.commit_group.sync.aligned()
                    T.ptx.wgmma.wait_group.sync.aligned(1)
                    if kt > 0:
                        release()
                    before = stage
                    advance()
                T.ptx.wgmma.wait_group.sync.aligned(0)
                release()

            @T.inline
            def store():  # registers, swizzled shared memory, TMA: 64 columns at a time
                for w in T.unroll(WM):
                    for s in T.unroll(BN // 64):
                        if (warp == 0) & (lane == 0):
                            T.ptx.cp.async_.bulk.wait_group.read(BUFFERS - 1)
                        T.cuda.warpgroup_sync(group + 1)
                        for p in T.unroll(4):
                            for q in T.unroll(4):
                                T.ptx[ROUND](packed[q], acc[w * NACC + s * 32 + p * 8 + q * 2 + 1], acc[w * NACC + s * 32 + p * 8 + q * 2])
                            T.ptx["stmatrix.sync.aligned.m8n8.x4.shared.b16"](
                                Cs.ptr_to([group, (w * (BN // 64) + s) % BUFFERS, row, ((p * 2 + lane // 16) ^ (lane % 8)) * 8]),
                                packed[0], packed[1], packed[2], packed[3])
                        T.ptx.fence.proxy.async_.shared__cta()
                        T.cuda.warpgroup_sync(group + 1)
                        if (warp == 0) & (lane == 0):
                            T.ptx[_STORE](T.address_of(c_map), tn * BN + s * 64, tm * BM + group * (64 * WM) + w * 64, Cs.ptr_to([group, (w * (BN // 64) + s) % BUFFERS, 0, 0]))
                            T.ptx.cp.async_.bulk.commit_group()

            @T.inline
            def share_partial():
                if first == last:
                    for i in T.unroll(WM * NACC):
                        acc[i] = T.float32(0)
                for w in T.unroll(WM):
                    for i in T.unroll(NACC):
                        partial[group * (64 * WM) + w * 64 + warp * 16 + lane // 4 + (i // 2 % 2) * 8, i // 4 * 8 + lane % 4 * 2 + i % 2] = acc[w * NACC + i]

            if SPLIT > 1:
                locate()
                if first < last:
                    multiply()
                share_partial()
            else:
                while tile < TILES:
                    locate()
                    multiply()
                    store()
                    tile = tile + CLUSTERS
                if (warp == 0) & (lane == 0):
                    T.ptx.cp.async_.bulk.wait_group(0)
        if CLUSTER > 1:
            T.cuda.cluster_sync()
        if SPLIT > 1:
            if group < CONSUMERS:
                at: T.int32 = (rank * CONSUMERS + group) * 128 + warp * 32 + lane
                total = T.alloc_local((8,), "float32")
                halves = T.alloc_local((4,), "uint32")
                while at < BM * RUNS:
                    r: T.int32 = T.truncdiv(at, RUNS)
                    column: T.int32 = T.truncmod(at, RUNS) * 8
                    if (tm * BM + r < M) & (tn * BN + column < N):
                        for i in T.unroll(8):
                            total[i] = T.float32(0)
                        for source in T.unroll(SPLIT):
                            T.cuda.func_call("tvmops_add_partial", T.address_of(total[0]), partial.ptr_to([r, column]), source, source_code=_READ_PARTIAL)
                        for q in T.unroll(4):
                            T.ptx[ROUND](halves[q], total[q * 2 + 1], total[q * 2])
                        T.ptx["st.global.v4.b32"](C.ptr_to([tm * BM + r, tn * BN + column]), halves[0], halves[1], halves[2], halves[3])
                    at = at + SPLIT * THREADS
            T.cuda.cluster_sync()
    # fmt: on
    function: tirx.PrimFunc = main
    return function
