"""`Line`: how a run asks a tracker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tvmops.errors import FleetError
from tvmops.measure.fleet.tracker import Kind
from tvmops.measure.fleet.wire import Channel, Message, dial


class Line:
    """A run's connection to a tracker; it has one task at a time.

    Raises
    ------
    FleetError
        By every method, where the tracker is not there or turns the run away.
    """

    def __init__(self, tracker: str, token: bytes) -> None:
        self._tracker, self._token = tracker, token
        self._channel: Channel | None = None

    def devices(self) -> list[Kind]:
        """Return all devices of the tracker."""
        return [Kind(**each) for each in self._ask({})["devices"]]

    def do(self, request: Message, files: Mapping[str, Path]) -> Message:
        """Return a device's answer to `request`; `files` holds, by name, what it may ask for."""
        answer = self._ask(request)
        while "need" in answer:  # for each device that went away, once more
            answer = self._ask({}, [files[name].read_bytes() for name in answer["need"]])
        return answer

    def hang_up(self) -> None:
        """Have whoever waits for an answer in another thread return."""
        if self._channel:
            self._channel.hang_up()

    def close(self) -> None:
        if self._channel:
            self._channel.close()
            self._channel = None

    def _ask(self, message: Message, files: Sequence[bytes] = ()) -> Message:
        try:
            if self._channel is None:
                self._channel = dial(self._tracker, self._token)
            self._channel.send(message, files)
            answer, _ = self._channel.receive(None)
        except OSError as error:
            self.close()
            raise FleetError(tracker=self._tracker, detail=str(error)) from None
        return answer


def most_frequent(kinds: Sequence[Kind], target: str) -> Kind | None:
    """Return a device for `target`, of the machine of which there are most; None if there is none."""
    fit = [kind for kind in kinds if kind.target == target]
    count = Counter(kind.machine for kind in fit)
    return min(fit, key=lambda kind: (-count[kind.machine], kind.machine), default=None)
