from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import IRModule

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.emulated import TensorMap, emulated, needs_emulator
from tvmops.measure.cuda import Cubin, compile_module
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_padded import PaddedGemm
from tvmops.schedules.cuda.gemm_padded_late import LatePaddedGemm
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.kernels.gemm_arrays import COUNTED_BYTES, Form
from tvmops.schedules.cuda.kernels.gemm_wgmma import gemm
from tvmops.signatures.dtypes import decode
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = LatePaddedGemm()
H200 = target("nvidia-h200")
GUARD = 512  # elements around the result that nothing may write
ONE = dict.fromkeys(("consumers", "cluster", "split_k", "group", "beside", "chained"), 1)


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"dtype": "bfloat16", **fields})


@pytest.mark.parametrize(
    "work, covered",
    [
        (matmul(4095, 4097, 4099), True),
        (matmul(4095, 4097, 4099, trans_b=True, bias=True), True),
        (matmul(2049, 2047, 2051), False),  # a wave of tiles: all is needed at once
        (matmul(3000, 3002, 3004), False),  # the largest tiles leave much of the third wave
        (matmul(65_536, 101, 4099), False),  # multiplied in less time than copied
        (matmul(4096, 4096, 4096), False),  # nothing is copied
        (matmul(4095, 4097, 512, trans_b=True), False),  # nor here: only results begin anywhere
        (matmul(4095, 4097, 4099, batch=2), False),
        (matmul(4095, 4097, 4099, trans_a=True, residual=True), False),  # has no registers left
        (matmul(4095, 4097, 4099).generic(), False),
    ],
)
def test_what_it_covers(work: Workload, covered: bool) -> None:
    assert TEMPLATE.covers(work, H200) is covered


def test_untuned_it_is_what_answers() -> None:
    work = matmul(4095, 4097, 4099)
    first, second, *_ = templates_for(work, H200)
    assert (first.name, second.name) == ("cuda.gemm_padded_late", "cuda.gemm_padded")
    default = TEMPLATE.default(work, H200)
    assert default in TEMPLATE.space(work, H200)
    padded = PaddedGemm()
    assert TEMPLATE.estimate(work, H200, default) < padded.estimate(work, H200, padded.default(work, H200))


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


class TestRunHere:
    pytestmark = needs_emulator

    # Few blocks, so that most is copied late: of both operands, for clusters, of rows shorter than what is
    # loaded at once or longer, next to an aligned operand.
    @pytest.mark.parametrize(
        "work, knobs, blocks",
        [
            (matmul(136, 137, 203), {"group": 2}, 4),
            (matmul(264, 150, 136), {"cluster": 2, "group": 2}, 4),
            (matmul(131, 301, 7, trans_b=True, residual=True), {}, 2),
            (matmul(2205, 72, 7, trans_a=True, bias=True, dtype="float16"), {"bn": 80}, 2),
        ],
    )
    def test_it_computes_the_product(
        self, work: Workload, knobs: dict[str, int], blocks: int, tmp_path: Path
    ) -> None:
        config = TEMPLATE.space(work, H200).config({**ONE, "bm": 64, "bn": 64, "bk": 64, **knobs})
        tiles = replace(TEMPLATE.tiles_of(config, H200), multiprocessors=blocks)
        form, dtype = TEMPLATE.form_of(work, config), str(work["dtype"])
        _, (cubin,) = compile_module(IRModule({"main": gemm(form, tiles)}), H200)
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
        emulated(cubin, tmp_path)(8 * blocks, arguments)
        before = arrays["workspace"].copy()
        emulated(cubin, tmp_path, 1)(
            blocks, arguments, tiles.cluster * tiles.neighbours, shared_bytes=tiles.shared_bytes
        )
        assert (
            arrays["workspace"][COUNTED_BYTES // 2 :] != before[COUNTED_BYTES // 2 :]
        ).any()  # some came late
        assert (memory[:GUARD] == 0xFFFF).all() and (memory[-GUARD:] == 0xFFFF).all()
        found = decode(arrays["c"], dtype).astype(np.float64)
        assert np.abs(found - right).max() <= op.tolerance(work)


@needs_nvcc
def test_the_code_is_what_was_meant() -> None:
    work = matmul(4095, 4097, 4099, bias=True, activation="gelu")
    cubin = compiled(TEMPLATE, work, H200, TEMPLATE.default(work, H200))
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    assert "pad_rows(" not in cubin.source and cubin.source.count("fence.proxy.async.global") == 2
