from __future__ import annotations

import random
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.emulated import TensorMap, emulated, needs_emulator
from tvmops.measure.cuda import compile_module
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.attention_sizes import sizes_of
from tvmops.schedules.cuda.attention_varlen import VarlenAttention
from tvmops.schedules.cuda.kernels.attention_packed import PackedKernel
from tvmops.schedules.cuda.kernels.attention_sequences import SequenceWalk
from tvmops.schedules.cuda.kernels.attention_tiles import END, FOUND, Tiles, shared_bytes
from tvmops.schedules.cuda.words import Scalar, when
from tvmops.signatures.dtypes import decode
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = VarlenAttention()
H200 = target("nvidia-h200")
BLOCKS = 3
MOST = 256  # items of a block
Lengths: TypeAlias = list[tuple[int, int]]  # of queries and of keys, of each sequence


def attention(**changes: object) -> Workload:
    fields = {"batch": 4, "heads": 8, "kv_heads": 8, "q_len": 1024, "kv_len": 1024, "head_dim": 128}
    packed = {"layout": "thd", "total_q": 2000, "total_k": 2000, "dtype": "bfloat16"}
    return workload("attention", **{**fields, **packed, **changes})


def tiles(bn: int, together: int, own_out: bool = True) -> Tiles:
    return Tiles(2, bn, 2, take_turns=own_out, own_out=own_out, together=together, blocks=BLOCKS)


def described(array: NDArray[np.uint16], rows: int) -> TensorMap:
    """Return `array` as the kernel's host code describes it to the copy engine."""
    total, heads, head_dim = array.shape
    pitch = 2 * head_dim * heads
    apart = (2 * head_dim, pitch, pitch, 2**64 // END - pitch)
    return TensorMap.of(array, [head_dim, heads, END, total + 1, END + 1], [64, 1, rows, 1, 1], pitches=apart)


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (attention(), "nvidia-h200", True),
        (attention(causal=True, kv_heads=2, head_dim=64, dtype="float16"), "nvidia-h100", True),
        (attention(kv_len=77, total_k=300, head_dim=256), "nvidia-h200", True),
        (attention().generic(), "nvidia-h200", True),
        (attention(q_len=1, total_q=4), "nvidia-h200", True),  # decoding
        (attention(layout="bhld", total_q=0, total_k=0), "nvidia-h200", False),
        (attention(head_dim=100), "nvidia-h200", False),
        (attention(dtype="float32"), "nvidia-h200", False),
        (attention(), "nvidia-a100", False),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


def test_no_other_template_takes_its_workloads() -> None:
    for work in (attention(), attention(q_len=1, total_q=4)):
        assert [template.name for template in templates_for(work, H200)] == [TEMPLATE.name]


@pytest.mark.parametrize("head_dim", [8, 64, 80, 128, 256])
@pytest.mark.parametrize("causal", [False, True])
def test_the_default_is_legal(head_dim: int, causal: bool) -> None:
    work = attention(head_dim=head_dim, causal=causal)
    assert TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)
    (generic,) = TEMPLATE.generic(work.generic(), H200)
    assert generic.ranges == {} and generic.config in TEMPLATE.space(work.generic(), H200)


def test_one_kernel_serves_all_sizes() -> None:
    other = attention(batch=9, heads=6, kv_heads=2, q_len=7, total_q=63, kv_len=99, total_k=99)
    assert TEMPLATE.kernel_workload(attention()) == TEMPLATE.kernel_workload(other)


@needs_nvcc
@pytest.mark.parametrize(
    "fields, changes", [({"causal": True}, {}), ({"head_dim": 64}, {"consumers": 3}), ({"head_dim": 256}, {})]
)
def test_the_code_is_what_was_meant(fields: dict[str, object], changes: dict[str, int]) -> None:
    work = attention(**fields)
    config = TEMPLATE.default(work, H200).replace(**changes)
    cubin = compiled(TEMPLATE, work, H200, config)
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    assert "cp.async.bulk.tensor.5d" in cubin.source and "find_tile" in cubin.source


