"""The kernels of wgmma products, run by the emulator: every way in which blocks work together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import IRModule

from tests.schedules.cuda.emulated import TensorMap, emulated, needs_emulator
from tvmops.measure import cuda
from tvmops.ops import op_of
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.gemm_wgmma import form_of, is_legal
from tvmops.schedules.cuda.kernels.gemm_arrays import Arrays, Form
from tvmops.schedules.cuda.kernels.gemm_operands import Operand
from tvmops.schedules.cuda.kernels.gemm_wgmma import gemm
from tvmops.signatures.dtypes import decode
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload

pytestmark = needs_emulator
H200 = target("nvidia-h200")
GUARD = 512  # elements around the result that nothing may write


def knobs(bm: int, bn: int, **more: int) -> dict[str, int]:
    plain = {"bk": 64, "consumers": 1, "cluster": 1, "split_k": 1, "group": 1, "beside": 1}
    return {"bm": bm, "bn": bn, **plain, **more}


# Tiles that reach beyond the edges, shares of k of unequal length, more tiles than blocks.
CASES = [
    ("m=264 n=136 k=200 dtype=bfloat16", knobs(64, 64, group=4), 4),
    # no epilogue: what is added up is what a block computes, but lies elsewhere
    ("m=40 n=72 k=392 dtype=bfloat16 trans_b=true out_dtype=float32", knobs(64, 64, parts=3, chained=4), 2),
    ("m=300 n=136 k=328 dtype=float16 trans_b=true", knobs(128, 128, consumers=2, cluster=2), 4),
    ("m=304 n=200 k=136 dtype=bfloat16 trans_a=true batch=2", knobs(64, 128, cluster=2), 6),
    ("m=200 n=200 k=136 dtype=bfloat16", knobs(192, 80, consumers=3), 2),
    ("m=136 n=456 k=72 dtype=bfloat16", knobs(128, 224, consumers=2), 3),
    ("m=136 n=200 k=200 dtype=bfloat16", knobs(64, 64, cluster=2), 4),  # each loads half of the rows of b
    ("m=136 n=456 k=72 dtype=bfloat16 trans_b=true", knobs(64, 224, cluster=2), 2),
    ("m=320 n=200 k=136 dtype=bfloat16", knobs(64, 160, group=5), 4),
    ("m=72 n=136 k=712 dtype=bfloat16 bias=true activation=relu", knobs(64, 64, split_k=4), 1),
    (
        "m=72 n=264 k=200 dtype=bfloat16 residual=true bias=true activation=relu",
        knobs(64, 128, parts=3, chained=1),
        2,
    ),
    # Neighbours that are launched together, of an odd number of tiles; their shares.
    ("m=136 n=200 k=136 dtype=bfloat16", knobs(128, 64, group=2, chained=1), 4),
    ("m=168 n=40 k=520 dtype=bfloat16", knobs(64, 64, group=2, streams=3, chained=4), 12),
    ("m=680 n=40 k=264 dtype=bfloat16", knobs(64, 64, group=2, streams=2, chained=1), 8),  # and whole ones
    # Streams: tiles that three blocks share, whole tiles behind those, clusters; few tiles of a long k.
    ("m=264 n=200 k=328 dtype=bfloat16", knobs(64, 64, streams=1, chained=1), 7),
    ("m=72 n=136 k=1032 dtype=bfloat16 bias=true residual=true", knobs(64, 64, streams=1, chained=1), 16),
    (
        "m=392 n=264 k=456 dtype=float16 trans_b=true",
        knobs(128, 128, consumers=2, cluster=2, streams=1, chained=4),
        6,
    ),
    (
        "m=136 n=200 k=328 dtype=bfloat16 residual=true activation=relu",
        knobs(128, 128, consumers=2, streams=4, chained=1),
        16,
    ),
    ("m=264 n=200 k=456 dtype=bfloat16 trans_b=true", knobs(64, 128, streams=3, chained=1), 9),
    ("m=200 n=136 k=520 dtype=bfloat16 residual=true", knobs(128, 128, consumers=2, split_k=4), 1),
    ("m=200 n=72 k=1032 dtype=bfloat16 out_dtype=float32", knobs(128, 64, split_k=8, beside=2), 1),
]


def boxes(form: Form, tiles: Tiles, work: Workload, arrays: dict[str, NDArray[Any]]) -> dict[str, TensorMap]:
    """Describe the arrays as the host's code does, in the order in which the kernel takes them."""
    m, n, k, batch = work.dims("m", "n", "k", "batch")
    items = [batch] if form.batched else []
    ones = [1] * len(items)
    a_box = tiles.bk if form.trans_a else min(tiles.bm, m)
    b_box = Operand(Arrays(form), "b", form.trans_b, tiles.bn, tiles, sharers=tiles.cluster).box[1]
    b_box = min(tiles.bn, n) if form.trans_b and tiles.cluster == 1 else b_box
    described = [
        (arrays["a"], [m, k] if form.trans_a else [k, m], a_box),
        (arrays["b"], [k, n] if form.trans_b else [n, k], b_box),
    ]
    if form.parts == 1:
        described.append((arrays["c"], [n, m], 64))
    maps = [TensorMap.of(array, [*dims, *items], [64, box, *ones]) for array, dims, box in described]
    return dict(zip(("v", "v_1", "v_2"), maps))


