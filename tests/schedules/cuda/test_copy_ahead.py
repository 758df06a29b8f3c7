"""Products whose blocks copy their operands themselves, run by the emulator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tvm import IRModule

from tests.schedules.cuda.emulated import TensorMap, emulated, needs_emulator
from tvmops.measure import cuda
from tvmops.ops import op_of
from tvmops.schedules.cuda.gemm_padded import pads_of
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.gemm_wgmma import form_of
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
    return {"bm": bm, "bn": bn, **plain, "ahead": 2, "chained": 1, **more}


# Several stretches of k and of n; edges; operands that need no copy; clusters, whose tiles reach beyond the rows.
CASES = [
    ("m=131 n=203 k=1161 dtype=bfloat16", knobs(64, 128, group=2), 3),
    ("m=131 n=203 k=601 dtype=float16 trans_b=true", knobs(128, 128, consumers=2), 2),
    ("m=131 n=1163 k=70 dtype=bfloat16 trans_a=true", knobs(64, 128, cluster=2), 4),
    ("m=70 n=65 k=640 dtype=bfloat16", knobs(64, 128), 2),
    ("m=131 n=203 k=201 dtype=bfloat16", knobs(128, 80, consumers=2, cluster=2, abreast=1), 4),
    ("m=131 n=203 k=1161 dtype=bfloat16", knobs(64, 128, ahead=1), 2),
    ("m=265 n=136 k=129 dtype=bfloat16 bias=true activation=relu", knobs(128, 128, consumers=2, cluster=2), 2),
]


@pytest.mark.parametrize("text, chosen, blocks", CASES)
def test_it_computes_the_product(text: str, chosen: dict[str, int], blocks: int, tmp_path: Path) -> None:
    work = Workload.parse(f"matmul {text}")
    tiles = replace(Tiles.of(Config.of(**chosen), H200), multiprocessors=blocks)
    dtype, (m, n, k) = str(work["dtype"]), work.dims("m", "n", "k")
    form = replace(form_of(work), pads=pads_of(work), loose=n % 8 > 0, ahead=pads_of(work) if tiles.ahead > 1 else ("b",))
    _, (cubin,) = cuda.compile_module(IRModule({"main": gemm(form, tiles)}), H200)
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    op = op_of(work)
    inputs = op.random_inputs(work, seed=1)
    (right,) = op.reference(work, *(decode(array, dtype) for array in inputs))
    memory = np.full(right.size + 2 * GUARD, 0xFFFF, np.uint16)  # NaN
    arrays = dict(zip((spec.name for spec in op.inputs(work)), inputs))
    arrays["c"] = memory[GUARD:-GUARD].view(inputs[0].dtype).reshape(right.shape)
    workspace = np.full(1 << 22, 0xFFFF, np.uint16)
    boxes, at = [], 0
    for name, box in (("a", tiles.bk if form.trans_a else tiles.bm // (tiles.cluster if tiles.abreast else 1)), ("b", tiles.bn // tiles.cluster if form.trans_b else tiles.bk)):
        array = arrays[name]
        rows, columns = array.shape
        pitch = -(-columns // 64) * 64 if name in form.pads else columns
        held = workspace[at:].view(array.dtype) if name in form.pads else array
        boxes.append(TensorMap.of(held, [columns, rows], [64, box], pitches=[pitch * 2, 0, 0, 0]))
        at += rows * pitch if name in form.pads else 0
    boxes.append(TensorMap.of(arrays["c"], [n, m], [64, 64]))
    arguments = {**arrays, "workspace": workspace, "m": m, "n": n, "k": k, **dict(zip(("v", "v_1", "v_2"), boxes))}
    kernels = int(len(form.ahead) < len(form.pads))
    if kernels:
        emulated(cubin, tmp_path)(8 * blocks, arguments)
    emulated(cubin, tmp_path, kernels)(1, arguments)
    tile_count = -(-m // tiles.height) * -(-n // tiles.width)
    grid = min(tile_count * tiles.cluster, blocks)
    emulated(cubin, tmp_path, kernels + 1)(grid, arguments, tiles.cluster, shared_bytes=tiles.shared_bytes)
    assert (memory[:GUARD] == 0xFFFF).all() and (memory[-GUARD:] == 0xFFFF).all()
    found = decode(arrays["c"], form.result).astype(np.float64)
    assert np.abs(found - right).max() <= op.tolerance(work)
