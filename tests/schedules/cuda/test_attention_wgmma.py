from __future__ import annotations

import random

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm import IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.attention_sizes import sizes_of
from tvmops.schedules.cuda.attention_wgmma import WgmmaAttention, tiles_of
from tvmops.schedules.cuda.kernels.attention_flash import FlashKernel
from tvmops.schedules.cuda.kernels.attention_tiles import IN_PAIRS, Tiles
from tvmops.schedules.cuda.kernels.attention_walk import Walk
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = WgmmaAttention()
H200 = target("nvidia-h200")


def attention(**changes: object) -> Workload:
    fields = {"batch": 2, "heads": 8, "kv_heads": 8, "q_len": 1024, "kv_len": 1024, "head_dim": 128}
    return workload("attention", **{**fields, "dtype": "bfloat16", **changes})


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (attention(), "nvidia-h200", True),
        (attention(dtype="float16", head_dim=64, causal=True), "nvidia-h100", True),
        (attention(kv_heads=2, q_len=1, kv_len=77), "nvidia-h200", True),
        (attention(head_dim=80), "nvidia-h200", True),
        (attention().generic(), "nvidia-h200", True),
        (attention(head_dim=100), "nvidia-h200", False),  # rows of 200 bytes: the copy engine takes 16s
        (attention(head_dim=264), "nvidia-h200", False),
        (attention(lengths=True), "nvidia-h200", True),
        (attention(mask="bool"), "nvidia-h200", True),
        (attention(layout="blhd"), "nvidia-h200", False),
        (attention(lengths=True, pages=512, page_size=16), "nvidia-h200", False),
        (attention(dtype="float32"), "nvidia-h200", False),
        (attention(), "nvidia-a100", False),  # no wgmma
        (attention(), "znver4", False),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


def test_no_cpu_template_takes_its_workloads() -> None:
    assert all(template.name.startswith("cuda.") for template in templates_for(attention(), H200))


@pytest.mark.parametrize("head_dim", [8, 32, 64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 512, 16384])
def test_the_default_is_legal(head_dim: int, causal: bool, length: int) -> None:
    work = attention(head_dim=head_dim, causal=causal, q_len=length, kv_len=length)
    assert TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)
    (generic,) = TEMPLATE.generic(work.generic(), H200)
    assert generic.ranges == {} and generic.config in TEMPLATE.space(work.generic(), H200)


def test_causal_work_is_shared_fairly() -> None:
    """64 heads of 32 tiles on 132 blocks: an order that leaves shares unequal costs a third."""
    work = attention(batch=4, heads=16, kv_heads=16, q_len=4096, kv_len=4096, causal=True)
    pairs = TEMPLATE.default(work, H200)
    assert pairs["together"] == IN_PAIRS
    uneven = TEMPLATE.estimate(work, H200, pairs.replace(together=4))
    assert uneven > 1.3 * TEMPLATE.estimate(work, H200, pairs)


def visits(work: Workload, tiles: Tiles, *lengths: NDArray[np.int32]) -> NDArray[np.int32]:
    """Run the kernel's walk for every block, here: how often and how far each tile is taken."""
    kernel = FlashKernel(sizes_of(work), tiles)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        shape = (kernel.pairs, kernel.q_tiles, 4)
        if lengths:
            kernel.lengths = T.arg("lengths", T.buffer(lengths[0].shape, "int32", buffer_name="lengths"))
        out = T.arg("out", T.buffer(shape, "int32", buffer_name="out"))
        with T.serial(tiles.blocks) as block:
            kernel.block = block
            walk = Walk(kernel)
            with T.While(walk.more()):
                walk.locate()
                row = T.truncdiv(walk.first_row, tiles.bm)
                T.buffer_store(out, out[walk.pair, row, 0] + 1, [walk.pair, row, 0])
                T.buffer_store(out, walk.count, [walk.pair, row, 1])
                T.buffer_store(out, walk.whole(), [walk.pair, row, 2])
                T.buffer_store(out, block, [walk.pair, row, 3])
                walk.advance()
    function = builder.get().with_attr("global_symbol", "main")
    module = tvm.compile(IRModule({"main": function}), target={"kind": "llvm"}, tir_pipeline="tirx")
    found = np.zeros(shape, np.int32)
    module["main"](*lengths, found)
    return found


