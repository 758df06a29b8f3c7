"""Calls of activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvmops.runtime.arrays import as_input, view
from tvmops.runtime.calls.base import Call, parsed
from tvmops.workloads import Workload

OP = "activation"


def call(activation: str, x: Any) -> Call:
    """Return the call that `Library.activation` makes of its arguments."""
    name = parsed(OP, "activation", activation)
    dense = as_input(OP, "x", view(OP, "x", x), "float32")
    shape = tuple(dense.shape)
    flat = dense.reshape(-1)
    return Call.of(
        OP, {"x": flat}, shapes=(shape,), size=int(flat.shape[0]), activation=name, dtype="float32"
    )


def arguments(workload: Workload, inputs: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of `Library.activation` that make it `workload` on these arrays."""
    return {"activation": workload["activation"], "x": inputs[0]}
