"""Products whose operands are copied in part beside them, emulated: first copies, then the product."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import IRModule

from tests.schedules.cuda.emulated import TensorMap, emulated
from tvmops.measure.cuda import Cubin, compile_module
from tvmops.ops import op_of
from tvmops.schedules.cuda.gemm_padded import PaddedGemm
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.kernels.gemm_arrays import COUNTED_BYTES, Form
from tvmops.schedules.cuda.kernels.gemm_wgmma import gemm
from tvmops.signatures.dtypes import decode
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload

HOPPER = target("nvidia-h200")
GUARD = 512  # elements around the result that nothing may write


def _described(form: Form, tiles: Tiles, arrays: dict[str, NDArray[Any]]) -> dict[str, TensorMap]:
    """Describe the arrays as the host's code does, in the order in which the kernel takes them."""
    columns = -(-tiles.bn // 64)
    a_box = 64 if form.trans_a else tiles.bm
    b_box = (
        tiles.bn // tiles.cluster
        if form.trans_b
        else 64 // (1 if columns % tiles.cluster == 0 else tiles.cluster)
    )
    maps, at = [], COUNTED_BYTES // 2
    for name, box in (("a", a_box), ("b", b_box)):
        array = arrays[name]
        rows, size = array.shape
        pitch = -(-size // 64) * 64
        copied = name in form.pads
        held = arrays["workspace"][at:] if copied else array
        maps.append(TensorMap.of(held, (size, rows), (64, box), pitches=(2 * (pitch if copied else size),)))
        at += rows * pitch if copied else 0
    maps.append(TensorMap.of(arrays["c"], arrays["c"].shape[::-1], (64, 64)))
    return dict(zip(("v", "v_1", "v_2"), maps))


def _steps(cubin: Cubin, k: int) -> dict[str, int]:
    """Return what the host computes for the product: how many steps k has."""
    _, parameters = re.findall(r"__global__ void __launch\w+\([^)]*\) \w+\(([^)]*)\) \{", cubin.source)
    return dict.fromkeys(re.findall(r"cse_v\d+", parameters), -(-k // 64))


def run_beside(
    template: PaddedGemm, work: Workload, config: Config, blocks: int, folder: Path, late: bool = True
) -> None:
    """Check the product of `work` on `blocks` multiprocessors, and whether some copies come late."""
    tiles = replace(template.tiles_of(config, HOPPER), multiprocessors=blocks)
    form, dtype = template.form_of(work, config), str(work["dtype"])
    _, (cubin,) = compile_module(IRModule({"main": gemm(form, tiles)}), HOPPER)
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    op = op_of(work)
    inputs = op.random_inputs(work, seed=1)
    (right,) = op.reference(work, *(decode(array, dtype) for array in inputs))
    memory = np.full(right.size + 2 * GUARD, 0xFFFF, np.uint16)  # NaN
    arrays = dict(zip((spec.name for spec in op.inputs(work)), inputs))
    arrays["c"] = memory[GUARD:-GUARD].view(inputs[0].dtype).reshape(right.shape)
    m, n, k = work.dims("m", "n", "k")
    arrays["workspace"] = np.full(2 * (m + n) * (k + 64), 0xFFFF, np.uint16)
    arguments = {**arrays, "m": m, "n": n, "k": k, **_described(form, tiles, arrays), **_steps(cubin, k)}
    emulated(cubin, folder)(8 * blocks, arguments)
    before = arrays["workspace"].copy()
    emulated(cubin, folder, 1)(
        blocks, arguments, tiles.cluster * tiles.neighbours, shared_bytes=tiles.shared_bytes
    )
    came = arrays["workspace"][COUNTED_BYTES // 2 :] != before[COUNTED_BYTES // 2 :]
    assert came.any() == late
    assert (memory[:GUARD] == 0xFFFF).all() and (memory[-GUARD:] == 0xFFFF).all()
    found = decode(arrays["c"], dtype).astype(np.float64)
    assert np.abs(found - right).max() <= op.tolerance(work)
