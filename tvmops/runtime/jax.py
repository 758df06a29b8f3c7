"""A library's operators in JAX, also inside `jax.jit`, through XLA's foreign function interface.

    ops = tvmops.runtime.jax.operators(lib)
    jax.jit(lambda a, b: ops.matmul(a, b, activation="relu"))(a, b)

The package jax-tvm-ffi (Python 3.11 and later) makes a function of tvm-ffi a target of that
interface: XLA hands over its own buffers, and nothing is copied. The target here is a Python
function that calls the kernel, so that threads are set up and generic kernels counted as in any
other call; it takes the interpreter's lock for some microseconds. On the CPU; without gradients.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax_tvm_ffi
import numpy as np
import tvm_ffi

from tvmops.errors import CallTypeError
from tvmops.runtime.calls import CALLS
from tvmops.runtime.load import Library
from tvmops.runtime.packed import PackedWeight

_NUMBERS = itertools.count()  # of the targets of this process


class JaxOperators:
    """The operators of a library as functions of JAX arrays; what `operators` returns.

    Each takes what the library's method of that name takes, without `out`. Shapes are those of
    the trace: a new shape finds its kernel when it is first traced.
    """

    def __init__(self, lib: Library) -> None:
        self._lib = lib
        self._targets: dict[Any, str] = {}

    def __getattr__(self, op: str) -> Callable[..., Any]:
        if op not in CALLS:
            raise AttributeError(f"a library has no operator {op!r}")
        return lambda *arguments, **attributes: self._call(op, arguments, attributes)

    def _call(self, op: str, arguments: tuple[Any, ...], attributes: dict[str, Any]) -> Any:
        stand_ins = tuple(_stand_in(op, each) for each in arguments)
        named = {name: _stand_in(op, each) for name, each in attributes.items()}
        prepared = self._lib.prepare(op, *stand_ins, **named)
        plan = prepared.plan
        given = dict(zip(prepared.names, (each for each in arguments if _is_array(each))))
        given.update({name: each for name, each in attributes.items() if _is_array(each)})
        arrays = tuple(_held(given[name]) for name in prepared.names)
        inputs = [each.of(arrays) for each in plan.inputs]
        results = [jax.ShapeDtypeStruct(form.shape or seen, dtype) for seen, dtype, form in plan.outputs]
        target = self._target(prepared.workload, plan.kernel, plan.scalars, len(inputs))
        made = jax.ffi.ffi_call(target, results)(*inputs)
        made = tuple(each.reshape(seen) for each, (seen, _, _) in zip(made, plan.outputs))
        return made[0] if len(made) == 1 else made

    def _target(
        self, workload: Any, kernel: Callable[..., None], scalars: tuple[float, ...], inputs: int
    ) -> str:
        """Return the name of the target that runs `kernel`; made once."""
        name = self._targets.get((workload, scalars))
        if name is None:
            name = f"tvmops_{next(_NUMBERS)}"

            def run(*arrays: Any) -> None:
                kernel(*arrays[:inputs], *scalars, *arrays[inputs:])

            jax_tvm_ffi.register_ffi_target(name, tvm_ffi.convert(run), ["args", "rets"], platform="cpu")
            self._targets[workload, scalars] = name
        return name


def operators(lib: Library) -> JaxOperators:
    """Return the operators of `lib` as functions of JAX arrays."""
    return JaxOperators(lib)


def _is_array(value: Any) -> bool:
    return len(getattr(value, "shape", ())) > 0


def _held(value: Any) -> Any:
    return value.array if isinstance(value, PackedWeight) else value


def _stand_in(op: str, value: Any) -> Any:
    """Return an array of the shape and dtype of a traced one; anything else as it is."""
    if not _is_array(value) or isinstance(value, PackedWeight):
        return value
    try:
        return np.empty(value.shape, np.dtype("uint16" if value.dtype.name == "bfloat16" else value.dtype))
    except TypeError:
        raise CallTypeError(
            op=op, argument="arrays", value=f"of dtype {value.dtype}", expected="one that NumPy has"
        ) from None
