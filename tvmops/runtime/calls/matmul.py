"""Calls of matmul."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from tvmops.errors import CallError, CallTypeError
from tvmops.runtime.arrays import as_input, as_numpy, broadcast, dtype_of, is_dense, view, zeros
from tvmops.runtime.calls.base import Call, check_weight, float_dtype, parsed
from tvmops.runtime.packed import PackedWeight
from tvmops.signatures import Value
from tvmops.signatures.activations import NONE
from tvmops.signatures.dtypes import BFLOAT16, stored
from tvmops.signatures.layouts import LAYOUTS
from tvmops.signatures.matmul import FULL, SAME
from tvmops.workloads import Workload

OP = "matmul"
Shape = tuple[int, ...]


def call(
    a: Any,
    b: Any,
    bias: Any = None,
    activation: str | None = None,
    trans_a: bool = False,
    trans_b: bool = False,
    residual: Any = None,
    out_dtype: str | None = None,
    precision: str | None = None,
) -> Call:
    """Return the call that `Library.matmul` makes of its arguments.

    An operand that lies transposed, by its flag or as a view, is taken as it lies; where a
    library has no kernel for that, the call's `otherwise` copies it.
    """
    left = _Operand.of("a", a, trans_a)
    right = _Packed(b) if isinstance(b, PackedWeight) else _Operand.of("b", b, trans_b)
    k, rows = left.shape[-1], right.shape[-2]
    if rows != k:
        sides = "columns" if trans_b else "rows", "rows" if trans_a else "columns"
        expected = f"{k} {sides[0]}, the {sides[1]} of a"
        raise CallError(op=OP, argument="b", value=f"of shape {right.given}", expected=expected)
    batch = _broadcast(left.shape[:-2], right.shape[:-2])
    shape = (*batch, left.shape[-2], right.shape[-1])
    epilogue = _Epilogue.of(bias, activation, residual, shape, left.dtype, out_dtype)
    if k == 0 and isinstance(right, _Operand) and not epilogue.is_nothing:
        left, right = _of_one_term(left, right)
    wanted = str(parsed(OP, "precision", precision or FULL))
    if wanted != FULL and (left.dtype != "float32" or isinstance(right, _Packed)):
        expected = f"{FULL}, unless a and b are float32, b not packed"
        raise CallError(op=OP, argument="precision", value=repr(precision), expected=expected)
    return _made(left, right, epilogue, shape, wanted)


def arguments(workload: Workload, inputs: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of `Library.matmul` that make it `workload` on these arrays."""
    names = ["a", "b", *(name for name in ("bias", "residual") if workload[name])]
    given: dict[str, Any] = dict(zip(names, inputs))
    given.update({name: True for name in ("trans_a", "trans_b") if workload[name]})
    if workload["activation"] != "none":
        given["activation"] = workload["activation"]
    if workload["out_dtype"] != SAME:
        given["out_dtype"] = workload["out_dtype"]
    if workload["precision"] != FULL:
        given["precision"] = workload["precision"]
    if workload["packed"] != "none":
        layout, dtype = str(workload["packed"]), str(workload["dtype"])
        given["b"] = PackedWeight(OP, workload.dims("k", "n"), dtype, layout, given["b"])
    return given


def pack(weight: Any, trans_b: bool = False, packed: str | None = None) -> PackedWeight:
    """Return `weight`, the b of later calls, packed.

    NumPy does it, at a fraction of a second for the largest layers, so that every library
    can: it happens once, and needs no kernel.
    """
    dense = as_numpy(OP, "weight", weight)
    check_weight(OP, dense)
    dtype = BFLOAT16 if dense.dtype.name == stored(BFLOAT16) else dense.dtype.name
    names = [name for op, name, owner in LAYOUTS if (op, owner) == (OP, dtype)]
    packed = packed or next(iter(names), None)
    if not names:
        dtypes = ", ".join(dict.fromkeys(dtype for op, _, dtype in LAYOUTS if op == OP))
        value = f"of dtype {dense.dtype.name}"
        raise CallTypeError(op=OP, argument="weight", value=value, expected=f"dtype {dtypes}")
    if packed not in names:
        raise CallError(op=OP, argument="packed", value=repr(packed), expected=f"one of {', '.join(names)}")
    plain = dense.T if trans_b else dense
    return PackedWeight(OP, plain.shape, dtype, packed, LAYOUTS[OP, packed, dtype].pack(plain))


@dataclass(frozen=True)
class _Operand:
    """a or b: an array, and whether its last two dimensions have changed places."""

    name: str
    array: Any
    transposed: bool
    given: Shape  # as the caller sees it

    @classmethod
    def of(cls, name: str, array: Any, transposed: bool) -> _Operand:
        array = view(OP, name, array)
        given = tuple(array.shape)
        if len(given) < 2:
            value = f"of shape {given}"
            raise CallError(op=OP, argument=name, value=value, expected="two dimensions or more")
        if not is_dense(array) and is_dense(array.swapaxes(-1, -2)):
            array, transposed = array.swapaxes(-1, -2), not transposed
        return cls(name, array, transposed, given)

    @property
    def shape(self) -> Shape:
        """The shape in the product: (..., m, k) or (..., k, n)."""
        *batch, rows, columns = self.array.shape
        return (*batch, columns, rows) if self.transposed else (*batch, rows, columns)

    @property
    def dtype(self) -> str:
        return float_dtype(self.array)

    @property
    def count(self) -> int:
        """How many matrices it holds."""
        return prod(self.shape[:-2])

    def as_matrices(self, batch: Shape, dtype: str) -> Any:
        """Return it for all of `batch`: three dimensions, or two where one matrix serves all."""
        matrix, count = tuple(self.array.shape[-2:]), prod(batch)
        if self.count == 1 and count > 0:
            return self.array.reshape(matrix)  # a view of what is strided: axes of one go
        every = broadcast(self.array, (*batch, *matrix))
        return as_input(OP, self.name, every, dtype).reshape((count, *matrix))

    def upright(self) -> _Operand:
        """Return it as it lies in the product; the array is strided then."""
        if not self.transposed:
            return self
        return replace(self, array=self.array.swapaxes(-1, -2), transposed=False)


