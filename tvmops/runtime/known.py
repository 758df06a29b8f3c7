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
from typing import Any

from numpy import ndarray as _ndarray

from tvmops.runtime.arrays import is_dense
from tvmops.runtime.calls import ARRAYS, Call
from tvmops.runtime.packed import PackedWeight
from tvmops.runtime.plans import Arrays, Plan, held, is_tensor, plan_of, strides

_MOST = 4096  # calls to remember
_NEW = object()
REFUSALS = (ValueError, TypeError, BufferError, AttributeError, RuntimeError)

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
        plan = plan_of(dict(zip(ARRAYS[call.workload.op], arrays)), call, kernel)
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
        elif is_tensor(a):
            self.products[key] = _careful(kernel, is_packed)


def _product_key(a: Any, b: Any, flags: tuple[Any, ...]) -> Key:
    return type(a), a.shape, b.layout if type(b) is PackedWeight else None, b.shape, *flags


def _careful(kernel: Callable[..., None], is_packed: bool) -> Callable[..., None]:
    """Return `kernel`, of three tensors, which refuses those that need a gradient or lie on a GPU.

    It would refuse the latter itself, but that takes long; and what is to be negated it can't tell.
    A packed b may be an array of NumPy.
    """
    is_grad_enabled = sys.modules["torch"].is_grad_enabled

    def checked(a: Any, b: Any, out: Any) -> None:
        if (
            not a.is_cpu
            or a.is_neg()
            or b.is_neg()
            or out.is_neg()
            or (is_grad_enabled() and (a.requires_grad or out.requires_grad or b.requires_grad))
        ):
            raise ValueError("a tensor requires grad, is to be negated, or is on a GPU")
        kernel(a, b, out)

    def checked_packed(a: Any, b: Any, out: Any) -> None:
        if (
            not a.is_cpu
            or a.is_neg()
            or out.is_neg()
            or (
                is_grad_enabled()
                and (a.requires_grad or out.requires_grad or getattr(b, "requires_grad", False))
            )
        ):
            raise ValueError("a tensor requires grad, is to be negated, or is on a GPU")
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
    return (*key, *(array if array is None else strides(held(array)) for array in arrays))


def _is_given(array: Any) -> bool:
    return array is not None


def _is_dense(array: Any) -> bool:
    return array is None or is_dense(held(array))


def _is_plain(array: Any) -> bool:
    return type(array) is _ndarray or _is_plain_tensor(array)


def _is_plain_tensor(array: Any) -> bool:
    if not is_tensor(array):
        return False
    return not (array.is_neg() or (array.requires_grad and sys.modules["torch"].is_grad_enabled()))
