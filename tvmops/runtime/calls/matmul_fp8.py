"""Calls of matmul_fp8."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from tvmops.errors import CallError, CallTypeError
from tvmops.runtime.arrays import dtype_of, view
from tvmops.runtime.calls.base import Call, parsed, shape_of
from tvmops.signatures.dtypes import FLOAT8
from tvmops.signatures.matmul_fp8 import ROWS, TENSOR
from tvmops.workloads import Workload

OP = "matmul_fp8"


def call(a: Any, b: Any, a_scale: Any, b_scale: Any, out_dtype: str | None = None) -> Call:
    """Return the call that `Library.matmul_fp8` makes of its arguments."""
    a, b = view(OP, "a", a), view(OP, "b", b)
    (m, k), (n, columns) = shape_of(OP, "a", a, 2), shape_of(OP, "b", b, 2)
    if columns != k or k == 0:
        expected = f"{k} columns, those of a" if k else "at least one column"
        raise CallError(op=OP, argument="b", value=f"of shape {(n, columns)}", expected=expected)
    dtype = dtype_of(a)
    if dtype not in FLOAT8:
        expected = "dtype " + " or ".join(FLOAT8)
        raise CallTypeError(op=OP, argument="a", value=f"of dtype {dtype}", expected=expected)
    scales = {"a_scale": view(OP, "a_scale", a_scale), "b_scale": view(OP, "b_scale", b_scale)}
    by_rows = any(prod(scale.shape) != 1 for scale in scales.values())
    for (name, scale), size in zip(scales.items(), (m, n)):
        wanted = size if by_rows else 1
        if prod(scale.shape) != wanted:
            expected = f"{wanted} elements; both scales are one number, or both one a row"
            raise CallError(op=OP, argument=name, value=f"of shape {tuple(scale.shape)}", expected=expected)
    return Call.of(
        OP,
        {"a": a, "b": b, **{name: scale.reshape(-1) for name, scale in scales.items()}},
        m=m,
        n=n,
        k=k,
        dtype=dtype,
        out_dtype=parsed(OP, "out_dtype", out_dtype or "bfloat16"),
        scales=ROWS if by_rows else TENSOR,
    )


def arguments(workload: Workload, inputs: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of `Library.matmul_fp8` that make it `workload` on these arrays."""
    given = dict(zip(("a", "b", "a_scale", "b_scale"), inputs))
    return {**given, "out_dtype": workload["out_dtype"]}
