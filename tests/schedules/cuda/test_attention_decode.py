from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.schedules.cuda.compiled import compiled
from tests.schedules.cuda.emulated import emulated, needs_emulator
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.attention_decode import DecodeAttention, split_of
from tvmops.schedules.cuda.kernels.attention_shares import shared_bytes
from tvmops.signatures.dtypes import decode, encode
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = DecodeAttention()
H200 = target("nvidia-h200")
GUARD = 64  # elements


def attention(**changes: object) -> Workload:
    fields = {"batch": 1, "heads": 32, "kv_heads": 8, "q_len": 1, "kv_len": 4096, "head_dim": 128}
    return workload("attention", **{**fields, "dtype": "bfloat16", **changes})


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (attention(), "nvidia-h200", True),
        (attention(), "nvidia-a100", True),
        (attention(causal=True), "nvidia-h200", True),  # the only query sees all keys
        (attention(batch="*", kv_len="*"), "nvidia-h200", True),
        (attention(lengths=True), "nvidia-h200", True),
        (attention(lengths=True, pages=512, page_size=16), "nvidia-a100", True),
        (attention(layout="blhd"), "nvidia-h200", True),
        (attention(mask="bool", mask_dims="k"), "nvidia-h200", True),
        (attention(lengths=True, pages=512, page_size=16, mask="bool", mask_dims="k"), "nvidia-h200", False),
        (attention(causal=True, align="top-left"), "nvidia-h200", False),
        (attention(q_len=2), "nvidia-h200", False),
        (attention(heads=64, kv_heads=2), "nvidia-h200", False),  # 32 heads share: more than two products
        (attention(head_dim=72), "nvidia-h200", False),  # no multiple of a product's 16
        (attention().generic(), "nvidia-h200", False),
        (attention(dtype="float32"), "nvidia-h200", False),
        (attention(), "znver4", False),
        (attention(), "cuda-sm75", False),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


def test_it_is_tried_first_and_the_other_too() -> None:
    names = [template.name for template in templates_for(attention(), H200)]
    assert names == ["cuda.attention_decode", "cuda.attention_wgmma"]


@pytest.mark.parametrize(
    "batch, splits, warps",
    [
        (1, 8, 4),  # a second block fits beside, which asks for keys of the next kernel
        (2, 4, 8),  # 16 clusters of 8 would not all find a place
        (3, 3, 8),
        (8, 2, 8),  # 64 blocks that are no clusters crowd some parts of the machine
        (9, 1, 4),  # so many may share multiprocessors by two
        (24, 1, 4),
        (48, 1, 8),
    ],
)
def test_the_default_keeps_memory_busy(batch: int, splits: int, warps: int) -> None:
    work = attention(batch=batch)
    config = TEMPLATE.default(work, H200)
    assert config in TEMPLATE.space(work, H200)
    assert (config["splits"], config["warps"]) == (splits, warps)


@pytest.mark.parametrize(
    "fields, ahead, early",
    [
        ({}, 3, 4),
        ({"kv_len": 65536}, 1, 0),  # the next kernel's blocks would crowd what is left
        ({"head_dim": 256}, 1, 1),  # no room for them
        ({"batch": 8}, 2, 4),
        ({"lengths": True}, 0, 1),  # what is there is not known before
    ],
)
def test_the_next_kernel_begins_where_that_gains(fields: dict[str, object], ahead: int, early: int) -> None:
    config = TEMPLATE.default(attention(**fields), H200)
    assert (config["ahead"], config["early"]) == (ahead, early)


def test_few_heads_are_split_further() -> None:
    assert TEMPLATE.default(attention(heads=28, kv_heads=4), H200)["splits"] == 16
    assert TEMPLATE.default(attention(heads=40, kv_heads=5), H200)["splits"] == 8
    assert TEMPLATE.default(attention(heads=28, kv_heads=4, kv_len=65536), H200)["splits"] == 8
    assert TEMPLATE.default(attention(heads=16, kv_heads=4, head_dim=256), H200)["splits"] == 8


@pytest.mark.parametrize("fields", [{"head_dim": 256}, {"heads": 128}, {"head_dim": 16}, {"batch": "*"}])
def test_the_default_is_legal(fields: dict[str, object]) -> None:
    work = attention(**fields)
    assert TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)


def test_without_clusters_a_head_is_not_split() -> None:
    ampere = target("nvidia-a100")
    assert TEMPLATE.default(attention(), ampere)["splits"] == 1


def config(splits: int, warps: int, keys: int, stages: int, ahead: int = 0, early: int = 0) -> Config:
    return Config.of(splits=splits, warps=warps, keys=keys, stages=stages, ahead=ahead, early=early)


CASES = [
    (attention(), config(4, 2, 16, 3, ahead=1)),  # 4 heads share, half a product's columns
    (attention(), config(8, 2, 16, 2)),  # half of the blocks have no head to finish
    (attention(heads=64, head_dim=64, dtype="float16"), config(1, 4, 32, 2)),  # one block: no cluster
    (
        attention(heads=12, kv_heads=1, head_dim=80),
        config(3, 2, 16, 4, ahead=3, early=3),
    ),  # 12 share: two products
]
LENGTHS = [
    (1, 1),  # most warps, and blocks, have nothing
    (2, 77),  # the last chunk is short
    (1, 256),
]


