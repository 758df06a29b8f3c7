from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.emulated import TensorMap, emulated, needs_emulator
from tvmops.measure.cuda import compile_module
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.attention_few import FewAttention, tiles_of
from tvmops.schedules.cuda.attention_sizes import sizes_of
from tvmops.schedules.cuda.kernels.attention_few import FewKernel
from tvmops.schedules.cuda.kernels.attention_shares import PAD
from tvmops.schedules.cuda.kernels.attention_tiles import IN_PAIRS, Tiles, shared_bytes
from tvmops.signatures.dtypes import decode
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = FewAttention()
H200 = target("nvidia-h200")
GUARD = 64  # elements


def attention(**changes: object) -> Workload:
    fields = {"batch": 16, "heads": 32, "kv_heads": 8, "q_len": 4, "kv_len": 4096, "head_dim": 128}
    return workload("attention", **{**fields, "dtype": "bfloat16", **changes})


@pytest.mark.parametrize(
    "work, machine, usual",
    [
        (attention(), "nvidia-h200", True),
        (attention(causal=True, head_dim=72, dtype="float16"), "nvidia-h100", True),
        (attention(lengths=True), "nvidia-h200", False),  # the other template is the usual one
        (attention(kv_len="*", batch="*"), "nvidia-h200", True),
        (attention(q_len=1), "nvidia-h200", False),
        (attention(q_len=512), "nvidia-h200", False),  # 2048 tiles fill the machine
        (attention(q_len=512, batch=1), "nvidia-h200", False),  # 128 tiles do, as well
        (attention(q_len=256, batch=1), "nvidia-h200", True),
        (
            attention(q_len=65, kv_heads=32, batch=1),
            "nvidia-h200",
            False,
        ),  # nothing shares keys: tiles are as full
        (attention(q_len="*"), "nvidia-h200", True),
        (attention(q_len=2000, kv_len=2000), "nvidia-h200", False),
        (attention(kv_len=1000), "nvidia-h200", False),  # never measured
        (attention(q_len=1, batch="*"), "nvidia-h200", False),
        (attention(mask="bool"), "nvidia-h200", False),
        (attention(layout="blhd"), "nvidia-h200", False),
        (attention(lengths=True, pages=512, page_size=16), "nvidia-h200", False),
        (attention(head_dim=100), "nvidia-h200", False),
        (attention(dtype="float32"), "nvidia-h200", False),
        (attention(), "nvidia-a100", False),
    ],
)
def test_where_it_is_the_usual_one(work: Workload, machine: str, usual: bool) -> None:
    gpu = target(machine)
    assert (TEMPLATE.covers(work, gpu) and not TEMPLATE.comes_last(work, gpu)) is usual


@pytest.mark.parametrize("fields", [{"lengths": True}, {"kv_heads": 32}, {"kv_len": 1000}])
def test_what_is_not_known_to_gain_is_tried(fields: dict[str, object]) -> None:
    names = [template.name for template in templates_for(attention(**fields), H200)]
    assert names == ["cuda.attention_wgmma", "cuda.attention_few"]
    names = [template.name for template in templates_for(attention(), H200)]
    assert names == ["cuda.attention_few", "cuda.attention_wgmma"]


@pytest.mark.parametrize(
    "fields, splits, cluster",
    [
        ({}, 1, False),  # 128 tiles of rows, each read by a block
        ({"batch": 1, "q_len": 128}, 4, False),  # 32 tiles
        ({"batch": 1, "heads": 64, "q_len": 128}, 2, False),
        ({"batch": 4, "kv_len": 8192}, 4, False),
    ],
)
def test_the_default_shares_keys_until_memory_is_busy(
    fields: dict[str, object], splits: int, cluster: bool
) -> None:
    config = TEMPLATE.default(attention(**fields), H200)
    assert (config["splits"], config["cluster"]) == (splits, cluster)


def test_generic_kernels_answer_few_queries() -> None:
    one, many = TEMPLATE.generic(attention().generic(), H200)
    for kernel in (one, many):
        assert kernel.ranges["q_len"] == (2, 16) and kernel.ranges["kv_len"][0] == 1024
        assert kernel.config in TEMPLATE.space(attention(), H200)
    assert one.ranges["batch"] == (1, 1)
    assert many.ranges["heads"][0] >= 4 * many.ranges["kv_heads"][1]  # heads share keys
    assert TEMPLATE.generic(attention(head_dim=64).generic(), H200) == []


@pytest.mark.parametrize("head_dim", [8, 64, 128, 192, 256])
@pytest.mark.parametrize("batch", [1, "*"])
def test_the_default_is_legal(head_dim: int, batch: object) -> None:
    work = attention(batch=batch, head_dim=head_dim, q_len=40)
    assert TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)


def tiles(consumers: int, bn: int, stages: int = 2) -> Tiles:
    return Tiles(consumers, bn, stages, consumers > 1, own_out=False, together=IN_PAIRS, blocks=0)


