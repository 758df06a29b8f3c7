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
to divide. It needs rows of a multiple of 16 bytes. m, n, k and the batch are known at run time
alone: one kernel serves every such shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx.script.builder import ir as builder

from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.gemm_tiles import PARTIAL_PAD, Tiles
from tvmops.schedules.cuda.words import c_call, do

_SHORT = {"float16": "f16", "bfloat16": "bf16", "float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2"}
_DEEP = {2: 16, 1: 32}  # k of a wgmma, by the bytes of an element
_LOAD = "cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes"
_MULTICAST = _LOAD + ".multicast::cluster"
_STORE = "cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group"
_TENSOR_MAP = "runtime.cuTensorMapEncodeTiled"
# The end of a tensor map's arguments: no interleaving, 128-byte swizzle, L2 promotion, zeros.
_SWIZZLED = (0, 3, 2, 0)
_STORED = (0, 3, 0, 0)
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


def _wide(value: Any) -> Any:
    return value if isinstance(value, int) else tirx.Cast("int64", value)


def tensor_map(array: Any, dtype: str, item: int, dims: Any, box: Any, ends: Any) -> Any:
    """Describe an array to the copy engine: sizes innermost first."""
    strides = [dims[0] * item]
    for size in dims[1:-1]:
        strides.append(_wide(strides[-1]) * size)
    var = builder.Bind(builder.tvm_stack_alloca("tensormap", 1), builder.handle("tensormap"))
    boxes = (*box, *[1] * (len(dims) - 2))
    steps = [1] * len(dims)
    do(
        builder.call_packed(
            _TENSOR_MAP, var, dtype, len(dims), array.data, *dims, *strides, *boxes, *steps, *ends
        )
    )
    return var


@dataclass(frozen=True)
class Form:
    """What is multiplied: how the arrays lie, and what follows the sum."""

    dtype: str
    trans_a: bool = False
    trans_b: bool = False
    batched: bool = False
    shared: str = "none"
    scales: str = ""  # of the sums: one for each operand ("tensor"), or one a row and one a column ("rows")
    bias: str = ""  # its dtype
    residual: bool = False
    activation: str = "none"
    out_dtype: str = ""  # as dtype

    @property
    def result(self) -> str:
        return self.out_dtype or self.dtype

    @property
    def item(self) -> int:
        """Bytes of an element of a and b."""
        return 1 if self.dtype.startswith("float8") else 2

    @property
    def stores_directly(self) -> bool:
        return self.result == "float32"

    @property
    def finishes(self) -> bool:
        return bool(self.scales or self.bias) or self.residual or self.activation != "none"


def _by_columns(depth: int) -> int:
    """Return wgmma's view of a matrix that lies with k along its rows, `depth` of them a stage."""
    return (1 << 62) | (64 << 32) | ((depth * 8) << 16)


