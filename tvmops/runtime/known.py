"""Calls like earlier ones, taken straight to their kernels.

Making a `Call` of a method's arguments takes longer than a small kernel runs. Once it was made,
what remains is to reshape arrays and to call: kernels check shapes, dtypes, strides and devices of
all their arguments, those of CPUs their overlap, too, before they touch memory. What a kernel
refuses goes the careful way.

A refusal takes long. So once arrays of some shapes came strided, calls of these shapes are told
apart by their strides, too; those that only ever come dense do not pay for that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy import ascontiguousarray as _dense_copy
from numpy import empty as _empty
from numpy import ndarray as _ndarray

from tvmops.runtime.arrays import (
    argument_dtype,
    bounds,
    device_of,
    dtype_of,
    is_aligned,
    is_dense,
    new_output,
    overlap,
)
from tvmops.runtime.calls.base import Call
from tvmops.runtime.packed import PackedWeight
from tvmops.signatures import SIGNATURES, TensorSpec
from tvmops.signatures.dtypes import stored

_MOST = 4096  # calls to remember
_NEW = object()
REFUSALS = (ValueError, TypeError, BufferError, AttributeError, RuntimeError)

Shape = tuple[int, ...]
Arrays = tuple[Any, ...]  # arguments that may be arrays; None where one is left out
Key = tuple[Any, ...]


class KnownCalls:
    """What was learned of calls, by op, shapes and attributes."""

    def __init__(self) -> None:
        self._plans: dict[Key, Plan | None] = {}  # None: see under the key with strides
        self.products: dict[Key, Callable[..., None]] = {}  # of matrices alone, by type, shapes and flags

    def answer(self, key: Key, arrays: Arrays, outs: Arrays) -> Arrays | None:
        """Compute a call that is known; None if it is not, or must go the careful way.

        Parameters
        ----------
        key
            What `key_of` gave for these arrays.
        outs
            Where to write the results; those that are None are made.
        """
        try:
            plan = self._plans.get(key)
            if plan is None and key in self._plans:
                plan = self._plans.get(_with_strides(key, arrays))
            if plan is None or not all(out is None or _is_plain(out) for out in outs):
                return None
            if plan.is_direct and None is not outs[0]:
                given = map(held, arrays) if plan.is_packed else arrays
                plan.kernel(*filter(_is_given, given), *plan.scalars, *outs)
                return outs
            return plan.answer(arrays, outs)
        except REFUSALS:
            return None

    def learn(self, key: Key, arrays: Arrays, call: Call, kernel: Callable[..., None]) -> None:
        """Remember which kernel answered, if the caller's own memory, reshaped, went to it."""
        plan = plan_of(arrays, call, kernel)
        if len(self._plans) >= _MOST:
            self._plans.clear()
            self.products.clear()
        try:
            is_apart = self._plans.get(key, _NEW) is None or not all(map(_is_dense, arrays))
        except TypeError:  # an attribute that has no hash
            return
        if is_apart:
            self._plans[key] = None
            if call.workload.op == "matmul":  # told apart by shape alone
                self.products.pop(_product_key(arrays[0], arrays[1], key[1][1:3]), None)
            key = _with_strides(key, arrays)
        if plan is None:
            return
        self._plans[key] = plan
        is_product = (
            not is_apart and call.workload.op == "matmul" and plan.is_direct and len(plan.inputs) == 2
        )
        if is_product:
            activation, *flags, out_dtype, precision = key[1]
            if activation is out_dtype is precision is None:
                self._learn_product(arrays[:2], tuple(flags), kernel)

    def _learn_product(self, arrays: Arrays, flags: tuple[Any, ...], kernel: Callable[..., None]) -> None:
        a, b = arrays
        is_packed = type(b) is PackedWeight
        if not (is_packed or type(a) is type(b)):
            return
        key = _product_key(a, b, flags)
        if type(a) is _ndarray:
            self.products[key] = kernel
        elif _is_tensor(a) and a.numel() > 1 and (is_packed or b.numel() > 1):
            # tensors that are to be negated lie strided, but for a single element
            self.products[key] = _careful(kernel, is_packed)


