"""How the arrays of a call reach a kernel, and would again: `Plan`, made of a `Call`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
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

Shape = tuple[int, ...]
Arrays = tuple[Any, ...]  # arguments that may be arrays; None where one is left out


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

# Axes that calls turn, by how many there are: matrices', or heads and positions of attention.
_TURNS = {2: ((-1, -2),), 3: ((-1, -2),), 4: ((-1, -2), (1, 2))}


@dataclass(frozen=True)
class Passing:
    """How one array reaches a kernel."""

    index: int  # among the arguments
    form: Form
    turned: tuple[int, int] | None = None  # axes that change places
    is_copied: bool = False  # because it is strided

    def of(self, arrays: Arrays) -> Any:
        array = held(arrays[self.index])
        if self.turned is not None:
            array = array.swapaxes(*self.turned)
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
        return not any(each.turned or each.is_copied for each in self.inputs)

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


def plan_of(given: Mapping[str, Any], call: Call, kernel: Callable[..., None]) -> Plan | None:
    """Return how to make `call` again with other arrays of the same shapes and strides.

    Parameters
    ----------
    given
        The arguments that are arrays, by name, in the order in which a plan gets them; those left
        out may be None.
    """
    specs = SIGNATURES[call.workload.op].inputs(call.workload)
    inputs = []
    for taken, viewed, spec in zip(call.inputs, call.views, specs):
        tried = enumerate(given.items())
        ways = {name: _passing(index, array, taken, viewed, spec) for index, (name, array) in tried}
        found = [way for way in ways.values() if way is not None]
        # One array may be several arguments: then an input is the one of its own name.
        way = ways.get(spec.name) or (found[0] if len(found) == 1 else None)
        if way is None or dtype_of(taken) not in (spec.dtype, stored(spec.dtype)):
            return None  # it was copied in some other way
        inputs.append(way)
    like = call.inputs[0]
    outputs = [
        (seen, spec.dtype, _form(seen, spec, like if is_tensor(like) else None))
        for seen, spec in zip(call.shapes, call.outputs)
    ]
    in_order = [index for index, array in enumerate(given.values()) if array is not None]
    on_cpu = device_of(like) == "cpu"
    return Plan(
        kernel,
        tuple(inputs),
        call.scalars,
        tuple(outputs),
        is_direct=on_cpu
        and inputs == [Passing(index, _AS_IT_IS) for index in in_order]
        and all(form is _AS_IT_IS for _, _, form in outputs),
        is_packed=any(type(array) is PackedWeight for array in given.values()),
        on_cpu=on_cpu,
    )


def _form(seen: Shape, spec: TensorSpec, tensor: Any) -> Form:
    """Return how an array of shape `seen` goes to a kernel, with the dtype of `tensor` if it is one."""
    shape = None if seen == spec.shape else spec.shape
    bits = None
    if is_tensor(tensor) and (taken := argument_dtype(tensor, spec.dtype)) != spec.dtype:
        torch = sys.modules["torch"]
        bits = getattr(torch, spec.dtype), getattr(torch, taken)
    return Form(shape, bits) if shape or bits else _AS_IT_IS


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
    if len(array.shape) == len(spec.shape):
        for axes in _TURNS.get(len(spec.shape), ()):
            if _place(viewed) == _place(array.swapaxes(*axes)):
                return Passing(index, form, axes, is_copied=not is_dense(viewed))
    return None


def _place(array: Any) -> tuple[Shape, Shape]:
    return tuple(array.shape), strides(array)


def strides(array: Any) -> Shape:
    return array.strides if type(array) is _ndarray else tuple(array.stride())


def held(array: Any) -> Any:
    """Return the array that a packed weight holds, and any other as it is."""
    return array.array if type(array) is PackedWeight else array


def is_tensor(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)
