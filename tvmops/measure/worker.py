"""A child process that serves requests, stays alive between them, and may die on any.

The child is a fresh interpreter (no fork: threads of the parent stay out of it). It dies
with its parent.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, Pipe
from typing import Any

from tvmops.errors import WorkerError

_START_SECONDS = 120.0  # importing the compiler on a cold disk
_PR_SET_PDEATHSIG = 1


class WorkerDiedError(Exception):
    """The child ended in the middle of a request; the text says how."""


class WorkerTimeoutError(Exception):
    """The child did not answer in time; it has been killed."""


class Worker:
    """Runs `serve` functions, named "module:function", in a child process.

    `setup` is called once in each new child; every request calls `handle(request)` there.
    A child that died is replaced when the next request comes.
    """

    def __init__(
        self, role: str, setup: str, handle: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.role = role
        self._command = (setup, handle)
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._ready = False
        self.restarts = -1

    def start(self) -> None:
        """Start the child now, and return without waiting for it."""
        if self._process is not None:
            return
        ours, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tvmops.measure.worker", str(theirs.fileno()), *self._command],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self._environment,
        )
        theirs.close()
        self._connection = ours
        self._ready = False
        self.restarts += 1

    @property
    def connection(self) -> Connection:
        """What `multiprocessing.connection.wait` takes; readable when an answer is there."""
        assert self._connection is not None
        return self._connection

    def call(self, request: Any, timeout: float) -> Any:
        """Send `request` and return the answer.

        Raises
        ------
        WorkerDiedError, WorkerTimeoutError
            As their names say; the worker serves the next request all the same.
        """
        self.send(request)
        return self.receive(timeout)

    def send(self, request: Any) -> None:
        self.start()
        self.await_ready()
        try:
            self.connection.send(request)
        except OSError:
            raise WorkerDiedError(self._reap()) from None

    def receive(self, timeout: float) -> Any:
        try:
            if not self.connection.poll(timeout):
                self.stop()
                raise WorkerTimeoutError(f"no answer within {timeout:.3g} s")
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise WorkerDiedError(self._reap()) from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def await_ready(self) -> None:
        """Wait until a child that was started has imported what it needs."""
        if self._ready or self._process is None:
            return
        try:
            answer = (
                self.connection.recv() if self.connection.poll(_START_SECONDS) else "did not start in time"
            )
        except (EOFError, ConnectionResetError):
            answer = self._reap()
        if answer is not True:
            self.stop()
            raise WorkerError(role=self.role, detail=answer)
        self._ready = True

    def _reap(self) -> str:
        """Collect a child that died and say how it ended."""
        process = self._process
        assert process is not None
        try:
            code = process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        self.stop()
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exited with code {code}"

    def stop(self) -> None:
        """End the child at once."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _import(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _main(descriptor: int, setup: str, handle: str) -> None:
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    connection = Connection(descriptor)
    try:
        _import(setup)()
        serve = _import(handle)
    except BaseException as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(True)
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            answer = serve(request)
        except Exception as error:
            answer = error
        connection.send(answer)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
