from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.schedules.cuda.compiled import needs_nvcc
from tvmops.errors import CudaError, NoCudaCompilerError
from tvmops.measure import cuda
from tvmops.measure.cuda import Report

PTXAS = """\
ptxas info    : Compiling entry function 'main_kernel' for 'sm_90a'
ptxas info    : Function properties for main_kernel
    0 bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used 168 registers, used 4 barriers
"""


def test_the_report_tells_of_spills() -> None:
    fine, bad = Report.of(PTXAS.format(stores=0, loads=0)), Report.of(PTXAS.format(stores=8, loads=12))
    assert (fine.registers, fine.spilled_bytes, fine.complaint) == (168, 0, "")
    assert bad.complaint == "spills 12 bytes of registers"


@pytest.mark.parametrize(
    "warning",
    [
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized",
        "ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored",
    ],
)
def test_the_report_tells_of_what_ptxas_gave_up(warning: str) -> None:
    assert Report.of(PTXAS.format(stores=0, loads=0) + warning).complaint == warning


def test_without_a_compiler_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(cuda, "_TOOLKIT", tmp_path)
    cuda.find_nvcc.cache_clear()
    try:
        with pytest.raises(NoCudaCompilerError, match="install the CUDA toolkit"):
            cuda.find_nvcc()
    finally:
        cuda.find_nvcc.cache_clear()


@needs_nvcc
def test_what_the_compiler_says_is_in_the_error() -> None:
    with pytest.raises(CudaError, match=r"sm_80.*missing_name"):
        cuda.compile_cuda("__global__ void f(int* x) { *x = missing_name; }", "sm_80")


@needs_nvcc
@pytest.mark.parametrize("in_order, level", [(False, "-O3"), (True, "-O1")])
def test_ptxas_orders_instructions_unless_told_not_to(
    in_order: bool, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, commands = subprocess.run, []

    def spy(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", spy)
    cuda.compile_cuda("__global__ void f() {}", "sm_80", in_order)
    assert f"-Xptxas=-v,{level}" in commands[0]
