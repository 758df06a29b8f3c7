"""The kernel of `WgmmaGemm`, for Hopper GPUs (sm_90a), in TVM's kernel language.

One thread of a producer warpgroup fills a ring of shared-memory stages through the bulk copy
engine (TMA), 128-byte swizzled; consumer warpgroups multiply from there with wgmma, float32
accumulators in registers. Blocks stay and take tile after tile, neighbours in L2 together;
the producer is by then at work on the next tile. Bias, residual and activation are applied to
the sums in registers. Results go through shared memory and TMA, float32 straight to memory.

A cluster of blocks serves one of two ends. With `cluster` > 1 its blocks, one above the
other, each load a part of their common tile of b for all. With `split_k` > 1 its blocks add
up one tile, each a stretch of k; the partial sums are exchanged through the cluster's shared
memory and added in a fixed order, so that no workspace is needed and results repeat.

TMA leaves out what lies beyond an array when it stores, and reads zeros there: no shape needs
to divide. It needs rows of a multiple of 16 bytes: of an operand with others a kernel before this
one makes a copy with such rows in a workspace, and results with others are stored row by row.
m, n, k and the batch are known at run time alone: one kernel serves every such shape.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.gemm_tiles import PARTIAL_PAD, Tiles
from tvmops.schedules.cuda.kernels.gemm_arrays import Arrays, Form
from tvmops.schedules.cuda.words import PROGRAMMATIC_LAUNCH, c_call, do

_SHORT = {"float16": "f16", "bfloat16": "bf16", "float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2"}
_DEEP = {2: 16, 1: 32}  # k of a wgmma, by the bytes of an element
_LOAD = "cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes"
_MULTICAST = _LOAD + ".multicast::cluster"
_STORE = "cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group"
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


_ELEMENT = """
__forceinline__ __device__ float element_{dtype}(const void* array, int row, int pitch, int column) {{
  const unsigned {kind}* at = static_cast<const unsigned {kind}*>(array);
  const unsigned {kind} bits = __ldg(at + static_cast<long long>(row) * pitch + column);
  return {value};
}}
"""
_VALUES = {
    "bfloat16": ("short", "__uint_as_float(static_cast<unsigned>(bits) << 16)"),
    "float16": ("short", "__half2float(__ushort_as_half(bits))"),
    "float32": ("int", "__uint_as_float(bits)"),
}
_STORE_TWO = """
__forceinline__ __device__ void store_two(float* array, int row, int pitch, int column, float x, float y) {
  *reinterpret_cast<float2*>(array + static_cast<long long>(row) * pitch + column) = make_float2(x, y);
}
"""
_STORE_TWO_APART = """
__forceinline__ __device__ void store_two_apart(float* array, int row, int pitch, int column, float x, float y) {
  float* at = array + static_cast<long long>(row) * pitch + column;
  at[0] = x;
  if (column + 1 < pitch) at[1] = y;
}
"""
_STORE_APART = """
__forceinline__ __device__ void store_apart_{dtype}(void* array, int row, int pitch, int column, const float* sums) {{
  {kind}* at = static_cast<{kind}*>(array) + static_cast<long long>(row) * pitch + column;
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (column + i < pitch) at[i] = {rounded};
}}
"""
_ROUNDED = {
    "float32": ("float", "sums[i]"),
    "float16": ("half", "__float2half_rn(sums[i])"),
    "bfloat16": ("nv_bfloat16", "__float2bfloat16_rn(sums[i])"),
}
# A warp stores 16 rows of 64 elements of a swizzled tile, from row `first` on, `height` rows of it, to rows
# that begin anywhere: words where they are aligned, and what is left at both ends.
_STORE_ROWS = """
__forceinline__ __device__ void store_rows(void* array, int row, int height, int pitch, int column,
                                           const void* tile, int first, int lane) {
  const char* from = static_cast<const char*>(tile) + 128 * first + 4 * (lane & 3);
  unsigned words[16];
#pragma unroll
  for (int i = 0; i < 16; ++i)
    words[i] = *reinterpret_cast<const unsigned*>(from + 128 * i + ((lane >> 2 ^ (i & 7)) << 4));
  const int left = min(pitch - column, 64);
  unsigned short* to = static_cast<unsigned short*>(array) + static_cast<long long>(row + first) * pitch + column;
#pragma unroll
  for (int i = 0; i < 16; ++i, to += pitch) {
    const int before = __shfl_up_sync(0xFFFFFFFFu, static_cast<int>(words[i]), 1);
    const int odd = static_cast<int>(reinterpret_cast<unsigned long long>(to) >> 1 & 1);
    const unsigned word = odd ? static_cast<unsigned>(before) >> 16 | words[i] << 16 : words[i];
    const int low = 2 * lane - odd;
    if (first + i < height) {
      if (low >= 0 && low + 1 < left) *reinterpret_cast<unsigned*>(to + low) = word;
      else if (low >= 0 && low < left) to[low] = word;
      else if (low < 0 && left > 0) to[0] = word >> 16;
      if (odd && lane == 31 && left == 64) to[63] = words[i] >> 16;
    }
  }
}
"""


def store_rows(
    array: Any, row: Any, height: Any, pitch: Any, column: Any, tile: Any, warp: Any, lane: Any
) -> None:
    """Let a warp store its 16 rows of a tile, whose first is `row` of the array, `height` before the last."""
    do(
        c_call(
            "void", "store_rows", array, row, height, pitch, column, tile, warp * 16, lane, source=_STORE_ROWS
        )
    )


def _by_columns(depth: int) -> int:
    """Return wgmma's view of a matrix that lies with k along its rows, `depth` of them a stage."""
    return (1 << 62) | (64 << 32) | ((depth * 8) << 16)


