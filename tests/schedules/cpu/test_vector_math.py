"""Elementary functions over samples of all float32, and what the compiler makes of them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import IRModule, runtime, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.measure.build import compile_module
from tvmops.schedules.cpu import vector_math
from tvmops.schedules.cpu.emit import load, store
from tvmops.targets import Target, target

Function = Callable[[tirx.Expr], tirx.Expr]
COUNT = 1 << 16
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38]
EXACT: dict[str, Callable[[Any], Any]] = {
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}
# ulp, as the docstrings state
BOUNDS = {"exp": 1, "log": 1, "tanh": 3, "erf": 3, "sigmoid": 3}


@cache
def compiled(name: str, machine: str, width: int) -> runtime.Module:
    """Return a module with y = name(x) over `COUNT` elements, `width` lanes at a time."""
    function: Function = getattr(vector_math, name)
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            x, y = (
                T.match_buffer(T.arg(arg, T.handle()), (COUNT,), "float32", align=4) for arg in ("x", "y")
            )
            with T.serial(COUNT // width) as i:
                store(y, function(load(x, [], i * width, width, None)), [], i * width, width, None)
    return compile_module(IRModule({"main": builder.get()}), target(machine))


def computed(name: str, x: NDArray[np.float32], machine: str = "native", width: int = 8) -> Any:
    y = np.full(COUNT, 7, np.float32)
    compiled(name, machine, width)["main"](x, y)
    return y


def all_floats(stride: int = (1 << 32) // COUNT) -> NDArray[np.float32]:
    """Return floats spread over all bit patterns, special ones first."""
    x = (np.arange(COUNT, dtype=np.uint64) * stride + 12345).astype(np.uint32).view(np.float32)
    x[np.isnan(x)] = np.nan  # quiet
    x[: len(SPECIAL)] = SPECIAL
    return x


def moderate_floats(limit: float = 20.0) -> NDArray[np.float32]:
    return np.linspace(-limit, limit, COUNT, dtype=np.float32)


def ulps(y: NDArray[np.float32], exact: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the errors in ulp; 0 where both are infinite or NaN alike, infinite where one is."""
    with np.errstate(all="ignore"):
        nearest = exact.astype(np.float32)
        alike = (y == nearest) | (np.isnan(y) & np.isnan(exact))
        units: NDArray[np.float64] = np.where(alike, 0, np.abs(y - exact) / np.spacing(np.abs(nearest)))
    return np.where(np.isnan(units), np.inf, units)


@pytest.mark.parametrize("draw", [all_floats, moderate_floats])
@pytest.mark.parametrize("name", EXACT)
def test_errors_are_within_the_stated_ulp(name: str, draw: Callable[[], NDArray[np.float32]]) -> None:
    x = draw()
    with np.errstate(all="ignore"):
        exact = EXACT[name](x.astype(np.float64))
    y = computed(name, x)
    if name == "sigmoid":  # flushes to zero a little early
        exact[(exact < 2**-125) & (y == 0)] = 0
    assert ulps(y, exact).max() <= BOUNDS[name], x[ulps(y, exact).argmax()]


@pytest.mark.parametrize("draw", [all_floats, lambda: moderate_floats(90.0)])
def test_the_exponential_of_a_nonpositive_number(draw: Callable[[], NDArray[np.float32]]) -> None:
    x = -np.abs(draw())
    with np.errstate(invalid="ignore"):  # signalling NaN
        exact = np.exp(x.astype(np.float64))
    y = computed("exp_nonpositive", x)
    assert np.array_equal(np.isnan(y), np.isnan(x))
    normal, tiny = exact >= 2**-125, exact < 2**-125
    assert (ulps(y, exact)[normal] <= (3 + np.abs(x) / 16)[normal]).all()
    assert (y[exact < 2**-127] == 0).all()
    assert (np.abs(y - exact)[tiny] < 2**-125).all()


@pytest.mark.parametrize("name", [*EXACT, "exp_nonpositive"])
@pytest.mark.parametrize("width", [1, 4, 16, 32])
def test_a_lane_does_not_depend_on_how_many_there_are(name: str, width: int) -> None:
    x = -np.abs(moderate_floats())
    assert np.array_equal(computed(name, x, width=width), computed(name, x), equal_nan=True)


NEON = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "neoverse-n1"}


def assembly(name: str, machine: Target, lanes: int) -> str:
    function: Function = getattr(vector_math, name)
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            x = T.match_buffer(T.arg("x", T.handle()), (lanes,), "float32", align=4)
            store(x, function(load(x, [], 0, lanes, None)), [], 0, lanes, None)
    text: str = compile_module(IRModule({"main": builder.get()}), machine).inspect_source("asm")
    return text


@pytest.mark.parametrize("name", [*EXACT, "exp_nonpositive"])
def test_arm_computes_in_vectors_too(name: str) -> None:
    machine = dataclasses.replace(target("x86-64-v3"), tvm=NEON, arch="aarch64", vector_bits=128)
    text = assembly(name, machine, 4)
    assert re.search(r"fmla\s+v\d+\.4s", text)
    assert not re.search(rf"bl\s+{name.split('_')[0]}f?\b", text)
    assert not re.search(r"fmadd", text), "scalar arithmetic"


@pytest.mark.parametrize("name", [*EXACT, "exp_nonpositive"])
@pytest.mark.parametrize("machine", ["x86-64-v3", "x86-64-v4"])
def test_x86_computes_in_vectors_without_calls(name: str, machine: str) -> None:
    known = target(machine)
    text = assembly(name, known, known.vector_width("float32"))
    register = {256: "ymm", 512: "zmm"}[known.vector_bits]
    assert re.search(rf"vfn?madd\d+ps.*{register}", text)
    assert not re.search(r"vfn?m(add|sub)\d+ss", text), "scalar arithmetic"
    assert not re.search(rf"call\w*\s+{name.split('_')[0]}f?\b", text)
