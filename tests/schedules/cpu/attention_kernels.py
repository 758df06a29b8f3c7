"""Compile a template of attention in this process, and call its kernels, also on unusual inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from tests.schedules.cpu.guarded import Array, compiled
from tests.schedules.cpu.kernels import Kernel
from tvmops.ops import op_of
from tvmops.schedules import Template
from tvmops.signatures.dtypes import encode
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


def generic_kernels_of(template: Template) -> Callable[[Workload, str], list[Kernel]]:
    """Return what compiles the generic kernels of `template`, each once."""

    @cache
    def generic_kernels(pattern: Workload, name: str) -> list[Kernel]:
        machine = target(name)
        offers = template.generic(pattern, machine)
        return [compiled(template, pattern, machine, generic.config) for generic in offers]

    return generic_kernels


def run(kernel: Kernel, work: Workload, inputs: list[Array]) -> Array:
    """Return what `kernel` computes of `inputs`, whatever it is."""
    output = np.full_like(inputs[0], np.nan)
    kernel(*inputs, *op_of(work).scalars(work), output)
    return output


ADVERSARIAL = attention((1, 1, 1, 20, 70, 16), mask="float32")  # two blocks of keys
UNUSUAL = (
    "a query that sees nothing",
    "a query that sees the last key alone",
    "NaN in a query",
    "NaN in a key",
    "NaN in a value",
    "inf in a value",
    "NaN in a mask",
    "+inf in a mask",
    "inf in a query",
    "scores that are huge and alike",
    "denormal keys",
    "weights that underflow before the largest comes",
)


def inputs_of(work: Workload) -> list[Array]:
    inputs = op_of(work).random_inputs(work, seed=3)
    for mask in inputs[3:]:
        mask[...] = 0
    return inputs


def altered(name: str, dtype: str = "float32") -> list[Array]:
    """Return inputs of ADVERSARIAL, of `dtype`, that hold something unusual."""
    q, k, v, mask = inputs_of(ADVERSARIAL)
    if name == "a query that sees nothing":
        mask[..., 4, :] = -np.inf
    elif name == "a query that sees the last key alone":
        mask[..., 4, :-1] = -np.inf
    elif name == "NaN in a query":
        q[..., 3, 5] = np.nan
    elif name == "NaN in a key":
        k[..., 69, 5] = np.nan
    elif name == "NaN in a value":
        v[..., 7, 5] = np.nan
    elif name == "inf in a value":
        v[..., 7, 5] = np.inf
    elif name == "NaN in a mask":
        mask[..., 3, 60] = np.nan
    elif name == "+inf in a mask":
        mask[..., 3, 2] = np.inf
    elif name == "inf in a query":
        q[..., 3, 5] = np.inf
    elif name == "scores far apart":
        q *= 1e4
    elif name == "scores that are huge and alike":
        mask[...] = 1e6
        q *= 0
    elif name == "denormal keys":
        k *= 1e-40
    elif name == "weights that underflow before the largest comes":
        mask[..., :60] = -1e4
    else:
        raise AssertionError(name)
    return [*(encode(array, dtype) for array in (q, k, v)), mask]
