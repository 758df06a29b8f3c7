"""Calls of matmul."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvmops.errors import CallError
from tvmops.runtime.arrays import view
from tvmops.runtime.calls.base import Call, shape_of
from tvmops.workloads import Workload

OP = "matmul"


def call(a: Any, b: Any) -> Call:
    """Return the call that `Library.matmul` makes of its arguments."""
    a, b = view(OP, "a", a), view(OP, "b", b)
    (m, k), (rows, n) = shape_of(OP, "a", a, 2), shape_of(OP, "b", b, 2)
    if rows != k:
        expected = f"{k} rows, the columns of a"
        raise CallError(op=OP, argument="b", value=f"of shape {(rows, n)}", expected=expected)
    return Call.of(OP, {"a": a, "b": b}, m=m, n=n, k=k, dtype="float32")


def arguments(workload: Workload, inputs: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of `Library.matmul` that make it `workload` on these arrays."""
    return dict(zip(("a", "b"), inputs))
