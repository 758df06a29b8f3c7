from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tests.schedules.cuda.compiled import compiled
from tests.schedules.cuda.emulated import emulated, needs_emulator
from tvmops.measure.build import compile_module as compile_for_cpu
from tvmops.measure.cuda import compile_module
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.kernels.expand_weights import WeightOnlyArrays, WeightOnlyForm
from tvmops.schedules.cuda.kernels.gemm_arrays import workspace_function
from tvmops.schedules.cuda.weight_only_expanded import WeightOnlyExpanded
from tvmops.signatures.dtypes import decode
from tvmops.signatures.matmul_weight_only import groups_of
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = WeightOnlyExpanded()
H200 = target("nvidia-h200")
PITCH = 64  # rows of the copy are whole lines of 128 bytes


def product(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul_weight_only", m=m, n=n, k=k, **{"dtype": "float16", **fields})


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (product(5000, 4096, 4096), "nvidia-h100", True),
        (product(5000, 4096, 4096, bits=8, group=40, zero_points=True), "nvidia-h200", True),
        (product(5000, 4096, 4096).generic(), "nvidia-h200", True),
        (product(64, 4096, 4096), "nvidia-h100", False),  # weights would take longer to make than to multiply
        (product(5000, 4096, 128), "nvidia-h100", False),  # too few products for rounded weights
        (product(5000, 4095, 4096), "nvidia-h100", False),
        (product(5000, 4096, 4096, dtype="float32"), "nvidia-h100", False),
        (product(5000, 4096, 4096), "nvidia-a100", False),  # no wgmma
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


@pytest.mark.parametrize("shape", [(2048, 64, 256), (5000, 4096, 4096), (8192, 28672, 8192)])
def test_the_default_is_legal(shape: tuple[int, int, int]) -> None:
    work = product(*shape)
    assert TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)


def test_others_take_few_rows() -> None:
    names = {m: [t.name for t in templates_for(product(m, 4096, 4096), H200)] for m in (32, 4096)}
    assert TEMPLATE.name in names[4096] and TEMPLATE.name not in names[32]


def test_the_workspace_holds_the_weights() -> None:
    work = product(3, 24, 200)
    form = WeightOnlyForm("float16", trans_b=True, pads=("b",), groups=groups_of(work))
    function = workspace_function(form, WeightOnlyArrays(form))
    size = compile_for_cpu(IRModule({"main_workspace": function}), target("x86-64-v3"))
    x, w = op_of(work).random_inputs(work, seed=0)
    assert size["main_workspace"](x, w, np.zeros((3, 24), np.float16)) == 24 * 256 * 2


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype, group, zero_points", [("float16", 32, True), ("bfloat16", 128, False)])
class TestRunHere:
    pytestmark = needs_emulator

    def test_weights_are_what_is_packed(
        self, bits: int, dtype: str, group: int, zero_points: bool, tmp_path: Path
    ) -> None:
        """n ends within a panel, k within a group."""
        n, k = 40, 200
        work = product(3, n, k, bits=bits, dtype=dtype, group=group, zero_points=zero_points)
        form = WeightOnlyForm(dtype, trans_b=True, pads=("b",), groups=groups_of(work))

        def emit(arrays_of: WeightOnlyArrays) -> None:
            arrays = arrays_of.declare(workspace=True)
            arrays_of.make_copies(arrays, blocks=2, chained=False)

        with IRBuilder() as builder, T.prim_func():
            T.func_name("main")
            emit(WeightOnlyArrays(form))
        module = IRModule({"main": builder.get().with_attr("global_symbol", "main")})
        _, (cubin,) = compile_module(module, H200)
        _, w = op_of(work).random_inputs(work, seed=0)
        pitch = -(-k // PITCH) * PITCH
        made: Any = np.full(n * pitch + 8, 0x7FC1, np.uint16)
        emulated(cubin, tmp_path)(2, {"w": w, "workspace": made, "n": n, "k": k})
        found = made[:-8].reshape(n, pitch)[:, :k]
        right = groups_of(work).unpack(w, n, k)
        rounded = decode(found if dtype == "bfloat16" else found.view(np.float16), dtype)
        assert (made[-8:] == 0x7FC1).all()
        ulp = 2.0 ** -(8 if dtype == "bfloat16" else 11)
        assert np.abs(rounded - right).max() <= ulp * np.abs(right).max()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
class TestCode:
    pytestmark = needs_emulator[:1]

    def test_a_kernel_before_makes_the_weights(self, dtype: str) -> None:
        work = product(512, 4096, 4096, dtype=dtype, bias=True, activation="gelu")
        cubin = compiled(TEMPLATE, TEMPLATE.kernel_workload(work), H200, TEMPLATE.default(work, H200))
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        assert "wgmma.mma_async" in cubin.source and f"expand_weights_{dtype}(" in cubin.source
