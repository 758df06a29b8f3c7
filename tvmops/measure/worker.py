"""A child process that serves requests, stays alive between them, and may die on any.

The child is a fresh interpreter (no fork: threads of the parent stay out of it), in a
process group of its own, so that what it started ends with it. It dies with its parent.
Both sides write pickles to a socket. The child acknowledges a request before it serves it:
a death before that is not the request's fault.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import IO, Any

from tvmops.errors import WorkerError
from tvmops.measure.failure import describe, one_line, tells_of_memory
from tvmops.measure.limits import kills_for_memory, limit_harm

_START_SECONDS = 120.0  # importing the compiler on a cold disk
_ACKNOWLEDGE_SECONDS = 20.0  # reading a request on a machine that stalls
_ATTEMPTS = 3  # to start a child, or to hand it a request
_LAST_WORDS = 4096  # bytes of what a child printed before it died
_PR_SET_PDEATHSIG = 1
_TAKEN = b"\x06"  # ASCII's word for it; read past the buffer, so that `wait` sees what follows


class WorkerDiedError(Exception):
    """The child ended in the middle of a request; the text says how."""

    def __init__(self, text: str, out_of_memory: bool = False) -> None:
        super().__init__(text)
        self.out_of_memory = out_of_memory


class WorkerTimeoutError(Exception):
    """The child did not answer in time; it has been killed."""


class _Child:
    """A process, the socket to it, and what it prints."""

    def __init__(self, python: str, command: tuple[str, str], environment: Mapping[str, str]) -> None:
        self.kills_before = kills_for_memory()
        self.socket, theirs = socket.socketpair()
        self.stream = self.socket.makefile("rb")
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the child)
        arguments = [str(theirs.fileno()), str(os.getpid()), *command]
        self.process = subprocess.Popen(
            [python, "-m", "tvmops.measure.worker", *arguments],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            env=environment,
            start_new_session=True,
        )
        theirs.close()

    def read(self, timeout: float) -> Any:
        """Return what the child sends next."""
        self.socket.settimeout(max(timeout, 1e-3))
        return pickle.load(self.stream)

    def last_words(self) -> str:
        """Return the end of what the child printed, on one line."""
        self._output.seek(max(0, self._output.seek(0, os.SEEK_END) - _LAST_WORDS))
        return one_line(self._output.read().decode(errors="replace"))

    def close(self) -> None:
        """End the child, and whatever it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.stream.close()
        self.socket.close()
        self._output.close()


class Worker:
    """Runs `serve` functions, named "module:function", in a child process.

    `setup` is called once in each new child; every request calls `handle(request)` there.
    A child that died is replaced when the next request comes.
    """

    def __init__(
        self,
        role: str,
        setup: str,
        handle: str,
        environment: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        self.role = role
        self.starts = 0
        self._python, self._command = python, (setup, handle)
        self._environment = {**os.environ, **(environment or {})}
        self._child: _Child | None = None
        self._ready = False

    def start(self) -> None:
        """Start the child now, and return without waiting for it."""
        if self._child is None:
            self._child, self._ready = _Child(self._python, self._command, self._environment), False
            self.starts += 1

    @property
    def connection(self) -> socket.socket:
        """What `multiprocessing.connection.wait` takes; readable when an answer is there."""
        assert self._child is not None
        return self._child.socket

    @property
    def is_ready(self) -> bool:
        """True if the child is known to have imported what it needs."""
        return self._child is not None and self._ready

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return self._child.process.pid if self._child else None

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
        """Hand `request` to the child; return once it has it. A dead child is replaced."""
        message = pickle.dumps(request)
        for _ in range(_ATTEMPTS):
            self.await_ready()
            assert self._child is not None
            try:
                self._child.socket.settimeout(_ACKNOWLEDGE_SECONDS)
                self._child.socket.sendall(message)
                if self._child.socket.recv(1) == _TAKEN:
                    return
            except OSError:
                pass
            self.stop()  # it died since it last answered
        raise WorkerError(role=self.role, detail=f"it died {_ATTEMPTS} times before it took a request")

    def receive(self, timeout: float) -> Any:
        """Return the answer to the request that was sent; an exception raised there is raised here."""
        assert self._child is not None
        try:
            answer = self._child.read(timeout)
        except TimeoutError:
            self.stop()
            raise WorkerTimeoutError(f"no answer within {timeout:.3g} s") from None
        except Exception as error:  # end of file, or what a child that lost its mind wrote
            raise self._bury(error) from None
        except BaseException:
            self.stop()  # or its answer would be taken for that to a later request
            raise
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def await_ready(self) -> None:
        """Start the child if need be, and wait until it has imported what it needs."""
        for attempt in range(1, _ATTEMPTS + 1):
            self.start()
            if self._ready:
                return
            assert self._child is not None
            try:
                answer = self._child.read(_START_SECONDS)
            except TimeoutError:
                self.stop()
                raise WorkerError(role=self.role, detail="it was not ready in time") from None
            except Exception as error:
                death = self._bury(error)
                if attempt == _ATTEMPTS:
                    raise WorkerError(role=self.role, detail=str(death)) from None
                continue
            if answer is not True:
                self.stop()
                raise WorkerError(role=self.role, detail=answer)
            self._ready = True

    def _bury(self, error: Exception) -> WorkerDiedError:
        """Collect a child that died, or gave an answer that can't be read, and say what happened."""
        child = self._child
        assert child is not None
        try:
            code = child.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.stop()
            return WorkerDiedError(f"its answer can't be read: {describe(error)}")
        words = child.last_words()
        killed_for_memory = code == -signal.SIGKILL and kills_for_memory() > child.kills_before
        self.stop()
        how = f"exited with code {code}" if code >= 0 else f"killed by {_signal_name(-code)}"
        if killed_for_memory:
            how += ", as the machine was out of memory"
        out_of_memory = killed_for_memory or tells_of_memory(words)
        return WorkerDiedError(f"{how}: {words}" if words else how, out_of_memory)

    def stop(self) -> None:
        """End the child at once."""
        if self._child is not None:
            self._child.close()
            self._child = None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _import(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def _main(descriptor: int, parent: int, setup: str, handle: str) -> None:
    _die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    limit_harm()
    os.set_inheritable(descriptor, False)
    # tvm_ffi imports torch where it is installed: a second and 200 MB that no worker needs
    sys.modules["torch"] = None  # type: ignore[assignment]
    stream = socket.socket(fileno=descriptor).makefile("rwb", buffering=-1)

    def send(answer: Any) -> None:
        stream.write(pickle.dumps(answer))
        stream.flush()

    try:
        _import(setup)()
        serve = _import(handle)
    except BaseException as error:
        send(f"{type(error).__name__}: {error}")
        return
    send(True)
    while True:
        try:
            request = pickle.load(stream)
        except EOFError:
            return
        stream.write(_TAKEN)
        stream.flush()
        try:
            answer = serve(request)
        except Exception as error:
            answer = error
        send(answer)


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