@pytest.mark.parametrize("text, chosen, blocks", CASES)
def test_it_computes_the_product(text: str, chosen: dict[str, int], blocks: int, tmp_path: Path) -> None:
    work = Workload.parse(f"matmul {text}")
    assert is_legal(Config.of(**chosen), work, H200)
    tiles = replace(Tiles.of(Config.of(**chosen), H200), multiprocessors=blocks)
    form, dtype = replace(form_of(work), parts=tiles.parts), str(work["dtype"])
    _, (cubin,) = cuda.compile_module(IRModule({"main": gemm(form, tiles)}), H200)
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    op = op_of(work)
    inputs = op.random_inputs(work, seed=1)
    (right,) = op.reference(work, *(decode(array, dtype) for array in inputs))
    kind = np.float32 if form.result == "float32" else inputs[0].dtype
    memory = np.full((right.size + 2 * GUARD) * np.dtype(kind).itemsize, 0xFF, np.uint8).view(kind)  # NaN
    arrays = dict(zip((spec.name for spec in op.inputs(work)), inputs))
    arrays["c"] = memory[GUARD:-GUARD].reshape(right.shape)
    m, n, k, batch = work.dims("m", "n", "k", "batch")
    sizes = {"m": m, "n": n, "k": k, "batch": batch}
    cluster = tiles.cluster * tiles.split_k
    tile_count = -(-m // (tiles.bm * tiles.cluster)) * -(-n // tiles.bn) * batch
    grid = (tile_count if tiles.split_k > 1 else blocks // tiles.cluster) * cluster
    arrays["workspace"] = np.full(max(tiles.parts * m * n * 4, tiles.workspace_bytes), 0xFF, np.uint8)
    arguments = {**arrays, **sizes, **boxes(form, tiles, work, arrays)}
    if tiles.streams > 1:  # those that share tiles are there together, and no others
        cluster = tiles.streams * tiles.neighbours
        grid = min(-(-tile_count // tiles.neighbours) * cluster, blocks)
    emulated(cubin, tmp_path)(grid, arguments, cluster, shared_bytes=tiles.shared_bytes)
    if tiles.parts > 1:
        emulated(cubin, tmp_path, 1)(-(-m * n // 2048), arguments)
    if tiles.streams:  # no flag is left up for the next call
        assert set(np.unique(arrays["workspace"][tiles.left_bytes :].view(np.uint64))) <= {0, 2**64 - 1}
    edges = np.concatenate([memory[:GUARD], memory[-GUARD:]]).view(np.uint8)
    assert (edges == 0xFF).all()
    found = decode(arrays["c"], form.result).astype(np.float64)
    assert np.abs(found - right).max() <= op.tolerance(work)