class _Packed:
    """A b that was packed; it serves all of a batch."""

    transposed, count = False, 1

    def __init__(self, weight: PackedWeight) -> None:
        if weight.op != OP:
            raise CallError(op=OP, argument="b", value=repr(weight), expected="a weight packed for matmul")
        self.weight = weight
        self.shape = self.given = weight.shape

    def as_matrices(self, batch: Shape, dtype: str) -> Any:
        if self.weight.dtype != dtype:
            raise CallTypeError(op=OP, argument="b", value=repr(self.weight), expected=f"dtype {dtype}")
        return self.weight.array

    def upright(self) -> _Packed:
        return self


@dataclass(frozen=True)
class _Epilogue:
    """What is done with a sum; arrays or None."""

    bias: Any
    activation: Value
    residual: Any
    out_dtype: str
    bias_dtype: str

    @classmethod
    def of(
        cls,
        bias: Any,
        activation: str | None,
        residual: Any,
        shape: Shape,
        dtype: str,
        out_dtype: str | None,
    ) -> _Epilogue:
        result = str(parsed(OP, "out_dtype", SAME if out_dtype in (None, dtype) else out_dtype))
        if residual is not None:
            residual = as_input(OP, "residual", residual, dtype if result == SAME else result)
            found = tuple(residual.shape)
            if found != shape:
                expected = f"shape {shape}, that of the result"
                raise CallError(op=OP, argument="residual", value=f"of shape {found}", expected=expected)
        is_wide = bias is not None and dtype == BFLOAT16 and dtype_of(view(OP, "bias", bias)) == "float32"
        kinds = result, "float32" if is_wide else SAME
        return cls(bias, parsed(OP, "activation", activation or NONE), residual, *kinds)

    @property
    def is_nothing(self) -> bool:
        return self.bias is self.residual is None and self.activation == NONE


def _of_one_term(left: _Operand, right: _Operand) -> tuple[_Operand, _Operand]:
    """Return operands whose one product is 0, for some that have none: of those there are no kernels."""
    shapes = (*left.shape[:-1], 1), (*right.shape[:-2], 1, right.shape[-1])
    a, b = (zeros(each.array, shape, each.dtype) for each, shape in zip((left, right), shapes))
    return _Operand.of("a", a, False), _Operand.of("b", b, False)


def _made(
    left: _Operand, right: _Operand | _Packed, epilogue: _Epilogue, shape: Shape, precision: str
) -> Call:
    *batch, m, n = shape
    k, dtype = left.shape[-1], left.dtype
    count = prod(batch)
    shared = "none"
    if count != 1 and right.count == 1 and left.transposed is False:
        m, count = m * count, 1  # rows of the batch are rows of one a
        a = as_input(OP, "a", left.array, dtype).reshape((m, k))
    else:
        a = left.as_matrices(tuple(batch), dtype)
        if count > 1:
            shared = "b" if right.count == 1 else "a" if left.count == 1 else "none"
    inputs = {"a": a, "b": right.as_matrices(() if count == 1 else tuple(batch), dtype)}
    if epilogue.bias is not None:
        inputs["bias"] = epilogue.bias
    if epilogue.residual is not None:
        inputs["residual"] = epilogue.residual.reshape((m, n) if count == 1 else (count, m, n))

    def copied() -> Call:
        return _made(left.upright(), right.upright(), epilogue, shape, precision)

    return Call.of(
        OP,
        inputs,
        shapes=(shape,),
        otherwise=copied if left.transposed or right.transposed else None,
        m=m,
        n=n,
        k=k,
        dtype=dtype,
        batch=count,
        shared=shared,
        trans_a=left.transposed,
        trans_b=right.transposed,
        bias=epilogue.bias is not None,
        activation=epilogue.activation,
        residual=epilogue.residual is not None,
        packed=right.weight.layout if isinstance(right, _Packed) else "none",
        out_dtype=epilogue.out_dtype,
        bias_dtype=epilogue.bias_dtype,
        precision=precision,
    )


def _broadcast(first: Shape, second: Shape) -> Shape:
    """Return the batch dimensions of the result, as NumPy broadcasts them."""
    rank = max(len(first), len(second))
    pairs = list(zip((1,) * (rank - len(first)) + first, (1,) * (rank - len(second)) + second))
    if any(one != other and 1 not in (one, other) for one, other in pairs):
        expected = f"batch dimensions that broadcast with {first}, those of a"
        raise CallError(op=OP, argument="b", value=f"of batch {second}", expected=expected)
    return tuple(one if other == 1 else other for one, other in pairs)
