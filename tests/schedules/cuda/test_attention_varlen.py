from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.emulated import TensorMap, emulated, needs_emulator
from tvmops.measure.cuda import compile_module
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.attention_sizes import sizes_of
from tvmops.schedules.cuda.attention_varlen import VarlenAttention
from tvmops.schedules.cuda.extents import extent
from tvmops.schedules.cuda.kernels.attention_packed import PackedKernel
from tvmops.schedules.cuda.kernels.attention_tiles import END, Tiles, shared_bytes
from tvmops.signatures.dtypes import decode
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = VarlenAttention()
H200 = target("nvidia-h200")
BLOCKS = 3


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


# Lengths of queries and keys of each sequence: none, one, whole tiles, a tile and one, fewer keys than
# queries and the other way; more sequences than a warp has threads.
ALIKE = [(n, n) for n in (0, 1, 128, 129, 300, 0, 64)]
UNLIKE = [(3, 200), (130, 257), (0, 40), (150, 20), (17, 0), (1, 1)]
MANY = [(n % 3, n % 5) for n in range(70)]


@pytest.mark.parametrize(
    "lengths, fields, shape",
    [
        (ALIKE, {"causal": True, "heads": 3, "kv_heads": 3}, tiles(128, 4)),
        (ALIKE, {"head_dim": 64, "heads": 4, "kv_heads": 2}, tiles(64, 2, own_out=False)),
        (UNLIKE, {"causal": True, "heads": 4, "kv_heads": 1, "dtype": "float16"}, tiles(128, 3)),
        (UNLIKE, {"causal": True, "align": "top-left", "heads": 1, "kv_heads": 1, "head_dim": 64}, tiles(64, 8)),
        (UNLIKE, {"heads": 2, "kv_heads": 1, "head_dim": 256}, tiles(64, 8, own_out=False)),
        (MANY, {"causal": True, "heads": 2, "kv_heads": 2, "head_dim": 64}, tiles(64, 8)),
    ],
)  # fmt: skip
def test_sequences_do_not_see_each_other(
    lengths: list[tuple[int, int]], fields: dict[str, object], shape: Tiles, tmp_path: Path
) -> None:
    """Values of the neighbours are NaN to any kernel that takes them; their results are not written."""
    q_ends, k_ends = (np.cumsum([0, *each], dtype=np.int32) for each in zip(*lengths))
    most = [max(each) for each in zip(*lengths)]
    work = attention(
        batch=len(lengths), q_len=most[0], kv_len=most[1], total_q=int(q_ends[-1]), total_k=int(k_ends[-1]),
        **fields,
    )  # fmt: skip
    op, dtype = op_of(work), str(work["dtype"])
    q, k, v, *_ = op.random_inputs(work, seed=1)
    out = np.full((q.shape[0] + 1, *q.shape[1:]), 0x7FFF, np.uint16)
    inputs = [array.view(np.uint16) for array in (q, k, v)]
    inputs[2][k_ends[1] : k_ends[2]] = 0x7FFF  # NaN
    general = work.generic()
    totals = extent(general, "total_q"), extent(general, "total_k")
    _, (cubin,) = compile_module(PackedKernel(sizes_of(general), shape, *totals).module(), H200)
    names = ("v_1", "v", "v_2", "v_3")  # of q, k, v and out: keys are loaded first
    rows = (64, shape.bn, shape.bn, 64)
    maps = [described(array, count) for array, count in zip((*inputs, out[:-1]), rows)]
    heads, kv_heads, head_dim = work.dims("heads", "kv_heads", "head_dim")
    emulated(cubin, tmp_path)(
        BLOCKS,
        {
            **dict(zip(names, maps)), "cu_seqlens_q": q_ends, "cu_seqlens_k": k_ends, "heads": heads,
            "kv_heads": kv_heads, "offsets": len(q_ends), "scale": op.scalars(work)[0],
        },
        shared_bytes=shared_bytes(head_dim, shape, packed=True) + 1024,
    )  # fmt: skip
    (right,) = op.reference(work, *(decode(array, dtype) for array in (q, k, v)), q_ends, k_ends)
    found = decode(out[:-1].view(q.dtype), dtype)
    np.testing.assert_allclose(found, right, rtol=0, atol=op.tolerance(work))
    assert (out[-1] == 0x7FFF).all()