def _product_key(a: Any, b: Any, flags: tuple[Any, ...]) -> Key:
    return type(a), a.shape, b.layout if type(b) is PackedWeight else None, b.shape, *flags


def _careful(kernel: Callable[..., None], is_packed: bool) -> Callable[..., None]:
    """Return `kernel`, of three tensors, which refuses those that need a gradient or lie on a GPU.

    It would refuse the latter itself, but that takes long. A packed b may be an array of NumPy.
    """
    is_grad_enabled = sys.modules["torch"].is_grad_enabled

    def checked(a: Any, b: Any, out: Any) -> None:
        if not a.is_cpu or (is_grad_enabled() and (a.requires_grad or out.requires_grad or b.requires_grad)):
            raise ValueError("a tensor requires grad, or is on a GPU")
        kernel(a, b, out)

    def checked_packed(a: Any, b: Any, out: Any) -> None:
        if not a.is_cpu or (
            is_grad_enabled() and (a.requires_grad or out.requires_grad or getattr(b, "requires_grad", False))
        ):
            raise ValueError("a tensor requires grad, or is on a GPU")
        kernel(a, b, out)

    return checked_packed if is_packed else checked


def key_of(op: str, arrays: Arrays, attributes: tuple[Any, ...]) -> Key:
    """Return what calls that need the same kernel have in common; () for unusual arguments."""
    marks: list[Any] = [op, attributes, type(arrays[0]), getattr(arrays[0], "device", None)]
    for array in arrays:
        if type(array) is _ndarray:
            marks.append(array.shape)
        elif array is None:
            marks.append(None)
        elif type(array) is PackedWeight:
            marks.append((array.layout, array.shape))
        elif _is_plain_tensor(array):
            marks.append(array.shape)
        else:
            return ()
    return tuple(marks)


def _with_strides(key: Key, arrays: Arrays) -> Key:
    return (*key, *(array if array is None else _strides(held(array)) for array in arrays))


@dataclass(frozen=True)
class Form:
    """What a kernel takes of an array."""

    shape: Shape | None  # None: its own
    bits: tuple[Any, Any] | None  # the dtype that a tensor must have, and that of its bits, which go

    def __call__(self, array: Any) -> Any:
        if self.shape is not None:
            array = array.reshape(self.shape)
        if self.bits is None:
            return array
        seen, taken = self.bits
        if array.dtype is not seen:  # the kernel could not tell
            raise TypeError(f"a tensor of dtype {array.dtype}")
        return array.view(taken)


_AS_IT_IS = Form(None, None)


@dataclass(frozen=True)
class Passing:
    """How one array reaches a kernel."""

    index: int  # among the arguments
    form: Form
    is_turned: bool = False  # its last two axes change places
    is_copied: bool = False  # because it is strided

    def of(self, arrays: Arrays) -> Any:
        array = held(arrays[self.index])
        if self.is_turned:
            array = array.swapaxes(-1, -2)
        if self.is_copied:
            array = _dense_copy(array) if type(array) is _ndarray else array.contiguous()
        return array if self.form is _AS_IT_IS else self.form(array)


@dataclass(frozen=True)
class Plan:
    """How arrays reach a kernel."""

    kernel: Callable[..., None]
    inputs: tuple[Passing, ...]
    scalars: tuple[float, ...]
    outputs: tuple[tuple[Shape, str, Form], ...]  # shape and dtype, and how it goes
    is_direct: bool  # True if all arrays go as they are, in the order of the arguments
    is_packed: bool  # True if one of them is a packed weight, of which the kernel takes the array
    on_cpu: bool  # where kernels check overlap themselves, and take arrays that begin at any element

    @property
    def is_dense(self) -> bool:
        """True if all arrays go as they lie in memory."""
        return not any(each.is_turned or each.is_copied for each in self.inputs)

    def answer(self, arrays: Arrays, outs: Arrays) -> Arrays | None:
        given = [each.of(arrays) for each in self.inputs]
        inputs = tuple(given)
        given += self.scalars
        made: list[Any] = []
        for out, (seen, dtype, form) in zip(outs, self.outputs):
            if out is None:
                numpy = type(arrays[0]) is _ndarray
                out = _empty(seen, stored(dtype)) if numpy else new_output(arrays[0], seen, dtype)
            elif form is not _AS_IT_IS and (out.shape != seen or not is_dense(out)):
                return None  # reshaping would copy it
            elif not self.on_cpu and any(overlap(out, other) for other in (*inputs, *made)):
                return None
            made.append(out)
            given.append(out if form is _AS_IT_IS else form(out))
        if not self.on_cpu and not all(map(is_aligned, (*inputs, *made))):
            return None
        self.kernel(*given)
        return tuple(made)


