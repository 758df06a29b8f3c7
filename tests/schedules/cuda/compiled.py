"""Compile a template's kernel for a GPU that need not be here."""

from __future__ import annotations

from functools import cache

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
