"""Calls of activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvmops.runtime.arrays import as_input, view
from tvmops.runtime.calls.base import Call, float_dtype, parsed
from tvmops.workloads import Workload

OP = "activation"


def call(activation: str, x: Any) -> Call:
    """Return the call that `Library.activation` makes of its arguments."""
    name = parsed(OP, "activation", activation)
    x = view(OP, "x", x)
    dtype = float_dtype(x)
    dense = as_input(OP, "x", x, dtype)
    shape = tuple(dense.shape)
    flat = dense.reshape(-1)
    return Call.of(OP, {"x": flat}, shapes=(shape,), size=int(flat.shape[0]), activation=name, dtype=dtype)


def arguments(workload: Workload, inputs: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of `Library.activation` that make it `workload` on these arrays."""
    return {"activation": workload["activation"], "x": inputs[0]}
