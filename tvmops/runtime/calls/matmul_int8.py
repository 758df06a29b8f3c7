"""Calls of matmul_int8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tvmops.errors import CallError, CallTypeError
from tvmops.runtime.arrays import as_input, as_numpy, dtype_of, is_dense, view
from tvmops.runtime.calls.base import Call, check_weight, shape_of
from tvmops.runtime.packed import PackedWeight
from tvmops.signatures import SIGNATURES
from tvmops.signatures.layouts import LAYOUTS, PLAIN
from tvmops.signatures.matmul_int8 import INTEGERS, sample_scalars
from tvmops.workloads import Workload

OP = "matmul_int8"
_OUT_DTYPES = ("int32", "float32", *INTEGERS)


def call(
    a: Any,
    b: Any,
    a_zero_point: int = 0,
    a_scale: float | None = None,
    b_scale: Any = None,
    bias: Any = None,
    activation: str | None = None,
    out_dtype: str | None = None,
    out_scale: float = 1.0,
    out_zero_point: int = 0,
    trans_b: bool = False,
    b_zero_point: Any = 0,
) -> Call:
    """Return the call that `Library.matmul_int8` makes of its arguments.

    A b that lies transposed, by its flag or as a view, is taken as it lies; where a library has
    no kernel for that, the call's `otherwise` copies it.
    """
    a = view(OP, "a", a)
    m, k = shape_of(OP, "a", a, 2)
    dtype = _dtype_of(a)
    (rows, n), array, packed, transposed = _right(b, trans_b)
    if rows != k or k == 0:
        expected = f"{k} rows, the columns of a" if k else "at least one row"
        raise CallError(op=OP, argument="b", value=f"of shape {(rows, n)}", expected=expected)
    scaled = a_scale is not None or b_scale is not None or bias is not None
    out_dtype = _out_dtype(out_dtype or ("float32" if scaled else "int32"))
    inputs = {"a": a, "b": array}
    scale, scales = _scales(inputs, a_scale, b_scale)
    if bias is not None:
        inputs["bias"] = bias
    scalars, zero_points = _zero_points(inputs, dtype, a_zero_point, b_zero_point)
    if out_dtype != "int32":
        scalars += (scale,)
    if out_dtype in INTEGERS:
        quotient = _number("out_scale", out_scale)
        scalars += (quotient, _integer("out_zero_point", out_zero_point, out_dtype))

    def copied() -> Call:
        upright = array.swapaxes(0, 1)
        rest = bias, activation, out_dtype, out_scale, out_zero_point, False, b_zero_point
        return call(a, as_input(OP, "b", upright, "int8"), a_zero_point, a_scale, b_scale, *rest)

    return Call.of(
        OP,
        inputs,
        scalars,
        otherwise=copied if transposed else None,
        m=m,
        n=n,
        k=k,
        dtype=dtype,
        out_dtype=out_dtype,
        scales=scales,
        bias=bias is not None,
        activation=activation or "none",
        packed=packed,
        trans_b=transposed,
        b_zero_points=zero_points,
    )


def arguments(workload: Workload, inputs: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of `Library.matmul_int8` that make it `workload` on these arrays."""
    names = ["a", "b"]
    names += ["b_zero_point"] if workload["b_zero_points"] == "channel" else []
    names += ["b_scale"] if workload["scales"] == "channel" else []
    names += ["bias"] if workload["bias"] else []
    given: dict[str, Any] = dict(zip(names, inputs))
    for name, value in zip(SIGNATURES[OP].scalars(workload), sample_scalars(workload)):
        given["a_scale" if name == "scale" else name] = value
    if workload["trans_b"]:
        given["trans_b"] = True
    if workload["packed"] != PLAIN:
        layout = str(workload["packed"])
        given["b"] = PackedWeight(OP, workload.dims("k", "n"), "int8", layout, given["b"])
    activation = None if workload["activation"] == "none" else workload["activation"]
    return {**given, "activation": activation, "out_dtype": workload["out_dtype"]}


def pack(weight: Any, layout: str = "words", trans_b: bool = False) -> PackedWeight:
    """Return `weight`, the b of later calls, packed."""
    dense = as_numpy(OP, "weight", weight)
    dense = dense.T if trans_b else dense
    check_weight(OP, dense)
    if dense.dtype.name != "int8":
        raise CallTypeError(op=OP, argument="weight", value=f"of dtype {dense.dtype}", expected="dtype int8")
    if (OP, layout, "int8") not in LAYOUTS:
        raise CallError(op=OP, argument="layout", value=repr(layout), expected="'words'")
    return PackedWeight(OP, dense.shape, "int8", layout, LAYOUTS[OP, layout, "int8"].pack(dense))


def _dtype_of(a: Any) -> str:
    dtype = dtype_of(a)
    if dtype not in INTEGERS:
        expected = "dtype " + " or ".join(INTEGERS)
        raise CallTypeError(op=OP, argument="a", value=f"of dtype {dtype}", expected=expected)
    return dtype


def _out_dtype(name: str) -> str:
    if name not in _OUT_DTYPES:
        expected = "one of " + ", ".join(_OUT_DTYPES)
        raise CallError(op=OP, argument="out_dtype", value=repr(name), expected=expected)
    return name


def _scales(inputs: dict[str, Any], a_scale: Any, b_scale: Any) -> tuple[float, str]:
    """Return the one number that scales sums, and the field `scales`; add those of channels to `inputs`."""
    scale = _number("a_scale", 1.0 if a_scale is None else a_scale)
    if b_scale is None:
        return scale, "tensor"
    if np.ndim(b_scale) == 1:
        inputs["b_scales"] = b_scale
        return scale, "channel"
    return scale * _number("b_scale", b_scale), "tensor"


def _zero_points(inputs: dict[str, Any], dtype: str, of_a: Any, of_b: Any) -> tuple[tuple[float, ...], str]:
    """Return those that are numbers, and the field `b_zero_points`; add those of channels to `inputs`."""
    first = _integer("a_zero_point", of_a, dtype)
    if np.ndim(of_b) == 1:
        inputs["b_zero_points"] = of_b
        return (first,), "channel"
    second = _integer("b_zero_point", of_b, "int8")
    return ((first, second), "tensor") if second != 0 else ((first,), "none")


def _right(b: Any, trans_b: bool) -> tuple[tuple[int, ...], Any, str, bool]:
    """Return the shape of b in the product, what kernels read, its layout, and if it lies transposed."""
    if not isinstance(b, PackedWeight):
        b = view(OP, "b", b)
        shape = shape_of(OP, "b", b, 2)
        if not is_dense(b) and is_dense(b.swapaxes(0, 1)):
            turned = b.swapaxes(0, 1)
            return (shape[::-1] if trans_b else shape), turned, PLAIN, not trans_b
        return (shape[::-1] if trans_b else shape), b, PLAIN, trans_b
    if trans_b:
        raise CallError(op=OP, argument="trans_b", value=True, expected="false where b is packed")
    if b.op != OP:
        raise CallError(op=OP, argument="b", value=repr(b), expected=f"a weight packed for {OP}")
    return b.shape, b.array, b.layout, False


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise CallTypeError(op=OP, argument=name, value=repr(value), expected="a number") from None


def _integer(name: str, value: Any, dtype: str) -> float:
    number, limits = _number(name, value), np.iinfo(dtype)
    if not (limits.min <= number <= limits.max and number == int(number)):
        raise CallError(op=OP, argument=name, value=repr(value), expected=f"an integer that {dtype} can hold")
    return number
