from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import IRModule

from tests.schedules.cuda.compiled import each_compiled, needs_nvcc
from tests.schedules.cuda.emulated import TensorMap, emulated, needs_emulator
from tests.schedules.cuda.products import Launch, blocks_of, error_here
from tvmops.measure import cuda
from tvmops.ops import op_of
from tvmops.schedules.cuda.gemm_tf32_crossed import Tf32Crossed
from tvmops.schedules.cuda.kernels.gemm_wgmma import gemm
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

CROSSED = Tf32Crossed()
H200 = target("nvidia-h200")
assert H200.gpu is not None
ROOM = H200.gpu.shared_bytes
LINE = 32  # floats: rows of a copy are whole lines of 128 bytes


def product(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, trans_a=True, precision="tf32", **fields)


def config(bm: int, bn: int, consumers: int, turns_a: int, split_k: int = 1) -> Config:
    return Config.of(
        bm=bm, bn=bn, bk=64, consumers=consumers, cluster=1, split_k=split_k, group=1, beside=1, chained=1,
        turns_a=turns_a,
    )  # fmt: skip


@pytest.mark.parametrize(
    "shape, turns_a",
    [((768, 3072, 16384), 1), ((4096, 1024, 16384), 0)],  # the smaller one is turned
)
@pytest.mark.parametrize("fields", [{}, {"residual": True}], ids=str)
def test_the_default_turns_the_smaller_factor(
    shape: tuple[int, int, int], turns_a: int, fields: dict[str, object]
) -> None:
    work = product(*shape, **fields)
    default = CROSSED.default(work, H200)
    assert default in CROSSED.space(work, H200) and default["turns_a"] == turns_a


def test_generic_kernels_take_large_products_alone() -> None:
    kernels = CROSSED.generic(product(512, 512, 2048).generic(), H200)
    assert all(kernel.multiples == {"m": 4, "n": 4} for kernel in kernels)
    least = [[kernel.ranges[dim][0] for dim in "mnk"] for kernel in kernels]
    assert least == [[512, 512, 2048], [1025, 1024, 2048]]
    assert [kernel.ranges["m"][1] for kernel in kernels] == [1024, 2**31 - 1]


@needs_nvcc
def test_the_code_spills_nothing() -> None:
    pattern = product(512, 512, 1024, bias=True, activation="gelu").generic()
    work = product(4096, 4096, 4096, residual=True)
    cases = [(CROSSED, pattern, CROSSED.generic(pattern, H200)[-1].config)]
    cases.append((CROSSED, work, CROSSED.default(work, H200)))
    for cubin in each_compiled(cases, H200):
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        assert "k8.f32.tf32.tf32" in cubin.source and "turn_floats(" in cubin.source


CASES = [
    (product(132, 72, 68, bias=True), config(128, 64, 2, turns_a=0)),  # short last tiles, k within a line
    (product(68, 132, 300, residual=True, activation="relu"), config(64, 128, 1, turns_a=1, split_k=2)),
    (product(36, 68, 40, batch=3, shared="b"), config(64, 64, 1, turns_a=0)),
    (product(68, 36, 35), config(64, 64, 1, turns_a=1)),  # less k than two steps, of any length
]


def _padded(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `array` with NaN behind its rows, up to a whole line: what is there is never multiplied."""
    behind = [(0, 0)] * (array.ndim - 1) + [(0, -array.shape[-1] % LINE)]
    return np.pad(array, behind, constant_values=np.nan)


def _map(array: NDArray[np.float32], columns: int, rows: int) -> TensorMap:
    """Describe what `_padded` made of an array of `columns` to the copy engine, in elements of 16 bits."""
    dims, box = (2 * columns, *array.shape[-2::-1]), (64, rows, *[1] * (array.ndim - 2))
    return TensorMap.of(array.view(np.uint16), dims, box, pitches=array.strides[-2::-1])


def check_copy(
    work: Workload, cubin: cuda.Cubin, grid: int, turned: NDArray[np.float32], folder: Path
) -> None:
    """The first kernel turns a factor, writes zeros up to a whole line, and nothing beyond."""
    a, b = op_of(work).random_inputs(work, seed=1)[:2]
    right = np.pad(turned, [(0, 0)] * (turned.ndim - 1) + [(0, -turned.shape[-1] % LINE)])
    made: Any = np.full(right.size + LINE, np.nan, np.float32)
    sizes = {name: work[name] for name in ("batch", "m", "n", "k")}
    arrays = {"a": a, "b": b, "workspace": made}
    emulated(cubin, folder)(grid, {**sizes, **arrays}, shared_bytes=ROOM)
    assert (made[:-LINE].reshape(right.shape) == right).all() and np.isnan(made[-LINE:]).all()


def check(work: Workload, knobs: Config, folder: Path) -> None:
    """The copy is what was meant, and so is the product of it: bits were left out, and no more than that."""
    assert knobs in CROSSED.space(work, H200)
    form, tiles = CROSSED.form_of(work, knobs), CROSSED.tiles_of(knobs, H200)
    tiles = replace(tiles, multiprocessors=2 * tiles.cluster)
    _, (cubin,) = cuda.compile_module(IRModule({"main": gemm(form, tiles)}), H200)
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    a, b = op_of(work).random_inputs(work, seed=1)[:2]
    own, other = (b, a) if knobs["turns_a"] else (a, b)
    turned = np.ascontiguousarray(np.swapaxes(other, -1, -2))
    check_copy(work, cubin, 8 * tiles.multiprocessors, turned, folder)
    first, second = _padded(own), _padded(turned)
    boxes = {"v": _map(first, own.shape[-1], tiles.bk // 2)}
    boxes["v_1"] = _map(second, turned.shape[-1], tiles.bn // tiles.cluster)
    sizes = (tiles.bn, tiles.bm) if knobs["turns_a"] else (tiles.bm, tiles.bn)
    grid = blocks_of(work, *sizes) * tiles.split_k if tiles.split_k > 1 else tiles.blocks
    launch = Launch(grid, tiles.cluster * tiles.split_k, ROOM)
    error = error_here(cubin, work, launch, folder, boxes, number=len(form.copied))
    assert op_of(work).tolerance(work.replace(precision="full")) < error <= op_of(work).tolerance(work)


class TestRunHere:
    pytestmark = needs_emulator

    @pytest.mark.parametrize("work, knobs", CASES, ids=[f"{work} {knobs}" for work, knobs in CASES])
    def test_it_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        check(work, knobs, tmp_path)

    @pytest.mark.parametrize("seed", range(2))
    def test_so_does_any_config(self, seed: int, tmp_path: Path) -> None:
        rng = random.Random(seed)
        work = product(4 * rng.randint(1, 40), 4 * rng.randint(1, 40), rng.randint(20, 300))
        knobs = CROSSED.space(work, H200).sample(rng)
        assert knobs is not None
        check(work, knobs, tmp_path)
