"""`Family`: what the methods of all families of ops share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from tvmops.runtime.calls import CALLS, Call
from tvmops.runtime.known import Key, KnownCalls, key_of


class Family(ABC):
    """Some ops, one method each. A call like an earlier one goes straight to its kernel."""

    def __init__(self) -> None:
        self._known = KnownCalls()

    def _call(
        self,
        op: str,
        arrays: tuple[Any, ...],
        attributes: tuple[Any, ...],
        arguments: tuple[Any, ...],
        outs: tuple[Any, ...],
    ) -> tuple[Any, ...]:
        """Answer a call of `op` with `arguments`: `arrays`, which have shapes, and `attributes`."""
        key = key_of(op, arrays, attributes)
        made = self._known.answer(key, arrays, outs)
        return self._answer(key, arrays, CALLS[op](*arguments), outs) if made is None else made

    @abstractmethod
    def _answer(
        self, key: Key, arrays: tuple[Any, ...], call: Call, outs: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """Compute `call` into `outs`, of which those that are None are made, and remember how.

        Parameters
        ----------
        key, arrays
            The same that `KnownCalls.answer` got.
        """