def run(call: Callable[..., None], work: Workload, split: Config, scale: float) -> tuple[float, float]:
    """Return the largest error of an emulated run amid guards, and what is allowed."""
    op, dtype = op_of(work), str(work["dtype"])
    inputs = op.random_inputs(work, seed=1)
    q, k, v, *rest = inputs
    memory = np.full(q.size + 2 * GUARD, 0xFFFF, np.uint16)
    out = memory[GUARD:-GUARD].reshape(work.dims("batch", "heads", "q_len", "head_dim"))
    batch, heads, kv_heads, head_dim = work.dims("batch", "heads", "kv_heads", "head_dim")
    splits = int(split["splits"])
    names = [spec.name for spec in op.inputs(work)]
    arguments = {**dict(zip(names, inputs)), "out": out, "scale": scale, "batch": batch}
    arguments["kv_len"], arguments["pages"] = work.dims("kv_len", "pages")
    if "block_table" in names:
        arguments["columns"] = rest[1].shape[1]
    call(
        batch * kv_heads * splits,
        arguments,
        cluster=splits,
        shared_bytes=shared_bytes(head_dim, heads // kv_heads, split_of(split)),
    )
    sign = np.sign(scale)  # the reference has its own scale; a negative one is that of -q
    turned = encode(decode(q, dtype).astype(np.float32) * sign, dtype)
    (right,) = op.reference(work, *(decode(array, dtype) for array in (turned, k, v)), *rest)
    assert (memory[:GUARD] == 0xFFFF).all() and (memory[-GUARD:] == 0xFFFF).all()
    result = decode(out, dtype) if dtype == "bfloat16" else out.view(dtype)
    error = np.abs(result.astype(np.float64) - right).max()
    return float(error), op.tolerance(work)


CACHES = [
    ({"lengths": True}, config(4, 2, 16, 3)),  # some blocks of a short sequence have nothing
    ({"layout": "blhd"}, config(2, 2, 16, 2)),
    ({"lengths": True, "pages": 40, "page_size": 16}, config(2, 2, 16, 3)),
    ({"lengths": True, "pages": 12, "page_size": 64, "layout": "blhd"}, config(1, 2, 32, 2)),  # as vLLM's
    ({"mask": "bool", "mask_dims": "bk", "lengths": True}, config(2, 2, 16, 3)),
    ({"mask": "float32", "mask_dims": "bhk"}, config(2, 2, 32, 2)),
]


@pytest.mark.parametrize(
    "fields, split", CACHES, ids=["lengths", "beside", "pages", "pages, beside", "mask", "added"]
)
class TestCachesHere:
    pytestmark = needs_emulator

    def test_it_reads_them(self, fields: dict[str, object], split: Config, tmp_path: Path) -> None:
        work = attention(batch=4, heads=8, kv_heads=2, kv_len=150, head_dim=64, **fields)
        assert split in TEMPLATE.space(work, H200)
        cubin = compiled(TEMPLATE, work, H200, split)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        (scale,) = op_of(work).scalars(work)
        error, allowed = run(emulated(cubin, tmp_path), work, split, scale)
        assert error <= allowed


@pytest.mark.parametrize("seed", range(3))
class TestAnyConfigHere:
    pytestmark = needs_emulator

    def test_it_computes_attention(self, seed: int, tmp_path: Path) -> None:
        """Of random forms, too: lengths that end anywhere, groups of 1 to 16, heads of 16 to 256."""
        rng = random.Random(seed)
        kv_heads, group = rng.choice((2, 3)), rng.choice((1, 5, 8, 16))
        forms: list[dict[str, object]] = [
            {},
            {"mask": "bool", "mask_dims": "hk"},
            {"pages": 40, "page_size": 32},
        ]
        work = attention(
            batch=2, heads=kv_heads * group, kv_heads=kv_heads, kv_len=rng.randint(1, 300),
            head_dim=rng.choice((16, 48, 128, 256)), dtype=rng.choice(("float16", "bfloat16")),
            layout=rng.choice(("bhld", "blhd")), lengths=True, **forms[seed],
        )  # fmt: skip
        split = TEMPLATE.space(work, H200).sample(rng)
        assert isinstance(split, Config)
        cubin = compiled(TEMPLATE, work, H200, split)
        (scale,) = op_of(work).scalars(work)
        error, allowed = run(emulated(cubin, tmp_path), work, split, scale)
        assert error <= allowed, (work, split)


def test_a_chunk_lies_in_one_page() -> None:
    work = attention(lengths=True, pages=512, page_size=16)
    space = TEMPLATE.space(work, H200)
    assert config(8, 4, 16, 3) in space and config(8, 4, 32, 3) not in space
    assert TEMPLATE.default(work, H200) in space


@pytest.mark.parametrize(
    "work, split", CASES, ids=["a group of 4", "more blocks than heads", "one block", "a group of 12"]
)
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_attention(self, work: Workload, split: Config, tmp_path: Path) -> None:
        cubin = compiled(TEMPLATE, work, H200, split)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        call = emulated(cubin, tmp_path)
        for batch, kv_len in LENGTHS:
            exact = work.replace(batch=batch, kv_len=kv_len)
            (scale,) = op_of(exact).scalars(exact)
            for signed in (scale, -scale):
                error, allowed = run(call, exact, split, signed)
                assert error <= allowed, (batch, kv_len, signed)