@pytest.mark.parametrize("together", [IN_PAIRS, 1, 4, 64])
@pytest.mark.parametrize(
    "fields",
    [
        {"q_len": 1024, "kv_len": 1024},
        {"q_len": 1000, "kv_len": 1500},  # neither a multiple of a tile; 8 tiles, the last short
        {"q_len": 300, "kv_len": 100},  # queries that see nothing; an odd number of tiles
        {"q_len": 300, "kv_len": 700, "align": "top-left"},
        {"q_len": 1, "kv_len": 1},
        {"batch": 3, "heads": 7, "kv_heads": 7, "q_len": 640, "kv_len": 640},  # parties of unequal size
    ],
)
def test_each_tile_is_taken_once_and_as_far_as_it_sees(fields: dict[str, object], together: int) -> None:
    work = attention(causal=True, **fields)
    tiles = Tiles(2, 128, 2, take_turns=True, own_out=True, together=together, blocks=13)
    found = visits(work, tiles)
    assert (found[..., 0] == 1).all()
    q_len, kv_len = work.dims("q_len", "kv_len")
    offset = kv_len - q_len if work["align"] == "bottom-right" else 0
    first = np.arange(found.shape[1]) * 128
    seen = np.minimum(first + 128 + offset, kv_len)
    assert (found[..., 1] == np.maximum(-(-seen // 128), 1)).all()
    assert (found[..., 2] == np.maximum(np.minimum(first + offset + 1, kv_len) // 128, 0)).all()


@pytest.mark.parametrize(
    "causal, align", [(False, "bottom-right"), (True, "bottom-right"), (True, "top-left")]
)
def test_a_sequence_is_walked_as_far_as_it_goes(causal: bool, align: str) -> None:
    """Lengths of nothing, below the queries, ragged, whole; and such as can't be, which are clipped."""
    work = attention(
        batch=6, heads=3, kv_heads=3, q_len=300, kv_len=700, causal=causal, align=align, lengths=True
    )
    lengths = np.array([0, 100, 513, 700, 9999, -5], np.int32)
    tiles = Tiles(2, 128, 2, take_turns=True, own_out=True, together=IN_PAIRS, blocks=13)
    found = visits(work, tiles, lengths)
    assert (found[..., 0] == 1).all()
    own = np.repeat(np.clip(lengths, 0, 700), 3)[:, None]  # of each head
    first = np.arange(found.shape[1]) * 128
    seen = own + 0 * first
    if causal:
        seen = np.minimum(first + 128 + (own - 300 if align == "bottom-right" else 0), own)
    assert (found[..., 1] == np.maximum(-(-seen // 128), 1)).all()


def test_pairs_give_equal_shares() -> None:
    work = attention(causal=True, batch=4, heads=13, kv_heads=13)
    found = visits(work, Tiles(2, 128, 2, take_turns=True, own_out=True, together=IN_PAIRS, blocks=13))
    shares = np.bincount(found[..., 3].ravel(), found[..., 1].ravel().astype(float))
    assert (shares == shares[0]).all()


@needs_nvcc
@pytest.mark.parametrize(
    "work",
    [
        attention(causal=True, kv_heads=2),
        attention(head_dim=64, dtype="float16"),
        attention(causal=True, lengths=True),
        attention(head_dim=64, lengths=True),
        attention(mask="bool"),
        attention(causal=True, head_dim=256, mask="float32", mask_dims="bhqk"),
    ],
)
def test_the_code_is_what_was_meant(work: Workload) -> None:
    cubin = compiled(TEMPLATE, work, H200, TEMPLATE.default(work, H200))
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    assert cubin.source.count("wgmma.mma_async") >= 2 and "cp.async.bulk.tensor.3d" in cubin.source
    assert "setmaxnreg.inc" in cubin.source


def test_one_kernel_serves_all_lengths() -> None:
    short, long = attention(q_len=7, kv_len=9), attention(q_len=70, kv_len=90, batch=1)
    assert TEMPLATE.kernel_workload(short) == TEMPLATE.kernel_workload(long)


def test_what_is_legal_fits_the_machine() -> None:
    rng = random.Random(0)
    for head_dim in (64, 128, 256):
        work = attention(head_dim=head_dim, causal=True)
        for _ in range(20):
            config = TEMPLATE.space(work, H200).sample(rng)
            assert isinstance(config, Config)
            tiles = tiles_of(config, H200)
            produces, consumes = tiles.registers
            assert H200.gpu is not None
            assert 128 * (produces + tiles.consumers * consumes) <= H200.gpu.block_registers
