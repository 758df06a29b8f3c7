"""Operators inside `jax.jit`."""

from __future__ import annotations

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("jax_tvm_ffi")

import tvmops  # noqa: E402
from tvmops.errors import CallError  # noqa: E402
from tvmops.runtime.jax import operators  # noqa: E402


@pytest.mark.filterwarnings("ignore:library")
def test_a_jitted_function_calls_kernels(lib: tvmops.Library) -> None:
    ops = operators(lib)
    double = jax.jit(lambda a, b: ops.matmul(2 * a, b) + 1)
    rng = np.random.default_rng(0)
    for m, n, k in [(17, 31, 61), (8, 8, 8), (256, 256, 256), (17, 31, 61), (5, 3, 4)]:
        a, b = rng.random((m, k), dtype=np.float32), rng.random((k, n), dtype=np.float32)
        found = np.asarray(double(a, b))
        assert np.abs(found - (2 * a.astype("float64") @ b + 1)).max() < 1e-3
    assert lib.misses() == {"matmul m=5 n=3 k=4 dtype=float32": 1}


@pytest.mark.filterwarnings("ignore:library")
def test_without_jit_and_with_a_batch(lib: tvmops.Library) -> None:
    a, b = np.random.default_rng(0).random((2, 4, 8), dtype=np.float32), np.ones((8, 8), np.float32)
    found = operators(lib).matmul(jax.numpy.asarray(a), b=jax.numpy.asarray(b))
    assert found.shape == (2, 4, 8)
    assert np.abs(np.asarray(found) - a @ b).max() < 1e-4


def test_what_does_not_fit_is_refused_when_it_is_traced(lib: tvmops.Library) -> None:
    ops = operators(lib)
    with pytest.raises(CallError, match="expected 8 rows"):
        jax.jit(ops.matmul)(np.ones((8, 8), np.float32), np.ones((7, 8), np.float32))
    with pytest.raises(AttributeError, match="no operator 'cross'"):
        ops.cross  # noqa: B018
