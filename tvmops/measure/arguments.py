"""What a kernel under test is called with, and what must hold of it afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from tvmops.measure.candidate import Problem
from tvmops.measure.verify import Array, complain, largest_error, poisoned

_GUARD = 4096  # bytes before and behind each array
_PATTERN = 0xFF  # NaN in any float type: a kernel that reads beyond an array shows
_MOST_COPIES = 4096


class Arguments:
    """The inputs and the output of a `Problem`, each between two guards."""

    def __init__(self, problem: Problem) -> None:
        self._inputs = [_Guarded(np.load(path)) for path in problem.inputs]
        self._expected = np.load(problem.expected)
        self._output = _Guarded(poisoned(self._expected, problem.output_dtype))
        self._tolerance = problem.tolerance

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays in calling order."""
        return (*(each.array for each in self._inputs), self._output.array)

    def poison(self) -> None:
        """Fill the output with what is right nowhere."""
        self._output.restore()

    def restore(self) -> None:
        """Undo whatever a kernel did."""
        for each in (*self._inputs, self._output):
            each.restore()

    def judge(self) -> tuple[float, str]:
        """Return the largest error of the output, and what the kernel did wrong or ""."""
        output = self._output.array
        error = largest_error(output, self._expected)
        for index, each in enumerate(self._inputs):
            if not each.is_untouched():
                return error, f"wrote to input {index}, or next to it"
        if not self._output.has_whole_guards():
            return error, "wrote outside its output"
        return error, complain(output, self._expected, self._tolerance, error)

    def rotation(self, cache_bytes: int) -> Iterator[tuple[Array, ...]]:
        """Yield copies of the arguments in turn, so many that a cache forgets each before its next turn."""
        once = max(1, sum(array.nbytes for array in self.arrays))
        count = min(max(2, -(-2 * cache_bytes // once)), _MOST_COPIES)
        return itertools.cycle([tuple(array.copy() for array in self.arrays) for _ in range(count)])


class _Guarded:
    """A copy of an array with guards around it, and a pristine copy of both."""

    def __init__(self, array: Array) -> None:
        self._pristine = np.full(array.nbytes + 2 * _GUARD, _PATTERN, np.uint8)
        self._inside = slice(_GUARD, _GUARD + array.nbytes)
        self._view(self._pristine, array)[...] = array
        self._memory = self._pristine.copy()
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