def gemm(form: Form, tiles: Tiles) -> tirx.PrimFunc:
    """Return `main(a, b, [bias], [residual], c)`, float32 inside."""
    arrays_of = Arrays(form)
    M, N, K, BATCH = arrays_of.m, arrays_of.n, arrays_of.pairs, arrays_of.batch
    trans_a, trans_b = form.trans_a, form.trans_b
    DT, OUT, MMA_TYPE = arrays_of.dtype, form.result, _SHORT[form.dtype]
    BM, BN, BK, STAGES = tiles.bm, tiles.bn, tiles.bk, tiles.stages
    CONSUMERS, WM, BUFFERS = tiles.consumers, tiles.blocks_a_group, tiles.store_buffers
    # Stores that may still read: none if the next tile begins with the buffer that this one ends with.
    UNREAD = BUFFERS - 1 if WM * (BN // 64) % BUFFERS == 0 else 0
    SHARE, SPLIT, GROUP = tiles.cluster, tiles.split_k, tiles.group
    CLUSTER, CHAINED = SHARE * SPLIT, bool(tiles.chained)
    PANELS = BK // 64  # swizzled columns of a stage
    NACC = BN // 2
    STAGE_BYTES = (BM + BN) * BK * 2
    SHARED_B = BN // SHARE  # columns of b that this block loads for its cluster
    EVERYONE = (1 << SHARE) - 1
    THREADS = 128 * CONSUMERS
    RUNS = BN // 8  # of 16 bytes in a row of a tile
    PITCH = BN + PARTIAL_PAD

    A_ITEMS, B_ITEMS, C_ITEMS = (arrays_of.items[name] for name in "abc")
    BIAS, RESIDUAL = form.bias or DT, form.residual
    A_SMEM = (STAGES, BM // 64, BK, 64) if trans_a else (STAGES, PANELS, BM, 64)
    B_SMEM = (STAGES, PANELS, BN, 64) if trans_b else (STAGES, BN // 64, BK, 64)
    A_BOX = (64, BK if trans_a else BM)
    B_BOX = (64, SHARED_B if trans_b else BK)
    A_DESC = _by_columns(BK) if trans_a else _BY_K
    B_DESC = _BY_K if trans_b else _by_columns(BK)
    A_LOADS = BM // 64 if trans_a else PANELS
    B_LOADS = PANELS if trans_b else SHARED_B // 64
    MMA = f"wgmma.mma_async.sync.aligned.m64n{BN}k{_DEEP[form.item]}.f32.{MMA_TYPE}.{MMA_TYPE}"
    MAJOR = (int(trans_a), int(not trans_b)) if form.item == 2 else ()  # 8 bits lie along k always
    ROUND = f"cvt.rn.{_SHORT.get(OUT, 'bf16')}x2.f32"

    def load(
        ring: Any, at: Any, view: Any, column: Any, row: Any, item: Any, barrier: Any, shares: bool
    ) -> None:
        """Begin to copy a box."""
        ends = (barrier, EVERYONE) if shares else (barrier,)
        kind = _MULTICAST if shares else _LOAD
        place = (column, row, *item)
        do(T.ptx[kind.format(rank=len(place))](ring.ptr_to([*at]), T.address_of(view), *place, *ends))

    def a_item(item: Any) -> tuple[Any, ...]:
        return (item,) if A_ITEMS else ()

    def b_item(item: Any) -> tuple[Any, ...]:
        return (item,) if B_ITEMS else ()

    def finish(sums: Any, at: Any, arrays: Any, row: Any, column: Any) -> None:
        """Apply the epilogue to one sum, of row `row` of all matrices."""
        value = sums[at]
        if form.scales:
            by_rows = form.scales == "rows"
            value = value * element("float32", arrays["a_scale"].data, 0, 0, row if by_rows else 0)
            value = value * element("float32", arrays["b_scale"].data, 0, 0, column if by_rows else 0)
        if form.bias:
            value = value + element(BIAS, arrays["bias"].data, 0, N, column)
        if form.residual:
            value = value + element(OUT, arrays["residual"].data, row, N, column)
        T.buffer_store(sums, activate(form.activation, value), [at])

    def element(dtype: str, array: Any, row: Any, pitch: Any, column: Any) -> Any:
        kind, value = _VALUES[dtype]
        source = _ELEMENT.format(dtype=dtype, kind=kind, value=value)
        return c_call("float32", f"element_{dtype}", array, row, pitch, column, source=source)

    def store_two(array: Any, row: Any, column: Any, x: Any, y: Any) -> None:
        name, source = ("store_two_apart", _STORE_TWO_APART) if form.loose else ("store_two", _STORE_TWO)
        do(c_call("void", name, array, row, N, column, x, y, source=source))

    def store_apart(array: Any, row: Any, column: Any, sums: Any) -> None:
        kind, rounded = _ROUNDED[OUT]
        source = _STORE_APART.format(dtype=OUT, kind=kind, rounded=rounded)
        do(c_call("void", f"store_apart_{OUT}", array, row, N, column, T.address_of(sums[0]), source=source))

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
    def main() -> None:
        arrays = T.meta_var(arrays_of.declare(workspace=bool(form.pads)))
        C = T.meta_var(arrays["c"])
        a_map = T.meta_var(arrays_of.map_of("a", arrays, A_BOX))
        b_map = T.meta_var(arrays_of.map_of("b", arrays, B_BOX))
        c_map = T.meta_var(arrays_of.map_of_result(C) if form.stores_by_tma else None)
        copied = T.meta_var(arrays_of.make_copies(arrays, 8 * tiles.multiprocessors, CHAINED))

        T.device_entry()
        T.attr({"tirx.launch_bounds_min_blocks_per_sm": tiles.beside})
        ROWS = T.meta_var(T.truncdiv(M + (BM * SHARE - 1), BM * SHARE))  # of tiles, as clusters see them
        COLUMNS = T.meta_var(T.truncdiv(N + (BN - 1), BN))
        TILES = T.meta_var(ROWS * COLUMNS * BATCH)
        CLUSTERS = T.meta_var(TILES if SPLIT > 1 else tiles.blocks // SHARE)
        DEPTH = T.meta_var(T.truncdiv(K + (BK - 1), BK))
        bx = T.cta_id([CLUSTERS * CLUSTER])
        rank = T.cta_id_in_cluster([CLUSTER]) if CLUSTER > 1 else 0
        part = T.meta_var(rank if SHARE > 1 else 0)  # of a tile of b, that this block loads
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
            if CHAINED:
                T.ptx.prefetch.tensormap(T.address_of(a_map))
                T.ptx.prefetch.tensormap(T.address_of(b_map))
            T.ptx.fence.mbarrier_init.release.cluster()
        if CLUSTER > 1:
            T.cuda.cluster_sync()
        else:
            T.cuda.cta_sync()
        if CHAINED:
            T.ptx.griddepcontrol.launch_dependents()
            T.ptx.griddepcontrol.wait()

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

        @T.inline
        def locate():
            if form.batched:
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

        @T.inline
        def advance():
            stage = stage + 1  # type: ignore[has-type]
            if stage == STAGES:
                stage = 0
                phase = phase ^ 1  # type: ignore[has-type]

        @T.inline
        def load_a(kt):
            if trans_a:
                for i in T.unroll(A_LOADS):
                    load(As, (stage, i, 0, 0), a_map, tm * BM + i * 64, kt * BK, a_item(item), full.ptr_to([stage]), False)
            else:
                for i in T.unroll(A_LOADS):
                    load(As, (stage, i, 0, 0), a_map, kt * BK + i * 64, tm * BM, a_item(item), full.ptr_to([stage]), False)

        @T.inline
        def load_b(kt):
            if trans_b:
                for i in T.unroll(B_LOADS):
                    load(Bs, (stage, i, part * SHARED_B, 0), b_map, kt * BK + i * 64, tn * BN + part * SHARED_B, b_item(item), full.ptr_to([stage]), SHARE > 1)
            else:
                for i in T.unroll(B_LOADS):
                    load(Bs, (stage, part * B_LOADS + i, 0, 0), b_map, tn * BN + (part * B_LOADS + i) * 64, kt * BK, b_item(item), full.ptr_to([stage]), SHARE > 1)

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
            if SPLIT > 1:  # until partial sums are there, and until they are read
                T.cuda.cluster_sync()
                T.cuda.cluster_sync()
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
                                   T.Not((kt == 0) & (step == 0)), 1, 1, *MAJOR)
                    T.ptx.wgmma.commit_group.sync.aligned()
                    T.ptx.wgmma.wait_group.sync.aligned(1)
                    if kt > 0:
                        release()
                    before = stage
                    advance()
                T.ptx.wgmma.wait_group.sync.aligned(0)
                release()

            @T.inline
            def finish_all():  # and where it goes directly, store
                for w in T.unroll(WM):
                    for half in T.unroll(2):
                        r: T.int32 = tm * BM + group * (64 * WM) + w * 64 + warp * 16 + half * 8 + T.truncdiv(lane, 4)
                        if r < M:
                            for j in T.unroll(BN // 8):
                                column: T.int32 = tn * BN + j * 8 + lane % 4 * 2
                                if column < N:
                                    if form.finishes:
                                        for e in T.unroll(2):
                                            finish(acc, w * NACC + j * 4 + half * 2 + e, arrays, item * M + r, T.min(column + e, N - 1))
                                    if form.stores_directly:
                                        store_two(C.data, item * M + r, column, acc[w * NACC + j * 4 + half * 2], acc[w * NACC + j * 4 + half * 2 + 1])

            @T.inline
            def round_to(buffer, w, s):  # 64 columns of sums to swizzled shared memory
                for p in T.unroll(4):
                    for q in T.unroll(4):
                        T.ptx[ROUND](packed[q], acc[w * NACC + s * 32 + p * 8 + q * 2 + 1], acc[w * NACC + s * 32 + p * 8 + q * 2])
                    T.ptx["stmatrix.sync.aligned.m8n8.x4.shared.b16"](
                        Cs.ptr_to([group, buffer, row, ((p * 2 + lane // 16) ^ (lane % 8)) * 8]),
                        packed[0], packed[1], packed[2], packed[3])

            @T.inline
            def store():
                for w in T.unroll(WM):
                    for s in T.unroll(BN // 64):
                        if (warp == 0) & (lane == 0):
                            T.ptx.cp.async_.bulk.wait_group.read(UNREAD)
                        T.cuda.warpgroup_sync(group + 1)
                        round_to((w * (BN // 64) + s) % BUFFERS, w, s)
                        T.ptx.fence.proxy.async_.shared__cta()
                        T.cuda.warpgroup_sync(group + 1)
                        if (warp == 0) & (lane == 0):
                            T.ptx[_STORE.format(rank=len(C_ITEMS) + 2)](T.address_of(c_map), tn * BN + s * 64, tm * BM + group * (64 * WM) + w * 64, *([item] if form.batched else []), Cs.ptr_to([group, (w * (BN // 64) + s) % BUFFERS, 0, 0]))
                            T.ptx.cp.async_.bulk.commit_group()

            @T.inline
            def store_loosely():  # each warp the rows that it rounded
                for w in T.unroll(WM):
                    for s in T.unroll(BN // 64):
                        round_to((w * (BN // 64) + s) % BUFFERS, w, s)
                        T.cuda.warp_sync()
                        store_rows(C.data, item * M + tm * BM + group * (64 * WM) + w * 64, M - (tm * BM + group * (64 * WM) + w * 64), N, tn * BN + s * 64, Cs.ptr_to([group, (w * (BN // 64) + s) % BUFFERS, 0, 0]), warp, lane)
                        T.cuda.warp_sync()

            @T.inline
            def share_partial():
                if first == last:
                    for i in T.unroll(WM * NACC):
                        acc[i] = T.float32(0)
                for w in T.unroll(WM):
                    for i in T.unroll(NACC):
                        partial[group * (64 * WM) + w * 64 + warp * 16 + lane // 4 + (i // 2 % 2) * 8, i // 4 * 8 + lane % 4 * 2 + i % 2] = acc[w * NACC + i]

            @T.inline
            def add_partials():  # of this block's stretch of the tile
                at: T.int32 = (rank * CONSUMERS + group) * 128 + warp * 32 + lane
                total = T.alloc_local((8,), "float32")
                halves = T.alloc_local((4,), "uint32")
                while at < BM * RUNS:
                    r: T.int32 = T.truncdiv(at, RUNS)
                    column: T.int32 = T.truncmod(at, RUNS) * 8
                    target: T.int32 = tm * BM + r
                    if (target < M) & (tn * BN + column < N):
                        for i in T.unroll(8):
                            total[i] = T.float32(0)
                        for source in T.unroll(SPLIT):
                            T.cuda.func_call("tvmops_add_partial", T.address_of(total[0]), partial.ptr_to([r, column]), source, source_code=_READ_PARTIAL)
                        if form.finishes:
                            for e in T.unroll(8):
                                finish(total, e, arrays, item * M + target, T.min(tn * BN + column + e, N - 1))
                        place = T.meta_var([item, target] if form.batched else [target])
                        if form.loose:
                            store_apart(C.data, item * M + target, tn * BN + column, total)
                        elif form.stores_directly:
                            for half in T.unroll(2):
                                T.ptx["st.global.v4.f32"](C.ptr_to([*place, tn * BN + column + half * 4]), total[half * 4], total[half * 4 + 1], total[half * 4 + 2], total[half * 4 + 3])
                        else:
                            for q in T.unroll(4):
                                T.ptx[ROUND](halves[q], total[q * 2 + 1], total[q * 2])
                            T.ptx["st.global.v4.b32"](C.ptr_to([*place, tn * BN + column]), halves[0], halves[1], halves[2], halves[3])
                    at = at + SPLIT * THREADS

            if SPLIT > 1:
                locate()
                if first < last:
                    multiply()
                share_partial()
                T.cuda.cluster_sync()
                add_partials()
                T.cuda.cluster_sync()
            else:
                while tile < TILES:
                    locate()
                    multiply()
                    if form.finishes or form.stores_directly:
                        finish_all()
                    if form.stores_by_tma:
                        store()
                    elif not form.stores_directly:
                        store_loosely()
                    tile = tile + CLUSTERS
                if form.stores_by_tma:
                    if (warp == 0) & (lane == 0):
                        T.ptx.cp.async_.bulk.wait_group(0)
        if SHARE > 1:
            T.cuda.cluster_sync()
    # fmt: on
    function: tirx.PrimFunc = main.with_attr(*PROGRAMMATIC_LAUNCH) if CHAINED else main
    return function
