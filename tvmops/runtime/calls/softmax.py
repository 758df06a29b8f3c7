"""Calls of softmax."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from operator import index
from typing import Any

import numpy as np

from tvmops.errors import CallError, CallTypeError
from tvmops.runtime.arrays import as_input, as_numpy, broadcast, dtype_of, view
from tvmops.runtime.calls.base import Call, float_dtype, number
from tvmops.signatures.dtypes import encode
from tvmops.signatures.softmax import LAST, MIDDLE, SCALE
from tvmops.workloads import Workload

OP = "softmax"
Shape = tuple[int, ...]


def call(x: Any, axis: int = -1, scale: float | None = None, mask: Any = None, log: bool = False) -> Call:
    """Return the call that `Library.softmax` makes of its arguments."""
    x = view(OP, "x", x)
    shape = tuple(x.shape)
    at = axis_of(OP, axis, shape)
    rows, cols, inner = prod(shape[:at]), prod(shape[at : at + 1]), prod(shape[at + 1 :])
    is_last = at >= len(shape) - 1 or inner == 1
    dtype = float_dtype(x)
    dense = as_input(OP, "x", x, dtype)
    inputs = {"x": dense.reshape((rows, cols) if is_last else (rows, cols, inner))}
    if mask is not None:
        added = _mask(mask, shape or (1,), at, dtype)
        if rows * cols * inner > 0:
            inputs["mask"] = added.reshape((-1, *inputs["x"].shape[1:]))
    fields: dict[str, Any] = {"mask_rows": len(inputs["mask"])} if "mask" in inputs else {}
    return Call.of(
        OP,
        inputs,
        () if scale is None else (number(OP, "scale", scale),),
        (shape,),
        rows=rows,
        cols=cols,
        inner=inner,
        axis=LAST if is_last else MIDDLE,
        log=bool(log),
        scaled=scale is not None,
        dtype=dtype,
        **fields,
    )


def arguments(workload: Workload, inputs: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of `Library.softmax` that make it `workload` on these arrays."""
    given: dict[str, Any] = dict(zip(("x", "mask"), inputs))
    if workload["mask_rows"] not in (0, 1, workload["rows"]):
        given["x"] = given["x"].reshape((-1, *given["mask"].shape))  # over which the mask repeats
    given.update(axis=-2 if workload["axis"] == MIDDLE else -1, log=workload["log"])
    if workload["scaled"]:
        given["scale"] = SCALE
    return given


def axis_of(op: str, axis: int, shape: Shape) -> int:
    """Return `axis` counted from the first; 0 for an array without dimensions."""
    rank = max(len(shape), 1)
    try:
        found = index(axis)
    except TypeError:
        raise CallTypeError(op=op, argument="axis", value=repr(axis), expected="an integer") from None
    if not -rank <= found < rank:
        raise CallError(op=op, argument="axis", value=axis, expected=f"from {-rank} to {rank - 1}")
    return found % rank


def _mask(mask: Any, shape: Shape, axis: int, dtype: str) -> Any:
    """Return `mask` dense, with the dimensions of x from `axis` on and any before over which it differs.

    It repeats over the others. A bool one, true where kept, becomes numbers.
    """
    mask = view(OP, "mask", mask)
    if dtype_of(mask) == "bool":
        kept = as_numpy(OP, "mask", mask)
        mask = encode(np.where(kept, np.float32(0), np.float32(-np.inf)), dtype)
    given = tuple(mask.shape)
    padded = (1,) * (len(shape) - len(given)) + given
    if len(given) > len(shape) or any(size not in (1, whole) for size, whole in zip(padded, shape)):
        raise CallError(
            op=OP, argument="mask", value=f"of shape {given}", expected=f"a shape that broadcasts to {shape}"
        )
    first = next((at for at in range(axis) if padded[at] != 1), axis)
    mask = mask.reshape(padded[first:])
    if padded[first:] != shape[first:]:
        mask = broadcast(mask, shape[first:])
    return as_input(OP, "mask", mask, dtype)
