"""What a kernel under test is called with, and what must hold of it afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from tvmops.measure.candidate import Problem
from tvmops.measure.verify import Array, complain, largest_error, poisoned
from tvmops.signatures.dtypes import decode

_GUARD = 4096  # bytes before and behind each array
_PATTERN = 0xFF  # NaN in any float type: a kernel that reads beyond an array shows
_MOST_COPIES = 4096
_PAGE = 4096


class Arguments:
    """The inputs and the outputs of a `Problem`, each between two guards, and its scalars.

    Where they are `paged`, each array begins a page: which lines of a cache they take does not depend
    on what was allocated before.
    """

    def __init__(self, problem: Problem, paged: bool = False) -> None:
        self._inputs = [_Guarded(np.load(path), paged) for path in problem.inputs]
        self._scalars = problem.scalars
        self._expected = [np.load(path) for path in problem.expected]
        self._dtypes = problem.output_dtypes
        self._outputs = [
            _Guarded(poisoned(right, dtype), paged) for right, dtype in zip(self._expected, self._dtypes)
        ]
        self._tolerance = problem.tolerance

    @property
    def all(self) -> tuple[Any, ...]:
        """The arguments in calling order."""
        return self._in_order([each.array for each in self._inputs], [each.array for each in self._outputs])

    def poison(self) -> None:
        """Fill the outputs with what is right nowhere."""
        for each in self._outputs:
            each.restore()

    def restore(self) -> None:
        """Undo whatever a kernel did."""
        for each in (*self._inputs, *self._outputs):
            each.restore()

    def judge(self) -> tuple[float, str]:
        """Return the largest error of the outputs, and what the kernel did wrong or ""."""
        outputs = [decode(each.array, dtype) for each, dtype in zip(self._outputs, self._dtypes)]
        errors = [largest_error(output, right) for output, right in zip(outputs, self._expected)]
        for index, each in enumerate(self._inputs):
            if not each.is_untouched():
                return max(errors), f"wrote to input {index}, or next to it"
        if not all(each.has_whole_guards() for each in self._outputs):
            return max(errors), "wrote outside its output"
        complaints = [
            complain(output, right, self._tolerance, error)
            for output, right, error in zip(outputs, self._expected, errors)
        ]
        return max(errors), next(filter(None, complaints), "")

    def rotation(self, cache_bytes: int) -> Iterator[tuple[Any, ...]]:
        """Yield copies of the arguments in turn, so many that a cache forgets each before its next turn."""
        arrays = [each.array for each in (*self._inputs, *self._outputs)]
        once = max(1, sum(array.nbytes for array in arrays))
        count = min(max(2, -(-2 * cache_bytes // once)), _MOST_COPIES)
        return itertools.cycle([self._copies() for _ in range(count)])

    def _copies(self) -> tuple[Any, ...]:
        inputs, outputs = ([each.array.copy() for each in kind] for kind in (self._inputs, self._outputs))
        return self._in_order(inputs, outputs)

    def _in_order(self, inputs: list[Array], outputs: list[Array]) -> tuple[Any, ...]:
        return (*inputs, *self._scalars, *outputs)


class _Guarded:
    """A copy of an array with guards around it, and a pristine copy of both."""

    def __init__(self, array: Array, paged: bool) -> None:
        self._pristine = np.full(array.nbytes + 2 * _GUARD, _PATTERN, np.uint8)
        self._inside = slice(_GUARD, _GUARD + array.nbytes)
        self._view(self._pristine, array)[...] = array
        self._memory = _paged(len(self._pristine)) if paged else np.empty_like(self._pristine)
        self.restore()
        self.array = self._view(self._memory, array)

    def _view(self, memory: Array, like: Array) -> Array:
        return memory[self._inside].view(like.dtype).reshape(like.shape)

    def restore(self) -> None:
        self._memory[...] = self._pristine

    def is_untouched(self) -> bool:
        return bool(np.array_equal(self._memory, self._pristine))

    def has_whole_guards(self) -> bool:
        guards: Any = (self._memory[:_GUARD], self._memory[self._inside.stop :])
        return all(bool((guard == _PATTERN).all()) for guard in guards)


def _paged(size: int) -> Array:
    """Return `size` bytes from the beginning of a page on."""
    memory = np.empty(size + _PAGE, np.uint8)
    start = -memory.ctypes.data % _PAGE
    return memory[start : start + size]
