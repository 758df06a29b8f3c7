"""Compile a template's kernel for a GPU that need not be here."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tvmops.errors import NoCudaCompilerError
from tvmops.measure import cuda
from tvmops.schedules import Template
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.workloads import Workload


@cache
def _has_compiler() -> bool:
    try:
        cuda.find_nvcc()
    except NoCudaCompilerError:
        return False
    return True


needs_nvcc = pytest.mark.skipif(not _has_compiler(), reason="no nvcc here, which compiles CUDA")


def compiled(template: Template, workload: Workload, target: Target, config: Config) -> cuda.Cubin:
    """Return the device code of `config`; a CudaError says that it spills or that ptxas warns."""
    module = template.build(workload, target, config)
    _, (cubin,) = cuda.compile_module(module, target)
    return cubin


def each_compiled(cases: Iterable[tuple[Template, Workload, Config]], target: Target) -> Iterator[cuda.Cubin]:
    """Return the device code of `cases`; where several emit the same, of one of them."""
    modules = (template.build(workload, target, config) for template, workload, config in cases)
    for module in {module.script(): module for module in modules}.values():
        _, (cubin,) = cuda.compile_module(module, target)
        yield cubin


def ptx_of(cubin: cuda.Cubin, code: str, folder: Path) -> str:
    """Return the instructions that nvcc makes of the source of `cubin`, before ptxas."""
    source, out = folder / "kernel.cu", folder / "kernel.ptx"
    source.write_text(cubin.source)
    architecture = f"-arch={code.replace('sm_', 'compute_')}"
    command = [cuda.find_nvcc(), "-ptx", architecture, "-O3", "-std=c++17", "-o", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return out.read_text()
