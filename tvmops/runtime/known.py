"""Calls like earlier ones, taken straight to their kernels.

Making a `Call` of a method's arguments takes longer than a small kernel runs. Once it was made,
what remains is to reshape arrays and to call: kernels check shapes, dtypes, strides and devices of
all their arguments, those of CPUs their overlap, too, before they touch memory. What a kernel
refuses goes the careful way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from numpy import empty as _empty
from numpy import ndarray as _ndarray

from tvmops.runtime.arrays import argument_dtype, bounds, device_of, dtype_of, is_dense, new_output, overlap
from tvmops.runtime.calls.base import Call
from tvmops.runtime.packed import PackedWeight
from tvmops.signatures import SIGNATURES, TensorSpec
from tvmops.signatures.dtypes import stored

_MOST = 4096  # calls to remember
REFUSALS = (ValueError, TypeError, BufferError, AttributeError, RuntimeError)

Shape = tuple[int, ...]
Arrays = tuple[Any, ...]  # arguments that may be arrays; None where one is left out
Key = tuple[Any, ...]


class KnownCalls:
    """What was learned of calls, by op, shapes and attributes."""

    def __init__(self) -> None:
        self._plans: dict[Key, Plan] = {}
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
        if plan is None:
            return
        if len(self._plans) >= _MOST:
            self._plans.clear()
            self.products.clear()
        is_product = call.workload.op == "matmul" and plan.is_direct and len(plan.inputs) == 2
        if is_product and key[1][0] is key[1][3] is None:
            self._learn_product(arrays[:2], key[1][1:3], kernel)
        with suppress(TypeError):  # an attribute that has no hash
            self._plans[key] = plan

    def _learn_product(self, arrays: Arrays, flags: tuple[Any, ...], kernel: Callable[..., None]) -> None:
        a, b = arrays
        is_packed = type(b) is PackedWeight
        if not (is_packed or type(a) is type(b)):
            return
        key = (type(a), a.shape, b.layout if is_packed else None, b.shape, *flags)
        if type(a) is _ndarray:
            self.products[key] = kernel
        elif _is_tensor(a) and a.numel() > 1 and (is_packed or b.numel() > 1):
            # tensors that are to be negated lie strided, but for a single element
            self.products[key] = _without_gradients(kernel)


def _without_gradients(kernel: Callable[..., None]) -> Callable[..., None]:
    """Return `kernel`, of three tensors, which refuses those that need a gradient."""
    is_grad_enabled = sys.modules["torch"].is_grad_enabled

    def checked(a: Any, b: Any, out: Any) -> None:
        # b may be what a packed weight holds: an array of NumPy
        if is_grad_enabled() and (a.requires_grad or out.requires_grad or getattr(b, "requires_grad", False)):
            raise ValueError("a tensor requires grad")
        kernel(a, b, out)

    return checked


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
class Plan:
    """How arrays reach a kernel."""

    kernel: Callable[..., None]
    inputs: tuple[tuple[int, Form], ...]  # which array, and how
    scalars: tuple[float, ...]
    outputs: tuple[tuple[Shape, str, Form], ...]  # shape and dtype, and how it goes
    is_direct: bool  # True if all arrays go as they are, in the order of the arguments
    is_packed: bool  # True if one of them is a packed weight, of which the kernel takes the array
    checks_overlap: bool  # True if the kernel does

    def answer(self, arrays: Arrays, outs: Arrays) -> Arrays | None:
        given = [form(held(arrays[index])) for index, form in self.inputs]
        inputs = tuple(given)
        given += self.scalars
        made: list[Any] = []
        for out, (seen, dtype, form) in zip(outs, self.outputs):
            if out is None:
                numpy = type(arrays[0]) is _ndarray
                out = _empty(seen, stored(dtype)) if numpy else new_output(arrays[0], seen, dtype)
            elif form is not _AS_IT_IS and (out.shape != seen or not is_dense(out)):
                return None  # reshaping would copy it
            elif not self.checks_overlap and any(overlap(out, other) for other in (*inputs, *made)):
                return None
            made.append(out)
            given.append(out if form is _AS_IT_IS else form(out))
        self.kernel(*given)
        return tuple(made)


def plan_of(arrays: Arrays, call: Call, kernel: Callable[..., None]) -> Plan | None:
    """Return how to make `call` again with other arrays of the same shapes."""
    specs = SIGNATURES[call.workload.op].inputs(call.workload)
    inputs = []
    for taken, spec in zip(call.inputs, specs):
        same = [index for index, array in enumerate(arrays) if _is_same(array, taken)]
        if len(same) != 1 or dtype_of(taken) not in (spec.dtype, stored(spec.dtype)):
            return None  # it was copied, or two arguments are one array
        inputs.append((same[0], _form(tuple(held(arrays[same[0]]).shape), spec, taken)))
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
        and inputs == [(index, _AS_IT_IS) for index in in_order]
        and all(form is _AS_IT_IS for _, _, form in outputs),
        is_packed=any(type(array) is PackedWeight for array in arrays),
        checks_overlap=on_cpu,
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


def _is_same(array: Any, taken: Any) -> bool:
    """True if `taken` is all the memory of `array`, in the same order."""
    array = held(array)
    return array is not None and is_dense(array) and bounds(array) == bounds(taken)


def _is_tensor(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _is_plain(array: Any) -> bool:
    return type(array) is _ndarray or _is_plain_tensor(array)


def _is_plain_tensor(array: Any) -> bool:
    if not _is_tensor(array):
        return False
    return not (array.is_neg() or (array.requires_grad and sys.modules["torch"].is_grad_enabled()))