def visits(lengths: Lengths, shape: Tiles, folder: Path, **fields: object) -> NDArray[np.int32]:
    """Run the walk of each block: what it takes, in order, as sequence, first row, head, tiles of keys."""
    work = attention(**fields)
    kernel = PackedKernel(sizes_of(work.generic().replace(heads=work["heads"])), shape, 0, 0)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        kernel.q_ends, kernel.k_ends = (
            T.arg(name, T.buffer((kernel.offsets,), "int32", buffer_name=name))
            for name in ("cu_seqlens_q", "cu_seqlens_k")
        )
        out = T.arg("out", T.buffer((shape.blocks, MOST, 4), "int32", buffer_name="out"))
        T.device_entry()
        kernel.block, kernel.lane, _ = T.cta_id([shape.blocks]), T.lane_id([32]), T.warp_id([1])
        pool = SMEMPool()
        kernel.found = pool.alloc((FOUND,), "int32", align=4)
        pool.commit()
        walk, row = SequenceWalk(kernel), Scalar(0)
        with T.While(walk.more()):
            walk.locate()
            with when(kernel.lane == 0):
                for place, value in enumerate((walk.sequence, walk.first_row, walk.head, walk.count)):
                    T.buffer_store(out, value, [kernel.block, row(), place])
            row.set(row() + 1)
            walk.advance()
    _, (cubin,) = compile_module(IRModule({"main": builder.get().with_attr("global_symbol", "main")}), H200)
    found = np.full((shape.blocks, MOST, 4), -1, np.int32)
    ends = dict(zip(("cu_seqlens_q", "cu_seqlens_k"), offsets_of(lengths)))
    emulated(cubin, folder)(
        shape.blocks, {**ends, "out": found, "offsets": len(lengths) + 1}, shared_bytes=64
    )
    return found


def offsets_of(lengths: Lengths) -> list[NDArray[np.int32]]:
    return [np.cumsum([0, *each], dtype=np.int32) for each in zip(*lengths)]


RNG = random.Random(0)


# Lengths of queries and keys of each sequence: none, one, whole tiles, a tile and one, fewer keys than
# queries and the other way; more sequences than a warp has threads.
ALIKE = [(n, n) for n in (0, 1, 128, 129, 200, 0, 64)]
UNLIKE = [(3, 200), (130, 257), (0, 40), (150, 20), (17, 0), (1, 1)]
MANY = [(n % 3, n % 5) for n in range(70)]
TOP_LEFT = {"causal": True, "align": "top-left"}


def run(work: Workload, shape: Tiles, inputs: list[NDArray[Any]], folder: Path) -> None:
    """Compare an emulated run, whose result a guard follows, with the reference."""
    op, dtype, general = op_of(work), str(work["dtype"]), work.generic()
    names = [spec.name for spec in op.inputs(work)]
    q, k, v, *others = inputs
    out = np.full((q.shape[0] + 1, *q.shape[1:]), 0x7FFF, np.uint16)
    _, (cubin,) = compile_module(TEMPLATE.kernel(general, shape).module(), H200)
    (page_size,) = work.dims("page_size")
    box = min(page_size, shape.bn) if page_size else shape.bn
    arrays = [array.view(np.uint16).reshape(-1, *array.shape[-2:]) for array in (q, k, v)]
    maps = [described(array, rows) for array, rows in zip((*arrays, out[:-1]), (64, box, box, 64))]
    arguments = {
        **dict(zip(("v_1", "v", "v_2", "v_3"), maps)),
        **dict(zip(names[3:], others)),
    }  # keys come first
    arguments |= dict(zip(("heads", "kv_heads"), work.dims("heads", "kv_heads")))
    arguments |= {"offsets": len(others[0]), "scale": op.scalars(work)[0], "columns": others[-1].shape[-1]}
    shared = shared_bytes(work.dims("head_dim")[0], shape, packed=True) + 1024
    emulated(cubin, folder)(BLOCKS, arguments, shared_bytes=shared)
    (right,) = op.reference(work, *(decode(array, dtype) for array in (q, k, v)), *others)
    found = decode(out[:-1].view(q.dtype), dtype)
    np.testing.assert_allclose(found, right, rtol=0, atol=op.tolerance(work))
    assert (out[-1] == 0x7FFF).all()


