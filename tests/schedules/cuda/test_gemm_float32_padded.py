from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.emulated import TensorMap, emulated, needs_emulator
from tests.schedules.cuda.products import Launch, blocks_of, error_here
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_float32_boxes import ragged_of, tiles_of
from tvmops.schedules.cuda.gemm_float32_padded import Float32Padded
from tvmops.schedules.cuda.gemm_mma import row_dims
from tvmops.schedules.cuda.kernels.gemm_float32_boxes import DEPTH
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = Float32Padded()
H200 = target("nvidia-h200")
_LINE = 32  # floats


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"dtype": "float32", **fields})


@pytest.mark.parametrize(
    "work, machine, ragged",
    [
        (matmul(7, 131, 108), "nvidia-h100", ("b",)),
        (matmul(7, 131, 107), "nvidia-h200", ("a", "b")),
        (matmul(7, 132, 107), "nvidia-h200", ("a",)),
        (matmul(7, 132, 107, trans_a=True), "nvidia-h200", ("a",)),
    ],
)
def test_what_is_copied(work: Workload, machine: str, ragged: tuple[str, ...]) -> None:
    assert TEMPLATE.covers(work, target(machine))
    assert ragged_of(work) == ragged_of(TEMPLATE.kernel_workload(work)) == ragged


@pytest.mark.parametrize("work", [matmul(7, 132, 108), matmul(7, 131, 107).generic()])
def test_it_leaves_others_what_needs_no_copies(work: Workload) -> None:
    assert not TEMPLATE.covers(work, H200)


def test_the_default_is_legal() -> None:
    work = matmul(1000, 999, 777)
    assert TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)
    assert templates_for(work, H200)[0].name == "cuda.gemm_float32_padded"


def knobs_of(bm: int, bn: int, tm: int, tn: int, splits: int = 1, chained: int = 0) -> Config:
    return Config.of(
        bm=bm, bn=bn, tm=tm, tn=tn, stages=2, splits=splits, beside=1, ahead=1, chained=chained
    )


CASES = [
    (matmul(37, 61, 35), knobs_of(32, 64, 4, 4)),
    (matmul(17, 66, 105, trans_b=True, bias=True), knobs_of(16, 64, 4, 4, splits=2, chained=1)),
    (matmul(19, 70, 40, batch=2, shared="b", trans_a=True), knobs_of(32, 64, 8, 4)),
]


@pytest.mark.parametrize("work, knobs", CASES, ids=[str(work) for work, _ in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        assert knobs in TEMPLATE.space(work, H200)
        cubin, tiles = compiled(TEMPLATE, work, H200, knobs), tiles_of(knobs)
        a, b, *_ = op_of(work).random_inputs(work, seed=1)
        given, sizes = {"a": a, "b": b}, {name: v for name, v in work.items if isinstance(v, int)}
        rows = {name: array.size // array.shape[-1] for name, array in given.items()}
        pitches = {name: -(-array.shape[-1] // _LINE) * _LINE for name, array in given.items()}
        workspace = np.full(sum(rows[name] * pitches[name] for name in ragged_of(work)), np.nan, np.float32)
        emulated(cubin, tmp_path, 0)(264, {**given, **sizes, "workspace": workspace})
        maps, begin = {}, 0
        along = {"a": not work["trans_a"], "b": bool(work["trans_b"])}
        for name, block in (("a", tiles.bm), ("b", tiles.bn)):
            array, pitch = given[name], given[name].shape[-1]
            memory = array
            if name in ragged_of(work):
                memory, pitch = workspace[begin:], pitches[name]
                begin += rows[name] * pitch
            maps["v" if name == "a" else "v_1"] = TensorMap.of(
                memory,
                array.shape[::-1],
                ((DEPTH, block) if along[name] else (block, DEPTH)) + (1,) * (array.ndim - 2),
                pitches=(4 * pitch, 4 * pitch * array.shape[-2], 0, 0),
                swizzles=along[name],
            )
        launch = Launch(blocks_of(work, tiles.bm, tiles.bn) * tiles.splits, tiles.splits, tiles.shared_bytes)
        error = error_here(cubin, work, launch, tmp_path, {**maps, "workspace": workspace}, number=1)
        assert error <= op_of(work).tolerance(work)


@needs_nvcc
def test_copies_are_waited_for() -> None:
    work = matmul(100, 99, 77)
    source = compiled(TEMPLATE, work, H200, knobs_of(32, 64, 4, 4, chained=1)).source
    main = source[source.index("main_kernel_1(") :]
    assert "pad_rows(" in source and main.index("griddepcontrol_wait()") < main.index("tensor_g2s")
    assert row_dims(work) == ("k", "n")
