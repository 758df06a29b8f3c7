from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.emulated import TensorMap, emulated, needs_emulator
from tests.schedules.cuda.test_attention_varlen import described, tiles
from tvmops.measure.cuda import compile_module
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.attention_pool import PoolAttention
from tvmops.schedules.cuda.kernels.attention_tiles import IN_PAIRS, Tiles, shared_bytes
from tvmops.signatures.dtypes import decode
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = PoolAttention()
H200 = target("nvidia-h200")


def attention(**changes: object) -> Workload:
    fields = {"batch": 4, "heads": 8, "kv_heads": 8, "q_len": 1024, "kv_len": 1024, "head_dim": 128}
    paged = {"lengths": True, "pages": 300, "page_size": 16, "dtype": "bfloat16"}
    return workload("attention", **{**fields, **paged, **changes})


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (attention(), "nvidia-h200", True),
        (attention(layout="blhd", causal=True, kv_heads=2), "nvidia-h100", True),
        (attention().generic(), "nvidia-h200", True),
        (attention(q_len=1), "nvidia-h200", True),
        (attention(page_size=48), "nvidia-h200", False),  # tiles of keys and pages must divide one another
        (attention(pages=0, page_size=0), "nvidia-h200", False),
        (attention(mask="bool"), "nvidia-h200", False),
        (attention(head_dim=100), "nvidia-h200", False),
        (attention(dtype="float32"), "nvidia-h200", False),
        (attention(), "nvidia-a100", False),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


def test_no_other_template_takes_its_prompts() -> None:
    assert [template.name for template in templates_for(attention(), H200)] == [TEMPLATE.name]


@pytest.mark.parametrize("head_dim", [8, 128, 256])
@pytest.mark.parametrize("page_size", [8, 256])
@pytest.mark.parametrize("causal", [False, True])
def test_the_default_is_legal(head_dim: int, page_size: int, causal: bool) -> None:
    work = attention(head_dim=head_dim, page_size=page_size, causal=causal)
    assert TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)
    (generic,) = TEMPLATE.generic(work.generic(), H200)
    assert generic.ranges == {} and generic.config in TEMPLATE.space(work.generic(), H200)


@needs_nvcc
def test_the_code_is_what_was_meant() -> None:
    work = attention(causal=True, layout="blhd")
    cubin = compiled(TEMPLATE, work, H200, TEMPLATE.default(work, H200))
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    assert "cp.async.bulk.tensor.5d" in cubin.source


def maps(work: Workload, shape: Tiles, arrays: list[NDArray[Any]], out: NDArray[Any]) -> list[TensorMap]:
    """Return q, k, v and out as the kernel's host code describes them to the copy engine."""
    q, k, v = (array.view(np.uint16) for array in arrays)
    beside = work["layout"] == "blhd"
    head_dim, box = q.shape[-1], min(work.dims("page_size")[0], shape.bn)
    heads = k.shape[2] if beside else 1
    of_kv = [described(array.reshape(-1, heads, head_dim), box) for array in (k, v)]
    of_q = ([head_dim, *q.shape[2:0:-1], q.shape[0]], [64, 1, 64, 1])
    of_out = ([head_dim, out.shape[2], out.shape[0] * out.shape[1]], [64, 64, 1])
    return [TensorMap.of(q, *(of_q if beside else of_out)), *of_kv, TensorMap.of(out, *of_out)]


@pytest.mark.parametrize(
    "fields, shape",
    [
        ({"causal": True, "heads": 4, "kv_heads": 2, "page_size": 16}, tiles(64, IN_PAIRS)),
        ({"causal": True, "layout": "blhd", "heads": 4, "kv_heads": 2, "page_size": 64}, tiles(64, 8)),
        ({"layout": "blhd", "page_size": 128, "dtype": "float16"}, tiles(64, IN_PAIRS, own_out=False)),
        ({"causal": True, "align": "top-left", "page_size": 8, "head_dim": 128}, tiles(64, 4)),
    ],
    ids=["a row of pages", "heads beside", "large pages", "small pages"],
)
class TestEmulated:
    pytestmark = needs_emulator

    def test_pages_are_read_as_far_as_they_are_filled(
        self, fields: dict[str, Any], shape: Tiles, tmp_path: Path
    ) -> None:
        """What no sequence has is NaN; what a table says of pages that are not needed is nonsense."""
        lengths = np.array([200, 257, 20, 0], np.int32)  # more keys than queries, fewer, none
        base = {"heads": 2, "kv_heads": 2, "q_len": 130, "kv_len": 264, "head_dim": 64}
        work = attention(**{**base, "pages": 4 * -(-264 // fields["page_size"]) + 1, **fields})
        op, dtype, general = op_of(work), str(work["dtype"]), work.generic()
        q, k, v, _, table = op.random_inputs(work, seed=1)
        v = _only_keys(work, v, lengths, table)
        (page_size,) = work.dims("page_size")
        is_needed = np.arange(table.shape[1]) * page_size < lengths[:, None]
        given = np.where(is_needed, table, 0x7FFFFFF).astype(np.int32)
        batch, heads, kv_heads, q_len, head_dim = work.dims("batch", "heads", "kv_heads", "q_len", "head_dim")
        memory = np.full((batch + 1, heads, q_len, head_dim), 0x7FFF, np.uint16)
        out = memory[:-1]
        _, (cubin,) = compile_module(TEMPLATE.kernel(general, shape).module(), H200)
        assert cubin.report.spilled_bytes == 0
        described_arrays = maps(work, shape, [q, k, v], out)
        arguments = dict(zip(("v_1", "v", "v_2", "v_3"), described_arrays))  # keys come first
        arguments |= {"lengths": lengths, "block_table": given, "columns": table.shape[1], "q_len": q_len}
        arguments |= {"heads": heads, "kv_heads": kv_heads, "batch": batch, "scale": op.scalars(work)[0]}
        arguments["cse_v1"] = batch * heads
        emulated(cubin, tmp_path)(shape.blocks, arguments, shared_bytes=shared_bytes(head_dim, shape) + 1024)
        (right,) = op.reference(work, *(decode(array, dtype) for array in (q, k, v)), lengths, table)
        found = decode(out.view(q.dtype), dtype)
        np.testing.assert_allclose(found, right, rtol=0, atol=op.tolerance(work))
        assert (memory[-1] == 0x7FFF).all()


def _only_keys(
    work: Workload, pool: NDArray[Any], lengths: NDArray[np.int32], table: NDArray[np.int32]
) -> NDArray[Any]:
    """Return `pool` with NaN in all rows that no sequence has."""
    (page_size,), beside = work.dims("page_size"), work["layout"] == "blhd"
    unused = np.ones((len(pool), page_size), bool)
    for pages, length in zip(table, lengths):
        for key in range(length):
            unused[pages[key // page_size], key % page_size] = False
    pool = pool.copy()
    rows = pool.view(np.uint16) if beside else pool.view(np.uint16).swapaxes(1, 2)
    rows[unused] = 0x7FFF
    return pool
