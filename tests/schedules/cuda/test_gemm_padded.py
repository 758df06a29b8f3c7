from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tests.schedules.cuda.emulated import emulated, needs_emulator
from tvmops.measure.build import compile_module as compile_for_cpu
from tvmops.measure.cuda import Cubin, compile_module
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_padded import PaddedGemm, pads_of
from tvmops.schedules.cuda.gemm_wgmma import tiles_of_c
from tvmops.schedules.cuda.kernels.gemm_arrays import Form, workspace_function
from tvmops.schedules.cuda.kernels.gemm_results import store_rows
from tvmops.schedules.cuda.kernels.pad_rows import LINE, Padded, pad_rows
from tvmops.schedules.cuda.words import c_call, do
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = PaddedGemm()
H200 = target("nvidia-h200")
NOTHING = 0x7FC1  # a NaN of bfloat16


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"dtype": "bfloat16", **fields})


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (matmul(1000, 1001, 1003), "nvidia-h100", True),
        (matmul(1000, 1001, 1003), "nvidia-a100", False),  # no wgmma
        (matmul(1000, 1000, 1000), "nvidia-h100", False),  # aligned
        (matmul(1001, 1000, 1000), "nvidia-h100", False),  # m is no row of an array
        (matmul(1001, 1000, 1000, trans_a=True), "nvidia-h100", True),
        (matmul(1000, 1001, 1003, batch=3, bias=True, activation="gelu"), "nvidia-h200", True),
        (matmul(1000, 1001, 1003).generic(), "nvidia-h200", True),
        (matmul(1000, 1001, 1003, dtype="float32"), "nvidia-h200", False),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


@pytest.mark.parametrize(
    "work, pads, loose",
    [
        (matmul(64, 64, 63), ("a",), False),
        (matmul(64, 63, 64), ("b",), True),
        (matmul(64, 63, 64, trans_b=True), (), True),
        (matmul(63, 64, 64, trans_a=True), ("a",), False),
        (matmul(64, 63, 63), ("a", "b"), True),
        (matmul(64, 63, 63).generic(), ("a", "b"), True),
    ],
)
def test_only_what_needs_it_is_copied(work: Workload, pads: tuple[str, ...], loose: bool) -> None:
    config = TEMPLATE.default(matmul(640, 639, 640), H200)
    form = TEMPLATE.form_of(work, config)
    assert (form.pads, form.loose) == (pads, loose)
    shared = TEMPLATE.kernel_workload(work)  # one kernel for all that need the same
    assert (pads_of(shared), TEMPLATE.form_of(shared, config)) == (pads, form)


@pytest.mark.parametrize("shape", [(1, 1, 1), (77, 768, 770), (4095, 4097, 4099)])
def test_the_default_is_legal(shape: tuple[int, int, int]) -> None:
    work = matmul(*shape)
    assert TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)


@pytest.mark.parametrize("shape", [(4095, 4097, 4099), (3000, 3002, 3004), (2049, 2047, 2051)])
def test_the_default_fills_waves(shape: tuple[int, int, int]) -> None:
    work = matmul(*shape)
    tiles = TEMPLATE.tiles_of(TEMPLATE.default(work, H200), H200)
    waves = tiles_of_c(work, tiles) / tiles.blocks
    assert waves / math.ceil(waves) > 0.9


def test_it_comes_before_the_way_without_copies() -> None:
    names = [template.name for template in templates_for(matmul(640, 639, 640), H200)]
    assert names[:3] == ["cuda.gemm_padded", "cuda.gemm_mma", "cuda.gemm_mma_chained"]


@pytest.mark.parametrize(
    "form, nbytes",
    [
        (Form("float16", pads=("a",)), 15 * LINE * 2),
        (Form("float16", pads=("a", "b")), (15 + 17) * LINE * 2),
        (Form("float16", trans_b=True, batched=True, shared="b", pads=("a", "b")), (30 + 9) * LINE * 2),
    ],
)
def test_the_workspace_holds_the_copies(form: Form, nbytes: int) -> None:
    size = compile_for_cpu(IRModule({"main_workspace": workspace_function(form)}), target("x86-64-v3"))
    m, n, k, batch = 15, 9, 17, 2
    items = (batch,) if form.batched else ()
    a = np.zeros((*items, m, k), np.float16)
    b = np.zeros((n, k) if form.trans_b else (k, n), np.float16)
    c = np.zeros((*items, m, n), np.float16)
    assert size["main_workspace"](a, b, c) == nbytes