def run(work: Workload, shape: Tiles, splits: int, cluster: bool, folder: Path) -> None:
    """Compute all of a small workload here, amid guards, and compare."""
    op, dtype = op_of(work), str(work["dtype"])
    inputs = op.random_inputs(work, seed=1)
    q, k, v, *_ = inputs
    batch, kv_heads, head_dim = work.dims("batch", "kv_heads", "head_dim")
    memory = np.full(q.size + 2 * GUARD, 0xFFFF, np.uint16)
    out = memory[GUARD:-GUARD].reshape(q.shape)
    parts = np.full((q.size // head_dim, splits, head_dim + PAD), np.nan, np.float32)
    kernel = FewKernel(sizes_of(work), shape, splits, cluster)
    _, (cubin,) = compile_module(kernel.module(), H200)
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()

    def described(array: np.ndarray, box: int) -> TensorMap:
        rows = array.view(np.uint16).reshape(batch * kv_heads, -1, head_dim)
        return TensorMap.of(rows, [head_dim, rows.shape[1], len(rows)], [64, box, 1])

    maps = {"k": described(k, shape.bn), "q": described(q, 64), "v": described(v, shape.bn)}
    maps["out"] = described(out, 64)
    order = "kqv" if work["lengths"] else "kvq"  # of their first use
    arguments = dict(zip(("v", "v_1", "v_2", "v_3"), (maps[name] for name in (*order, "out"))))
    arguments |= {"workspace": parts, "out": out, "scale": op.scalars(work)[0]}
    arguments |= {spec.name: array for spec, array in zip(op.inputs(work)[3:], inputs[3:])}
    rows = q.size // head_dim // batch // kv_heads
    grid = batch * kv_heads * -(-rows // shape.bm) * splits
    blocks = {"cluster": splits if cluster else 1, "shared_bytes": shared_bytes(head_dim, shape) + 1024}
    emulated(cubin, folder)(grid, arguments, **blocks)
    if splits > 1 and not cluster:
        assert not np.isnan(parts[..., : head_dim + 2]).any()
        emulated(cubin, folder, 1)(-(-len(parts) // (128 // (head_dim // 4))), arguments)
    (right,) = op.reference(work, *(decode(array, dtype) for array in (q, k, v)), *inputs[3:])
    assert (memory[:GUARD] == 0xFFFF).all() and (memory[-GUARD:] == 0xFFFF).all()
    found = decode(out.view(q.dtype), dtype)
    np.testing.assert_allclose(found, right, rtol=0, atol=op.tolerance(work))


CAUSAL = {"causal": True}
FORMS = {
    "few": ({"q_len": 3, "kv_len": 300, **CAUSAL}, tiles(1, 64), 3, False),  # 6 rows; the last keys ragged
    "rows of several heads": (
        {"q_len": 50, "kv_len": 333, **CAUSAL, "head_dim": 64},
        tiles(1, 48, 3),
        9,
        False,
    ),
    "clusters": (
        {"q_len": 50, "kv_len": 333, **CAUSAL, "head_dim": 64},
        tiles(2, 64),
        3,
        True,
    ),  # 34 rows each
    "nothing seen": ({"q_len": 90, "kv_len": 60, **CAUSAL, "dtype": "float16"}, tiles(2, 64), 2, False),
    "one share": ({"q_len": 5, "kv_len": 200, "head_dim": 56}, tiles(1, 64), 1, False),  # no second kernel
    "lengths": (
        {"q_len": 7, "kv_len": 100, "head_dim": 56, "lengths": True, **CAUSAL},
        tiles(1, 64),
        4,
        False,
    ),
    "lengths, clusters": (
        {"q_len": 7, "kv_len": 100, "head_dim": 56, "lengths": True, **CAUSAL},
        tiles(1, 64),
        4,  # some shares are of nothing
        True,
    ),
}


@pytest.mark.parametrize("fields, shape, splits, cluster", FORMS.values(), ids=FORMS)
class TestEmulated:
    pytestmark = needs_emulator

    def test_it_computes_attention(
        self, fields: dict[str, object], shape: Tiles, splits: int, cluster: bool, tmp_path: Path
    ) -> None:
        run(attention(**{"batch": 2, "heads": 4, "kv_heads": 2, **fields}), shape, splits, cluster, tmp_path)


@pytest.mark.parametrize("seed", range(2))
class TestAnyConfigHere:
    pytestmark = needs_emulator

    def test_it_computes_attention(self, seed: int, tmp_path: Path) -> None:
        rng = random.Random(seed)
        q_len, kv_heads, group = rng.randint(2, 50), rng.choice((1, 2)), rng.choice((1, 3, 8))
        work = attention(
            batch=2, heads=kv_heads * group, kv_heads=kv_heads,
            q_len=q_len, kv_len=q_len + rng.randint(1, 300),
            head_dim=rng.choice((56, 64, 120, 128)), dtype=rng.choice(("float16", "bfloat16")),
            causal=rng.random() < 0.5, lengths=seed == 1,
        )  # fmt: skip
        config = TEMPLATE.space(work, H200).sample(rng)
        assert isinstance(config, Config)
        run(work, tiles_of(config), config.number("splits"), bool(config["cluster"]), tmp_path)


@needs_nvcc
@pytest.mark.parametrize("cluster", [False, True])
@pytest.mark.parametrize("fields", [{"causal": True, "q_len": 64}, {"head_dim": 256, "lengths": True}])
def test_the_code_is_what_was_meant(fields: dict[str, object], cluster: bool) -> None:
    """Of the largest tiles, which leave the fewest registers."""
    work = attention(**fields)
    config = Config.of(consumers=2, bn=160 if "causal" in fields else 80, stages=2, splits=4, cluster=cluster)
    assert config in TEMPLATE.space(work, H200)
    cubin = compiled(TEMPLATE, work, H200, config)
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    assert ("st.async" in cubin.source) is cluster
    names = {name.name_hint for name in TEMPLATE.build(work, H200, config).functions}
    assert names == ({"main"} if cluster else {"main", "main_workspace"})
