"""Compile a template of attention in this process, and call its kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from tests.schedules.cpu.guarded import Array, compiled
from tests.schedules.cpu.kernels import Kernel
from tvmops.ops import op_of
from tvmops.schedules import Template
from tvmops.targets import target
from tvmops.workloads import Workload, workload

Dims = tuple[int, int, int, int, int, int]


def attention(dims: Dims, **fields: object) -> Workload:
    """Return the workload of (batch, heads, kv_heads, q_len, kv_len, head_dim)."""
    names = ("batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim")
    return workload("attention", **dict(zip(names, dims)), **fields)


def kernels_of(template: Template) -> Callable[[Workload, str], Kernel]:
    """Return what compiles the default config of `template`, each once."""

    @cache
    def default_kernel(work: Workload, name: str) -> Kernel:
        machine = target(name)
        kernel: Kernel = compiled(template, work, machine, template.default(work, machine))
        return kernel

    return default_kernel


def run(kernel: Kernel, work: Workload, inputs: list[Array]) -> Array:
    """Return what `kernel` computes of `inputs`, whatever it is."""
    output = np.full_like(inputs[0], np.nan)
    kernel(*inputs, *op_of(work).scalars(work), output)
    return output
