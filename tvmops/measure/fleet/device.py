"""`Device`: serves a tracker's tasks on this machine, for as long as it lives.

It runs nothing of a candidate itself: its runner does, which is replaced after whatever a
candidate did to it. Where the connection is lost it dials again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tvmops.errors import ArgumentError, FleetError
from tvmops.machine import this_machine
from tvmops.measure.failure import describe
from tvmops.measure.fleet.store import Store
from tvmops.measure.fleet.tasks import files_of, request_of
from tvmops.measure.fleet.tracker import Kind
from tvmops.measure.fleet.wire import Channel, Message, RefusedError, dial
from tvmops.measure.runner import TimeRequest
from tvmops.measure.running import Runner
from tvmops.measure.scratch import Scratch
from tvmops.measure.worker import WorkerDiedError, WorkerTimeoutError
from tvmops.targets import Target

_REDIAL_SECONDS = 1.0
_UPLOAD_SECONDS = 120.0


class Device:
    """This machine as one of a fleet's devices.

    Parameters
    ----------
    python
        What runs candidates, where that is not what runs this.

    Raises
    ------
    ArgumentError
        This machine can't run code for `target`.
    """

    def __init__(
        self,
        tracker: str,
        token: bytes,
        target: Target,
        say: Callable[[str], None] = lambda text: None,
        python: str = sys.executable,
    ) -> None:
        machine = this_machine()
        missing = target.missing(machine)
        if missing:
            expected = f"one that this machine can run; it lacks {', '.join(missing)}"
            raise ArgumentError(argument="target", value=target.name, expected=expected)
        caches = (machine.l1_bytes, machine.l2_bytes, machine.l3_bytes)
        name = f"{socket.gethostname()}/{os.getpid()}"
        self.kind = Kind(name, target.name, machine.fingerprint, machine.cores, *caches)
        self._tracker, self._token, self._say, self._python = tracker, token, say, python
        self._scratch = Scratch()
        self._store = Store(self._scratch.path)
        self._runner: Runner | None = None
        self._runtime: Path | None = None

    def serve(self) -> None:
        """Serve without end.

        Raises
        ------
        FleetError
            The tracker does not accept the token.
        WorkerError, ScratchError
            This machine can't run anything.
        """
        state = ""
        while True:
            try:
                with contextlib.closing(dial(self._tracker, self._token)) as channel:
                    channel.send({"device": dataclasses.asdict(self.kind)})
                    state = self._tell(state, f"serves {self._tracker} as {self.kind.target}")
                    self._serve(channel)
            except RefusedError as error:
                raise FleetError(tracker=self._tracker, detail=str(error)) from None
            except OSError as error:
                state = self._tell(state, f"dials {self._tracker} until it answers: {error}")
            time.sleep(_REDIAL_SECONDS)

    def close(self) -> None:
        if self._runner:
            self._runner.stop()
        self._scratch.close()

    def _tell(self, before: str, now: str) -> str:
        if now != before:
            self._say(now)
        return now

    def _serve(self, channel: Channel) -> None:
        while True:
            message, _ = channel.receive(None)
            task: Message = message["task"]
            needed = files_of(task)
            missing = self._store.missing(needed)
            if missing:
                channel.send({"need": missing})
                _, files = channel.receive(_UPLOAD_SECONDS)
                for name, data in zip(missing, files, strict=True):
                    self._store.put(name, data, needed)
            channel.send(self._answer(task))

    def _answer(self, task: Message) -> Message:
        request = request_of(task, self._store.path)
        runner = self._runner_with(self._store.path(task["runtime"]))
        if isinstance(request, TimeRequest):
            try:
                return {"seconds": runner.time(request)}
            except (WorkerDiedError, WorkerTimeoutError) as failure:
                return {"failed": describe(failure)}
        return {"outcomes": [dataclasses.asdict(outcome) for outcome in runner.run(request)]}

    def _runner_with(self, runtime: Path) -> Runner:
        if self._runner is None or runtime != self._runtime:
            if self._runner:
                self._runner.stop()
            self._runner, self._runtime = Runner(self.kind.cores, runtime, self._python), runtime
        return self._runner
