"""Epilogues give what float64 gives, at infinities and NaN too."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tests.schedules.cpu.kernels import Kernel
from tvmops.machine import this_machine
from tvmops.measure.build import compile_module
from tvmops.ops.activations import activated
from tvmops.schedules.cpu.emit import ceildiv, divides, load, store
from tvmops.schedules.cpu.epilogue import VECTOR, Epilogue
from tvmops.signatures.activations import ACTIVATIONS
from tvmops.targets import target

TARGETS = [name for name in ("x86-64-v3", "x86-64-v4") if not target(name).missing(this_machine())]
ADVERSARIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-40, -1e-40, 1e-30, -1e-30, 88.5, -88.5]
VALUES = np.concatenate([ADVERSARIAL, np.linspace(-12, 12, 3001)]).astype("float32")


def finishing(epilogue: Epilogue, count: int, name: str) -> Kernel:
    """Compile a kernel that takes values, bias and residual, and stores what `epilogue` makes of them."""
    machine = target(name)
    width = machine.vector_width("float32")
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            handles = [T.arg(each, T.handle()) for each in ("x", "bias", "residual", "y")]
            x, bias, residual, y = (T.match_buffer(each, (count,), "float32", align=4) for each in handles)
            with T.serial(ceildiv(count, width)) as vector:
                limit = None if divides(width, count) else count
                value, first, second = (
                    load(each, [], vector * width, width, limit) for each in (x, bias, residual)
                )
                made = epilogue.apply(value, width, bias=lambda: first, residual=lambda: second)
                store(y, made, [], vector * width, width, limit)
    kernel: Kernel = compile_module(IRModule({"main": builder.get()}), machine)["main"]
    return kernel


def test_every_activation_has_a_vector_form() -> None:
    assert set(VECTOR) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("activation", VECTOR)
def test_an_activation_is_the_reference(activation: str, name: str) -> None:
    kernel = finishing(Epilogue(activation), VALUES.size, name)
    result = np.full_like(VALUES, 7)
    kernel(VALUES, VALUES, VALUES, result)
    expected = activated(activation, VALUES.astype("float64")).astype("float32")
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_what_is_added_is_added_before_the_activation(bias: bool, residual: bool) -> None:
    kernel = finishing(Epilogue("relu", bias, residual), 50, TARGETS[-1])
    rng = np.random.default_rng(0)
    x, first, second = rng.standard_normal((3, 50), dtype="float32")
    result = np.empty_like(x)
    kernel(x, first, second, result)
    np.testing.assert_allclose(result, np.maximum(x + bias * first + residual * second, 0), atol=1e-6)