class TestEmulated:
    pytestmark = needs_emulator

    @pytest.mark.parametrize(
        "lengths, together, fields",
        [
            ([(n, n) for n in (2000, 100, 0, 900, 1500, 128)], 4, {"heads": 6, "causal": True}),
            ([(RNG.randrange(300), RNG.randrange(500)) for _ in range(70)], 8, {"heads": 3, "causal": True}),
            ([(RNG.randrange(300), RNG.randrange(3000)) for _ in range(40)], 4, {"heads": 4}),
        ],
    )
    def test_each_tile_is_taken_once_and_shares_are_fair(
        self, lengths: Lengths, together: int, fields: dict[str, object], tmp_path: Path
    ) -> None:
        shape = Tiles(2, 128, 2, take_turns=True, own_out=True, together=together, blocks=7)
        found = visits(lengths, shape, tmp_path, **fields, kv_heads=fields["heads"])
        wanted = {}
        for sequence, (q_len, kv_len) in enumerate(lengths):
            for row in range(0, q_len, 128):
                seen = min(row + 128 + kv_len - q_len, kv_len) if "causal" in fields else kv_len
                for head in range(int(str(fields["heads"]))):
                    wanted[sequence, row, head] = max(-(-seen // 128), 1)
        taken = [tuple(item) for block in found for item in block if item[0] >= 0]
        assert len(taken) == len(wanted) and {item[:3]: item[3] for item in taken} == wanted
        shares = np.where(found[..., 0] >= 0, found[..., 3], 0).sum(axis=1)
        assert shares.max() <= 1.1 * shares.mean()

    @pytest.mark.parametrize(
        "lengths, fields, shape",
        [
            (ALIKE, {"causal": True, "heads": 4, "kv_heads": 2, "head_dim": 64}, tiles(128, 3)),
            (UNLIKE, {"causal": True, "heads": 2, "kv_heads": 1, "dtype": "float16"}, tiles(128, 3)),
            (UNLIKE, {"heads": 3, "kv_heads": 3, "head_dim": 64}, tiles(64, 2, own_out=False)),
            (MANY, {**TOP_LEFT, "heads": 2, "kv_heads": 2, "head_dim": 64}, tiles(64, 8)),
        ],
    )
    def test_sequences_do_not_see_each_other(
        self, lengths: Lengths, fields: dict[str, object], shape: Tiles, tmp_path: Path
    ) -> None:
        """Values of a neighbour are NaN to any kernel that takes them; its results are not written."""
        q_ends, k_ends = offsets_of(lengths)
        most, totals = [max(each) for each in zip(*lengths)], (int(q_ends[-1]), int(k_ends[-1]))
        work = attention(
            batch=len(lengths), q_len=most[0], kv_len=most[1], total_q=totals[0], total_k=totals[1], **fields
        )
        q, k, v, *_ = op_of(work).random_inputs(work, seed=1)
        v.view(np.uint16)[k_ends[1] : k_ends[2]] = 0x7FFF  # NaN
        run(work, shape, [q, k, v, q_ends, k_ends], tmp_path)

    @pytest.mark.parametrize(
        "page_size, fields, shape",
        [
            (16, {"causal": True, "heads": 4, "kv_heads": 2}, tiles(64, 8)),
            (128, {"heads": 1, "kv_heads": 1, "dtype": "float16"}, tiles(64, 8, own_out=False)),
        ],
    )
    def test_pages_are_read_as_far_as_they_are_filled(
        self, page_size: int, fields: dict[str, object], shape: Tiles, tmp_path: Path
    ) -> None:
        """What no sequence has is NaN; what a table says of pages that are not needed is nonsense."""
        lengths = [(3, 200), (130, 257), (0, 40), (20, 150), (17, 0), (1, 1)]
        q_ends, of_keys = offsets_of(lengths)[0], np.array(lengths, np.int32)[:, 1].copy()
        work = attention(
            batch=6, q_len=130, kv_len=260, total_q=int(q_ends[-1]), total_k=0, head_dim=64,
            lengths=True, pages=6 * -(-260 // page_size) + 1, page_size=page_size, **fields,
        )  # fmt: skip
        q, k, v, _, _, table = op_of(work).random_inputs(work, seed=1)
        unused = np.ones(v.shape[:2], bool)
        for pages, length in zip(table, of_keys):
            for key in range(length):
                unused[pages[key // page_size], key % page_size] = False
        v.view(np.uint16)[unused] = 0x7FFF
        work_table = np.where(np.arange(table.shape[1]) * page_size < of_keys[:, None], table, 0x7FFFFFF)
        inputs = [q, k, v, q_ends, of_keys]
        run(work, shape, [*inputs, work_table.astype(np.int32)], tmp_path)
