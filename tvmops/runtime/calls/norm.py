"""Calls of layer_norm and rms_norm."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from tvmops.errors import CallError
from tvmops.runtime.arrays import as_input, view
from tvmops.runtime.calls.base import Call, float_dtype, number
from tvmops.signatures import SIGNATURES
from tvmops.workloads import Workload


def layer_norm(x: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, residual: Any = None) -> Call:
    """Return the call that `Library.layer_norm` makes of its arguments."""
    return _call("layer_norm", x, weight, bias, eps, residual)


def rms_norm(x: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, residual: Any = None) -> Call:
    """Return the call that `Library.rms_norm` makes of its arguments."""
    return _call("rms_norm", x, weight, bias, eps, residual)


def _call(op: str, x: Any, weight: Any, bias: Any, eps: float, residual: Any) -> Call:
    x = view(op, "x", x)
    shape, dtype = tuple(x.shape), float_dtype(x)
    if not shape:
        raise CallError(op=op, argument="x", value="of shape ()", expected="one dimension or more")
    given = {"weight": weight, "bias": bias}
    arrays = {name: view(op, name, array) for name, array in given.items() if array is not None}
    normalised = tuple(next(iter(arrays.values())).shape) if arrays else shape[-1:]
    for name, array in arrays.items():
        found = tuple(array.shape)
        if found != normalised or not found or shape[-len(found) :] != found:
            expected = f"the last dimensions of x, of shape {shape}"
            raise CallError(op=op, argument=name, value=f"of shape {found}", expected=expected)
    rows, cols = prod(shape[: len(shape) - len(normalised)]), prod(normalised)
    inputs = {name: as_input(op, name, array, dtype).reshape((cols,)) for name, array in arrays.items()}
    inputs["x"] = as_input(op, "x", x, dtype).reshape((rows, cols))
    if residual is not None:
        added = as_input(op, "residual", residual, dtype)
        if tuple(added.shape) != shape:
            value = f"of shape {tuple(added.shape)}"
            raise CallError(op=op, argument="residual", value=value, expected=f"shape {shape}, that of x")
        inputs["residual"] = added.reshape((rows, cols))
    flags = {name: name in inputs for name in ("weight", "bias", "residual")}
    shapes = (shape,) * (2 if flags["residual"] else 1)
    fields = {"rows": rows, "cols": cols, "dtype": dtype, **flags}
    return Call.of(op, inputs, (number(op, "eps", eps),), shapes, **fields)


def arguments(workload: Workload, inputs: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of either method that make it `workload` on these arrays."""
    names = [spec.name for spec in SIGNATURES[workload.op].inputs(workload)]
    return dict(zip(names, inputs))
