"""`Line`: how a run asks a tracker."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tvmops.errors import FleetError
from tvmops.measure.fleet.tracker import Kind
from tvmops.measure.fleet.wire import Channel, Message, RefusedError, dial

_REDIAL_SECONDS = 0.5
Answer = TypeVar("Answer")


class Line:
    """A run's connection to a tracker; it has one task at a time.

    Where the connection is lost it is dialled again for `patience` seconds, and what was asked is
    asked anew: a tracker may be started again, and its devices dial it as well.

    Raises
    ------
    FleetError
        By every method, where the tracker is not there or turns the run away.
    """

    def __init__(self, tracker: str, token: bytes, patience: float = 0.0) -> None:
        self.patience = patience
        self._tracker, self._token = tracker, token
        self._channel: Channel | None = None
        self._is_abandoned = threading.Event()

    def devices(self) -> list[Kind]:
        """Return all devices of the tracker."""
        return [Kind(**each) for each in self._persist(lambda: self._ask({}))["devices"]]

    def do(self, request: Message, files: Mapping[str, Path]) -> Message:
        """Return a device's answer to `request`; `files` holds, by name, what it may ask for."""

        def attempt() -> Message:
            answer = self._ask(request)
            while "need" in answer:  # for each device that went away, once more
                answer = self._ask({}, [files[name].read_bytes() for name in answer["need"]])
            return answer

        return self._persist(attempt)

    def hang_up(self) -> None:
        """Have whoever waits for an answer in another thread return."""
        self._is_abandoned.set()
        if self._channel:
            self._channel.hang_up()

    def close(self) -> None:
        if self._channel:
            self._channel.close()
            self._channel = None

    def _ask(self, message: Message, files: Sequence[bytes] = ()) -> Message:
        if self._channel is None:
            self._channel = dial(self._tracker, self._token)
        self._channel.send(message, files)
        answer, _ = self._channel.receive(None)
        return answer

    def _persist(self, attempt: Callable[[], Answer]) -> Answer:
        """Return what `attempt` does, tried again until the patience is over or nobody waits for it."""
        self._is_abandoned.clear()
        deadline = None
        while True:
            try:
                return attempt()
            except OSError as error:
                self.close()
                deadline = deadline or time.monotonic() + self.patience
                left = min(_REDIAL_SECONDS, deadline - time.monotonic())
                if isinstance(error, RefusedError) or left <= 0 or self._is_abandoned.wait(left):
                    raise FleetError(tracker=self._tracker, detail=str(error)) from None


def most_frequent(kinds: Sequence[Kind], target: str) -> Kind | None:
    """Return a device for `target`, of the machine of which there are most; None if there is none."""
    fit = [kind for kind in kinds if kind.target == target]
    count = Counter(kind.machine for kind in fit)
    return min(fit, key=lambda kind: (-count[kind.machine], kind.machine), default=None)
