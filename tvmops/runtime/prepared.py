"""`Prepared`: a call that was bound to its kernel once, for loops that want no dispatch."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from numpy import ndarray as _ndarray

from tvmops.errors import CallError, CallTypeError
from tvmops.runtime.arrays import as_output, bounds, check_aligned, dtype_of, is_dense, overlap, view
from tvmops.runtime.calls import CALLS, Call
from tvmops.runtime.known import REFUSALS
from tvmops.runtime.plans import Plan, held, is_tensor, plan_of
from tvmops.signatures.dtypes import stored
from tvmops.workloads import Workload

_LIKE = "as when it was prepared"


class Prepared:
    """Computes one workload on the arrays of each call. What `Library.prepare` returns.

    Call it with arrays of the shapes, dtypes and layouts that it was prepared with, all that an
    op's call takes, in the order of its parameters; and `out` as the op's method takes it.
    Attributes stay what they were. Thread-safe.
    """

    __slots__ = ("_is_direct", "_kernel", "_outs", "_scalars", "_shapes", "names", "plan", "workload")

    def __init__(self, call: Call, given: dict[str, Any], kernel: Callable[..., None]) -> None:
        self.workload: Workload = call.workload
        plan = plan_of(given, call, kernel)
        if plan is None or not plan.is_dense or call.is_empty:
            raise _unfit(call, given)
        self.plan: Plan = plan
        self.names = tuple(given)  # of the arrays that a call takes
        self._shapes = tuple((tuple(a.shape), dtype_of(held(a))) for a in given.values())
        self._kernel, self._scalars = plan.kernel, plan.scalars
        self._outs = len(plan.outputs)
        self._is_direct = plan.is_direct and self._outs == 1

    def __call__(self, *arrays: Any, out: Any = None) -> Any:
        """Return the op's result on `arrays`.

        Raises
        ------
        CallError, CallTypeError
            An array is not as those that it was prepared with; the message names it.
        """
        try:
            if type(out) is not _ndarray:
                _refuse_unusual(arrays, out)
            if self._is_direct and out is not None:
                given = map(held, arrays) if self.plan.is_packed else arrays
                self._kernel(*given, *self._scalars, out)
                return out
            outs = (None,) * self._outs if out is None else (out,) if self._outs == 1 else tuple(out)
            made = self.plan.answer(arrays, outs) if len(arrays) == len(self.names) else None
        except REFUSALS as error:
            self._explain(arrays, out)
            raise CallError(
                op=self.workload.op, argument="arrays", value=f"refused ({error})", expected=_LIKE
            ) from None
        if made is None:
            self._explain(arrays, out)
            raise CallError(op=self.workload.op, argument="out", value="strided", expected=_LIKE)
        return made[0] if self._outs == 1 else made

    def _explain(self, arrays: tuple[Any, ...], out: Any) -> None:
        """Raise the error that names the first argument that does not fit."""
        op = self.workload.op
        if len(arrays) != len(self.names):
            expected = f"{len(self.names)}: {', '.join(self.names)}"
            raise CallTypeError(op=op, argument="arrays", value=f"{len(arrays)} of them", expected=expected)
        seen = [(name, held(array)) for name, array in zip(self.names, arrays)]
        for (name, array), given, (shape, dtype) in zip(seen, arrays, self._shapes):
            found = view(op, name, array)
            if dtype_of(found) != dtype:
                value = f"of dtype {dtype_of(found)}"
                raise CallTypeError(op=op, argument=name, value=value, expected=f"dtype {dtype}, {_LIKE}")
            if tuple(given.shape) != shape:
                value = f"of shape {tuple(given.shape)}"
                raise CallError(op=op, argument=name, value=value, expected=f"shape {shape}, {_LIKE}")
            if not is_dense(found):
                raise CallError(op=op, argument=name, value="strided", expected="a dense row-major array")
            if is_tensor(found) and found.is_neg():
                raise CallError(op=op, argument=name, value="to be negated", expected="resolve_neg() of it")
            if not self.plan.on_cpu:
                check_aligned(op, name, found)
        if out is not None:
            self.check_out(arrays, out)

    def check_out(self, arrays: tuple[Any, ...], out: Any) -> None:
        """Raise CallError or CallTypeError unless a call on `arrays` may write to `out`."""
        op, seen = self.workload.op, [(name, held(array)) for name, array in zip(self.names, arrays)]
        outs = (out,) if self._outs == 1 else tuple(out)
        for index, (each, (seen_shape, dtype, _)) in enumerate(zip(outs, self.plan.outputs)):
            place = "out" if self._outs == 1 else f"out[{index}]"
            as_output(op, place, each, seen_shape, dtype)
            refuse_overlap(op, place, each, seen)
            if not self.plan.on_cpu:
                check_aligned(op, place, each)


def prepared_call(
    op: str, arguments: tuple[Any, ...], attributes: dict[str, Any]
) -> tuple[Call, dict[str, Any]]:
    """Return the call of `op` with these arguments, and those of them that are arrays, by name."""
    try:
        bound = inspect.signature(CALLS[op]).bind(*arguments, **attributes)
    except TypeError as error:
        raise CallTypeError(
            op=op, argument="arguments", value=str(error), expected="those of the op"
        ) from None
    given = {name: value for name, value in bound.arguments.items() if len(getattr(value, "shape", ())) > 0}
    return CALLS[op](*bound.args, **bound.kwargs), given


def refuse_overlap(op: str, name: str, out: Any, others: list[tuple[str, Any]]) -> None:
    """Raise CallError if `out` shares memory with one of the arrays named beside it."""
    for other, array in others:
        if overlap(out, array):
            value = f"an array that shares memory with '{other}'"
            raise CallError(op=op, argument=name, value=value, expected="memory of its own")


def _refuse_unusual(arrays: tuple[Any, ...], out: Any) -> None:
    """Raise ValueError for a tensor that requires a gradient or is to be negated: no kernel can tell."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    tensor, needs_gradients = torch.Tensor, torch.is_grad_enabled()
    for array in (*arrays, out):  # a loop, since a generator takes longer than a small kernel
        if isinstance(array, tensor) and (array.is_neg() or (needs_gradients and array.requires_grad)):
            raise ValueError("a tensor requires grad, or is to be negated")


def _unfit(call: Call, given: dict[str, Any]) -> CallError:
    """Return the error that names the array which a kernel does not take as it lies."""
    op = call.workload.op
    if call.is_empty:
        return CallError(op=op, argument="arrays", value="empty", expected="something to compute")
    for name, array in given.items():
        plain = held(view(op, name, held(array)))
        if not is_dense(plain):
            return CallError(op=op, argument=name, value="strided", expected="a dense row-major array")
        taken = any(bounds(each) == bounds(plain) for each in call.inputs)
        if not taken:
            held_as = f"what a kernel takes as it lies, such as dtype {stored(str(call.workload['dtype']))}"
            return CallError(op=op, argument=name, value="of a form that is copied", expected=held_as)
    return CallError(op=op, argument="arrays", value="given twice", expected="one array for each argument")
