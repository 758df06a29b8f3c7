from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tvm import IRModule

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.emulated import TensorMap, emulated, needs_emulator
from tvmops.measure import cuda
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_abreast import AbreastGemm
from tvmops.schedules.cuda.gemm_aside import AsideGemm
from tvmops.schedules.cuda.gemm_split import SplitGemm
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.gemm_turned import TurnedGemm
from tvmops.schedules.cuda.kernels.gemm_arrays import BOX_ROWS
from tvmops.schedules.cuda.kernels.gemm_wgmma import gemm
from tvmops.signatures.dtypes import decode
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE, ABREAST, ASIDE, SPLIT = TurnedGemm(), AbreastGemm(), AsideGemm(), SplitGemm()
H200 = target("nvidia-h200")
GUARD = 512  # elements around the result that nothing may write


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"dtype": "bfloat16", **fields})


def knobs(bm: int, bn: int, **more: int) -> Config:
    plain = {"bk": 64, "consumers": 1, "cluster": 1, "split_k": 1, "group": 1, "beside": 1, "chained": 1}
    return Config.of(**{"bm": bm, "bn": bn, **plain, **more})


def split(bm: int, bn: int, parts: int, **more: int) -> Config:
    return knobs(bm, bn, **{"split_k": parts, "sends": 1, **more})


def side_by_side(bn: int, **more: int) -> Config:
    return knobs(192, bn, **{"consumers": 2, "abreast": 1, "aside": 1, **more})


CASES = [
    (matmul(72, 136, 200), knobs(64, 80), 4),  # rows and columns beyond, the last box of each
    (matmul(120, 264, 136), knobs(128, 48, consumers=2, cluster=2), 2),  # blocks of a cluster beyond columns
    (matmul(97, 328, 72, trans_b=True, bias=True, activation="relu"), knobs(128, 112, group=2), 3),
    (matmul(136, 200, 264, trans_a=True, residual=True, dtype="float16"), knobs(256, 112, consumers=2), 2),
    # Each of a cluster loads columns of b that lies across k (one has no rows of its own), a part of its rows
    # (the last tile ends beyond rows), or half of the depth of 64 columns.
    (matmul(200, 136, 136), knobs(128, 80, consumers=2, abreast=2), 4),
    (matmul(152, 136, 200, trans_b=True, residual=True), knobs(64, 48, abreast=4), 4),
    (matmul(168, 64, 72, trans_a=True, bias=True), knobs(64, 64, abreast=2), 2),
    (matmul(72, 200, 136, trans_b=True), knobs(192, 48), 2),  # one warpgroup multiplies three blocks
    # Warpgroups side by side: a wgmma of 48 rows of a, and a warpgroup whose rows are all beyond the last.
    (matmul(136, 392, 136, trans_b=True), side_by_side(128), 2),
    (matmul(104, 336, 200, dtype="float16"), side_by_side(64, abreast=2), 4),
    (matmul(90, 200, 136, residual=True), side_by_side(96, cluster=2), 2),
    # k split: stretches of several buffers, of unequal length, and of less than one.
    (matmul(120, 200, 520, trans_b=True), split(128, 128, 2, consumers=2), 4),
    (matmul(70, 136, 520, bias=True, activation="relu"), split(64, 80, 4), 12),
    (matmul(90, 136, 520, dtype="float16", residual=True), split(128, 48, 4), 16),
]


@needs_emulator[0]
@needs_emulator[1]
@pytest.mark.parametrize("work, config, blocks", CASES)
def test_it_computes_the_product(work: Workload, config: Config, blocks: int, tmp_path: Path) -> None:
    kinds = {"sends": SPLIT, "aside": ASIDE, "abreast": ABREAST}
    template = next((kinds[name] for name in kinds if name in config.as_dict()), TEMPLATE)
    assert config in template.space(work, H200)
    tiles = replace(Tiles.of(config, H200), multiprocessors=blocks)
    _, (cubin,) = cuda.compile_module(IRModule({"main": gemm(TEMPLATE.form_of(work, config), tiles)}), H200)
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    op, dtype = op_of(work), str(work["dtype"])
    inputs = op.random_inputs(work, seed=1)
    (right,) = op.reference(work, *(decode(array, dtype) for array in inputs))
    memory = np.full(right.size + 2 * GUARD, 0xFFFF, np.uint16).view(inputs[0].dtype)  # NaN
    arrays = dict(zip((spec.name for spec in op.inputs(work)), inputs))
    arrays["c"] = memory[GUARD:-GUARD].reshape(right.shape)
    m, n = work.dims("m", "n")
    depth = tiles.bk // (1 if tiles.bm // 64 % tiles.abreast == 0 else tiles.abreast)
    b_rows = min(tiles.bm // tiles.abreast, n) if work["trans_b"] else depth
    a_rows = tiles.bk if work["trans_a"] else min(tiles.bn // tiles.cluster, m)
    boxes = {"v": ("b", b_rows), "v_1": ("a", a_rows), "v_2": ("c", BOX_ROWS)}
    maps = {
        name: TensorMap.of(arrays[each], arrays[each].shape[::-1], (64, rows))
        for name, (each, rows) in boxes.items()
    }
    sizes = dict(zip("mnk", work.dims("m", "n", "k")))
    together = tiles.sharers * tiles.split_k
    grid = blocks // together * together
    emulated(cubin, tmp_path)(grid, {**arrays, **sizes, **maps}, together, shared_bytes=tiles.shared_bytes)
    assert (memory[:GUARD].view(np.uint16) == 0xFFFF).all() and (
        memory[-GUARD:].view(np.uint16) == 0xFFFF
    ).all()
    found = decode(arrays["c"], dtype).astype(np.float64)
    assert np.abs(found - right).max() <= op.tolerance(work)


@pytest.mark.parametrize(
    "lies, a, b", [({}, "mk", "kn"), ({"trans_a": True}, "km", "kn"), ({"trans_b": True}, "mk", "nk")]
)
def test_it_is_called_as_the_product_that_it_makes(lies: dict[str, bool], a: str, b: str) -> None:
    work = matmul(96, 256, 128, **lies)
    function = TEMPLATE.build(work, H200, TEMPLATE.default(work, H200))["main"]
    shapes = [(each.name, "".join(map(str, each.shape))) for each in function.params]
    assert shapes == [("a", a), ("b", b), ("c", "mn")]


@pytest.mark.parametrize(
    "work, covered",
    [
        (matmul(32, 1024, 1024), False),  # streamed
        (matmul(33, 1024, 1024), True),
        (matmul(4096, 4096, 4096, dtype="float16"), True),
        (matmul(100, 1024, 1024, out_dtype="float32"), False),
        (matmul(100, 1024, 1024, batch=2), False),
        (matmul(100, 1028, 1024), False),  # rows that TMA can't take
    ],
)
def test_it_covers_rows_enough(work: Workload, covered: bool) -> None:
    assert TEMPLATE.covers(work, H200) is covered
    assert (TEMPLATE.name in [template.name for template in templates_for(work, H200)]) is covered
    assert not covered or TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)


@needs_nvcc
@pytest.mark.parametrize("m, n, k", [(384, 4096, 4096), (400, 6144, 4096)])
def test_the_default_of_a_full_wave_fits_the_registers(m: int, n: int, k: int) -> None:
    work = matmul(m, n, k)
    config = TEMPLATE.default(work, H200)
    tiles = Tiles.of(config, H200)
    assert -(-n // tiles.bm) * -(-m // tiles.bn) <= H200.cores
    assert compiled(TEMPLATE, work, H200, config).report.spilled_bytes == 0
