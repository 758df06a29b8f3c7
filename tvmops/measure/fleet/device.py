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

from tvmops.errors import ArgumentError, FleetError, WorkerError
from tvmops.machine import this_machine
from tvmops.measure.failure import describe
from tvmops.measure.fleet.store import Store
from tvmops.measure.fleet.tasks import files_of, request_of
from tvmops.measure.fleet.tracker import Kind
from tvmops.measure.fleet.wire import Channel, Message, RefusedError, WireError, dial
from tvmops.measure.runner import RunRequest, TimeRequest
from tvmops.measure.running import Runner
from tvmops.measure.scratch import Scratch
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
            The tracker does not hold the same token.
        WorkerError, ScratchError
            This machine can't run anything.
        """
        state = ""
        while True:
            try:
                with contextlib.closing(dial(self._tracker, self._token)) as channel:
                    channel.send({"device": dataclasses.asdict(self.kind)})
                    state = self._tell(state, f"serves {self._tracker} as {self.kind.target}")
                    while True:
                        self._serve_one(channel)
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

    def _serve_one(self, channel: Channel) -> None:
        message, _ = channel.receive(None)
        try:
            task: Message = message["task"]
            needed = files_of(task)
            missing = self._store.missing(needed)
            if missing:
                channel.send({"need": missing})
                _, files = channel.receive(_UPLOAD_SECONDS)
                for name, data in zip(missing, files, strict=True):
                    self._store.put(name, data, needed)
            request = request_of(task, self._store.path)
            runtime = self._store.path(task["runtime"])
        except (KeyError, TypeError, ValueError) as error:
            raise WireError(f"it sent what is no task: {describe(error)}") from None
        channel.send(self._answer(request, self._runner_with(runtime)))

    def _answer(self, request: RunRequest | TimeRequest, runner: Runner) -> Message:
        try:
            if isinstance(request, RunRequest):
                return {"outcomes": [dataclasses.asdict(outcome) for outcome in runner.run(request)]}
            return {"seconds": runner.time(request)}
        except WorkerError:  # this machine can't run anything
            raise
        except Exception as failure:  # of the runner; it could not even load what was sent, say
            return {"failed": describe(failure)}

    def _runner_with(self, runtime: Path) -> Runner:
        if self._runner is None or runtime != self._runtime:
            if self._runner:
                self._runner.stop()
            self._runner, self._runtime = Runner(self.kind.cores, runtime, self._python), runtime
        return self._runner