def gemm(form: Form, tiles: Tiles) -> tirx.PrimFunc:
    """Return `main(a, b, [bias], [residual], c)`, float32 inside."""
    M, N, K = (tirx.Var(name, "int32") for name in "mnk")
    BATCH = tirx.Var("batch", "int32") if form.batched else 1
    trans_a, trans_b = form.trans_a, form.trans_b
    OUT, MMA_TYPE = form.result, _SHORT[form.dtype]
    # Elements of 8 bits travel in pairs, and k counts these: rows of 128 bytes are what is multiplied.
    DT = form.dtype if form.item == 2 else "bfloat16"
    PAIRS = K if form.item == 2 else T.truncdiv(K, 2)
    BM, BN, BK, STAGES = tiles.bm, tiles.bn, tiles.bk, tiles.stages
    CONSUMERS, WM, BUFFERS = tiles.consumers, tiles.blocks_a_group, tiles.store_buffers
    # Stores that may still read: none if the next tile begins with the buffer that this one ends with.
    UNREAD = BUFFERS - 1 if WM * (BN // 64) % BUFFERS == 0 else 0
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

    A_SHAPE, B_SHAPE = ((PAIRS, M) if trans_a else (M, PAIRS)), ((N, PAIRS) if trans_b else (PAIRS, N))
    A_ITEMS = (BATCH,) if form.batched and form.shared != "a" else ()
    B_ITEMS = (BATCH,) if form.batched and form.shared != "b" else ()
    C_ITEMS = (BATCH,) if form.batched else ()
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

    def declare() -> dict[str, Any]:
        if form.item == 1:
            shapes: dict[str, Any] = {"a": ("uint8", (M, K)), "b": ("uint8", (N, K))}
            rows, columns = ((M,), (N,)) if form.scales == "rows" else ((1,), (1,))
            shapes |= {"a_scale": ("float32", rows), "b_scale": ("float32", columns)}
        else:
            shapes = {"a": (DT, (*A_ITEMS, *A_SHAPE)), "b": (DT, (*B_ITEMS, *B_SHAPE))}
        shapes |= {"bias": (BIAS, (N,))} if form.bias else {}
        shapes |= {"residual": (OUT, (*C_ITEMS, M, N))} if form.residual else {}
        shapes |= {"c": (OUT, (*C_ITEMS, M, N))}
        return {
            name: builder.arg(
                name, builder.buffer(shape, dtype, align=4 if "scale" in name else 16, buffer_name=name)
            )
            for name, (dtype, shape) in shapes.items()
        }

    def map_of(array: Any, matrix: Any, items: Any, box: Any) -> Any:
        """Describe an operand to the copy engine."""
        return tensor_map(array, DT, 2, (matrix[1], matrix[0], *items), box, _SWIZZLED)

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
        do(c_call("void", "store_two", array, row, N, column, x, y, source=_STORE_TWO))

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
        arrays = T.meta_var(declare())
        A, B, C = T.meta_var(arrays["a"]), T.meta_var(arrays["b"]), T.meta_var(arrays["c"])
        a_map = T.meta_var(map_of(A, A_SHAPE, A_ITEMS, A_BOX))
        b_map = T.meta_var(map_of(B, B_SHAPE, B_ITEMS, B_BOX))
        c_map = T.meta_var(None if form.stores_directly else tensor_map(C, OUT, 2, (N, M, *C_ITEMS), (64, 64), _STORED))

        T.device_entry()
        T.attr({"tirx.launch_bounds_min_blocks_per_sm": tiles.beside})
        ROWS = T.meta_var(T.truncdiv(M + (BM * SHARE - 1), BM * SHARE))  # of tiles, as clusters see them
        COLUMNS = T.meta_var(T.truncdiv(N + (BN - 1), BN))
        TILES = T.meta_var(ROWS * COLUMNS * BATCH)
        CLUSTERS = T.meta_var(TILES if SPLIT > 1 else tiles.blocks // SHARE)
        DEPTH = T.meta_var(T.truncdiv(PAIRS + (BK - 1), BK))
        bx = T.cta_id([CLUSTERS * CLUSTER])
        rank = T.cta_id_in_cluster([CLUSTER]) if CLUSTER > 1 else 0
        part = T.meta_var(rank if SHARE > 1 else 0)  # of b, that this block loads for its cluster
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
            def store():  # registers, swizzled shared memory, TMA: 64 columns at a time
                for w in T.unroll(WM):
                    for s in T.unroll(BN // 64):
                        if (warp == 0) & (lane == 0):
                            T.ptx.cp.async_.bulk.wait_group.read(UNREAD)
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
                            T.ptx[_STORE.format(rank=len(C_ITEMS) + 2)](T.address_of(c_map), tn * BN + s * 64, tm * BM + group * (64 * WM) + w * 64, *([item] if form.batched else []), Cs.ptr_to([group, (w * (BN // 64) + s) % BUFFERS, 0, 0]))
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
                    if form.finishes or form.stores_directly:
                        finish_all()
                    if not form.stores_directly:
                        store()
                    tile = tile + CLUSTERS
                if not form.stores_directly:
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
                    target: T.int32 = tm * BM + r
                    if (target < M) & (tn * BN + column < N):
                        for i in T.unroll(8):
                            total[i] = T.float32(0)
                        for source in T.unroll(SPLIT):
                            T.cuda.func_call("tvmops_add_partial", T.address_of(total[0]), partial.ptr_to([r, column]), source, source_code=_READ_PARTIAL)
                        for q in T.unroll(4):
                            T.ptx[ROUND](halves[q], total[q * 2 + 1], total[q * 2])
                        T.ptx["st.global.v4.b32"](C.ptr_to([target, tn * BN + column]), halves[0], halves[1], halves[2], halves[3])
                    at = at + SPLIT * THREADS
            T.cuda.cluster_sync()
    # fmt: on
    function: tirx.PrimFunc = main
    return function
