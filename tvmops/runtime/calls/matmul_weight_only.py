"""Calls of matmul_weight_only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tvmops.errors import CallError, CallTypeError
from tvmops.quantize import Quantized
from tvmops.runtime.arrays import dtype_of, view
from tvmops.runtime.calls.base import Call, parsed, shape_of
from tvmops.runtime.packed import PackedWeight
from tvmops.signatures.activations import NONE
from tvmops.signatures.dtypes import BFLOAT16, stored
from tvmops.signatures.weight_groups import WeightGroups
from tvmops.workloads import Workload

OP = "matmul_weight_only"
_BITS = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8}


def call(x: Any, w: Any, x_bits: int = 24, bias: Any = None, activation: str | None = None) -> Call:
    """Return the call that `Library.matmul_weight_only` makes of its arguments."""
    x = view(OP, "x", x)
    m, k = shape_of(OP, "x", x, 2)
    found = dtype_of(x)
    dtype = BFLOAT16 if found == stored(BFLOAT16) else found if found in (BFLOAT16, "float16") else "float32"
    if not isinstance(w, PackedWeight) or w.op != OP:
        expected = f"what pack({OP!r}, ...) returned"
        raise CallTypeError(op=OP, argument="w", value=type(w).__name__, expected=expected)
    n, columns = w.shape
    if columns != k or k == 0:
        expected = f"{k} columns, those of x" if k else "at least one column"
        raise CallError(op=OP, argument="w", value=f"of shape {w.shape}", expected=expected)
    bits, group, zeros = w.layout.split()
    fields: dict[str, Any] = {"bits": bits, "group": int(group), "zero_points": zeros == "zeros"}
    inputs = {"x": x, "w": w.array}
    if bias is not None:
        inputs["bias"] = bias
    return Call.of(
        OP,
        inputs,
        m=m,
        n=n,
        k=k,
        dtype=dtype,
        x_bits=x_bits,
        bias=bias is not None,
        activation=parsed(OP, "activation", activation or NONE),
        **fields,
    )


def arguments(workload: Workload, inputs: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of `Library.matmul_weight_only` that make it `workload` on these arrays."""
    x, array, *bias = inputs
    bits, (group,) = int(str(workload["bits"])), workload.dims("group")
    layout = _name(WeightGroups(bits, group, workload["zero_points"] is True))
    weight = PackedWeight(OP, workload.dims("n", "k"), f"int{bits}", layout, array)
    given = {"x": x, "w": weight, "x_bits": int(str(workload["x_bits"]))}
    if bias:
        given["bias"] = bias[0]
    if workload["activation"] != NONE:
        given["activation"] = workload["activation"]
    return given


def pack(weight: Any) -> PackedWeight:
    """Return `weight`, quantised with a scale a group along k, packed."""
    if not isinstance(weight, Quantized):
        value = type(weight).__name__
        raise CallTypeError(op=OP, argument="weight", value=value, expected="a tvmops.quantize.Quantized")
    if len(weight.shape) != 2 or weight.axis != 1 or weight.group is None or weight.group % 8:
        value = f"of shape {weight.shape}, axis {weight.axis}, group {weight.group}"
        expected = "shape (n, k), axis 1, a group that is a multiple of 8"
        raise CallError(op=OP, argument="weight", value=value, expected=expected)
    bits = _BITS[weight.dtype]
    layout = WeightGroups(bits, weight.group, not weight.is_symmetric or weight.dtype.startswith("u"))
    shift = 0 if weight.dtype.startswith("u") else layout.zero
    offsets = (weight.integers.astype(np.int16) + shift).astype(np.uint8)
    zeros = weight.zero_points + shift if layout.has_zero_points else None
    array = layout.pack(offsets, weight.scales, zeros)
    return PackedWeight(OP, weight.shape, weight.dtype, _name(layout), array)


def _name(layout: WeightGroups) -> str:
    return f"{layout.bits} {layout.group} {'zeros' if layout.has_zero_points else 'symmetric'}"