def plan_of(arrays: Arrays, call: Call, kernel: Callable[..., None]) -> Plan | None:
    """Return how to make `call` again with other arrays of the same shapes and strides."""
    specs = SIGNATURES[call.workload.op].inputs(call.workload)
    inputs = []
    for taken, viewed, spec in zip(call.inputs, call.views, specs):
        ways = [_passing(index, array, taken, viewed, spec) for index, array in enumerate(arrays)]
        found = [way for way in ways if way is not None]
        if len(found) != 1 or dtype_of(taken) not in (spec.dtype, stored(spec.dtype)):
            return None  # it was copied in some other way, or two arguments are one array
        inputs += found
    like = call.inputs[0]
    outputs = [
        (seen, spec.dtype, _form(seen, spec, like if _is_tensor(like) else None))
        for seen, spec in zip(call.shapes, call.outputs)
    ]
    in_order = [index for index, array in enumerate(arrays) if array is not None]
    on_cpu = device_of(like) == "cpu"
    return Plan(
        kernel,
        tuple(inputs),
        call.scalars,
        tuple(outputs),
        is_direct=on_cpu
        and inputs == [Passing(index, _AS_IT_IS) for index in in_order]
        and all(form is _AS_IT_IS for _, _, form in outputs),
        is_packed=any(type(array) is PackedWeight for array in arrays),
        on_cpu=on_cpu,
    )


def _form(seen: Shape, spec: TensorSpec, tensor: Any) -> Form:
    """Return how an array of shape `seen` goes to a kernel, with the dtype of `tensor` if it is one."""
    shape = None if seen == spec.shape else spec.shape
    bits = None
    if _is_tensor(tensor) and (taken := argument_dtype(tensor, spec.dtype)) != spec.dtype:
        torch = sys.modules["torch"]
        bits = getattr(torch, spec.dtype), getattr(torch, taken)
    return Form(shape, bits) if shape or bits else _AS_IT_IS


def _is_given(array: Any) -> bool:
    return array is not None


def held(array: Any) -> Any:
    """Return the array that a packed weight holds, and any other as it is."""
    return array.array if type(array) is PackedWeight else array


def _passing(index: int, given: Any, taken: Any, viewed: Any, spec: TensorSpec) -> Passing | None:
    """Return how `taken` was made of the argument `given`; None if it was not, or in some other way."""
    array = held(given)
    if array is None:
        return None
    if is_dense(array):
        is_it = bounds(array) == bounds(taken)
        return Passing(index, _form(tuple(array.shape), spec, taken)) if is_it else None
    if type(viewed) is not type(array) or bounds(viewed)[0] != bounds(array)[0]:
        return None
    form = _form(spec.shape, spec, taken)
    if _place(viewed) == _place(array):
        return Passing(index, form, is_copied=True)
    if len(array.shape) == len(spec.shape) and _place(viewed) == _place(array.swapaxes(-1, -2)):
        return Passing(index, form, is_turned=True, is_copied=not is_dense(viewed))
    return None


def _place(array: Any) -> tuple[Shape, Shape]:
    return tuple(array.shape), _strides(array)


def _strides(array: Any) -> Shape:
    return array.strides if type(array) is _ndarray else tuple(array.stride())


def _is_dense(array: Any) -> bool:
    return array is None or is_dense(held(array))


def _is_tensor(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _is_plain(array: Any) -> bool:
    return type(array) is _ndarray or _is_plain_tensor(array)


def _is_plain_tensor(array: Any) -> bool:
    if not _is_tensor(array):
        return False
    return not (array.is_neg() or (array.requires_grad and sys.modules["torch"].is_grad_enabled()))