def _kernel(emit: Any) -> Cubin:
    """Compile the kernel that `emit` emits."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        emit()
    module = IRModule({"main": builder.get().with_attr("global_symbol", "main")})
    _, (cubin,) = compile_module(module, H200)
    return cubin


def _array(name: str, *shape: Any, dtype: str = "uint16") -> Any:
    return T.arg(name, T.buffer(shape, dtype, align=16, buffer_name=name))


class TestRunHere:
    pytestmark = needs_emulator

    @pytest.mark.parametrize("rows, columns", [(5, 64), (7, 9), (3, 1), (129, 1003), (31, 130), (2, 4090)])
    def test_copies_hold_the_rows(self, rows: int, columns: int, tmp_path: Path) -> None:
        once = columns > 1000
        r, c, size = (tirx.Var(name, "int32") for name in ("rows", "columns", "bytes"))

        def emit() -> None:
            x, y, workspace = _array("x", r, c), _array("y", c, r), _array("workspace", size, dtype="uint8")
            first = Padded(r, c)
            pad_rows(
                workspace, [(x, first), (y, Padded(c, r, first.end))], blocks=2, chained=False, once=once
            )

        x = np.arange(rows * columns, dtype=np.uint16).reshape(rows, columns)
        y = (x + 7).reshape(columns, rows)
        pitches = [-(-size // LINE) * LINE for size in (columns, rows)]
        sizes = [rows * pitches[0], columns * pitches[1]]
        workspace = np.full(sum(sizes) + 8, NOTHING, np.uint16)
        arguments = {"x": x, "y": y, "workspace": workspace, "rows": rows, "columns": columns}
        emulated(_kernel(emit), tmp_path)(2, arguments)
        found = workspace[: sizes[0]].reshape(rows, -1)[:, :columns]
        other = workspace[sizes[0] : -8].reshape(columns, -1)[:, :rows]
        assert (found == x).all() and (other == y).all() and (workspace[-8:] == NOTHING).all()

    @pytest.mark.parametrize(
        "height, width, column", [(64, 200, 64), (33, 129, 64), (64, 191, 128), (50, 67, 64), (7, 63, 0)]
    )
    def test_results_are_stored_where_rows_begin(
        self, height: int, width: int, column: int, tmp_path: Path
    ) -> None:
        m, n = (tirx.Var(name, "int32") for name in ("m", "n"))

        def emit() -> None:
            tile, first, c = _array("tile", 64, 64), T.arg("first", T.int32()), _array("c", m, n)
            T.device_entry()
            warp, lane = T.warp_id([4]), T.lane_id([32])
            T.cta_id([1])
            pool = SMEMPool()
            shared = pool.alloc((64, 64), "uint16", align=1024)
            pool.commit()
            source = """
__forceinline__ __device__ void fill_tile(void* to, const void* from, int thread) {
  for (int at = thread; at < 4096; at += 128)
    static_cast<unsigned short*>(to)[at ^ (at >> 6 & 7) << 3] = static_cast<const unsigned short*>(from)[at];
}
"""
            do(c_call("void", "fill_tile", shared.ptr_to([0, 0]), tile.data, warp * 32 + lane, source=source))
            do(T.cuda.cta_sync())
            store_rows(c.data, 2, m - 2, n, (first, n), shared.ptr_to([0, 0]), warp, lane)

        tile = (np.arange(4096, dtype=np.uint16) + 1).reshape(64, 64)
        memory = np.full((height + 4, width), NOTHING, np.uint16)
        right = memory.copy()
        columns = min(64, width - column)
        right[2 : 2 + height, column : column + columns] = tile[:height, :columns]
        arguments = {"tile": tile, "c": memory, "m": height + 2, "n": width, "first": column}
        emulated(_kernel(emit), tmp_path)(1, arguments, shared_bytes=8192)
        assert (memory == right).all()


@needs_nvcc
@pytest.mark.parametrize(
    "work",
    [
        matmul(1000, 1001, 1003),
        matmul(500, 1001, 1003, batch=3, shared="b", bias=True, residual=True, activation="gelu"),
        matmul(1000, 1001, 1000, out_dtype="float32"),
    ],
    ids=["both", "epilogue", "float32 results"],
)
def test_the_code_is_what_was_meant(work: Workload) -> None:
    cubin = compiled(TEMPLATE, work, H200, TEMPLATE.default(work, H200))
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    assert "wgmma.mma_async" in cubin.source and "pad_rows(" in cubin.source
    assert ("store_rows(" in cubin.source) is (work["out_dtype"] != "float32")
    assert "griddepcontrol.wait" in cubin.source and "main_kernel_1(" in cubin.source
