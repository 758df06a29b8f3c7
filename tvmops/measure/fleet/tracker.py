"""`Tracker`: keeps the devices of a fleet, and hands the tasks of runs to those that are idle."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tvmops.measure.fleet.wire import Channel, Message, greet

_GRACE = 180.0  # seconds beyond a task's own limit: for a worker to start on a busy board
_UPLOAD_SECONDS = 60.0  # in which a run must begin to send what a device needs
_MOST_STRANGERS = 32  # who have not proved the token yet
_MOST_LOST = 2  # devices that a task may take with it


@dataclass(frozen=True)
class Kind:
    """What a device says of itself."""

    name: str
    target: str
    machine: str  # fingerprint
    cores: int
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int


@dataclass(eq=False)
class _Device:
    kind: Kind
    channel: Channel

    def is_of(self, target: str, machine: str) -> bool:
        return (self.kind.target, self.kind.machine) == (target, machine)


class _LostError(Exception):
    """A device went away in the middle of a task."""


class _Pool:
    """The devices that are there: idle ones, the one that waits longest first, and busy ones."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._idle: list[_Device] = []
        self._busy: list[_Device] = []

    def add(self, device: _Device) -> None:
        with self._changed:
            self._idle.append(device)
            self._changed.notify_all()

    def kinds(self) -> list[Kind]:
        with self._changed:
            self._forget_gone()
            return [device.kind for device in (*self._idle, *self._busy)]

    @contextlib.contextmanager
    def taking(self, target: str, machine: str, patience: float) -> Iterator[_Device | None]:
        """Lend an idle device of a kind, waiting for one; None after `patience` seconds without any.

        It is not taken back if anything goes wrong meanwhile: it is hung up, and dials again.
        """
        device = self._take(target, machine, patience)
        try:
            yield device
        except BaseException:
            if device:
                with self._changed:
                    self._busy.remove(device)
                    device.channel.close()
            raise
        if device:
            with self._changed:
                self._busy.remove(device)
                self._idle.append(device)
                self._changed.notify_all()

    def _take(self, target: str, machine: str, patience: float) -> _Device | None:
        deadline = time.monotonic() + patience
        with self._changed:
            while True:
                self._forget_gone()
                for device in self._idle:
                    if device.is_of(target, machine):
                        self._idle.remove(device)
                        self._busy.append(device)
                        return device
                if any(device.is_of(target, machine) for device in self._busy):
                    deadline = time.monotonic() + patience
                elif time.monotonic() >= deadline:
                    return None
                self._changed.wait(min(1.0, max(0.01, deadline - time.monotonic())))

    def _forget_gone(self) -> None:
        for device in [device for device in self._idle if not device.channel.is_quiet()]:
            self._idle.remove(device)
            device.channel.close()

    def close(self) -> None:
        with self._changed:
            for device in (*self._idle, *self._busy):
                device.channel.hang_up()


class Tracker:
    """Listens on `host`, which is this machine alone unless told otherwise.

    `say` is told of devices that come and go, and of who has no token.
    """

    def __init__(
        self,
        token: bytes,
        host: str = "127.0.0.1",
        port: int = 0,
        say: Callable[[str], None] = lambda text: None,
        grace: float = _GRACE,
    ) -> None:
        self._token, self._say, self._grace = token, say, grace
        self._pool = _Pool()
        self._strangers = threading.BoundedSemaphore(_MOST_STRANGERS)
        self._is_closed = False
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=128)
        bound = self._listener.getsockname()
        self.address = f"[{bound[0]}]:{bound[1]}" if ":" in host else f"{bound[0]}:{bound[1]}"

    def serve(self) -> None:
        """Serve until closed."""
        while not self._is_closed:
            try:
                connection, peer = self._listener.accept()
            except OSError:  # closed, or out of file descriptors
                time.sleep(0.1)
                continue
            if not self._strangers.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(
                target=self._meet, args=(connection, f"{peer[0]}:{peer[1]}"), daemon=True
            ).start()

    def close(self) -> None:
        """Stop listening, and hang up on all devices."""
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        self._listener.close()
        self._pool.close()

    def _meet(self, connection: socket.socket, peer: str) -> None:
        try:
            channel = greet(connection, self._token, "host")
        except OSError as error:
            connection.close()
            self._say(f"{peer} was turned away: {error}")
            return
        finally:
            self._strangers.release()
        try:
            message, _ = channel.receive(_UPLOAD_SECONDS)
            if "device" in message:
                device = _Device(Kind(**message["device"]), channel)
                self._pool.add(device)
                self._say(f"{device.kind.name} serves {device.kind.target}: {device.kind.machine}")
                return
            while True:
                self._serve_run(channel, message)
                message, _ = channel.receive(None)
        except (OSError, KeyError, TypeError):  # a run that has ended, or is of another version
            channel.close()

    def _serve_run(self, run: Channel, request: Message) -> None:
        if "task" not in request:
            run.send({"devices": [dataclasses.asdict(kind) for kind in self._pool.kinds()]})
            return
        wanted = (request["target"], request["machine"], request["patience"])
        for _ in range(_MOST_LOST):
            try:
                with self._pool.taking(*wanted) as device:
                    answer: Message = {"none": True}
                    if device and run.is_quiet():
                        answer = self._hand_over(run, device, request)
            except _LostError as loss:
                self._say(str(loss))
                continue
            run.send(answer)
            return
        run.send({"lost": _MOST_LOST})

    def _hand_over(self, run: Channel, device: _Device, request: Message) -> Message:
        """Have `device` do the task of `request`, with the files that it asks the run for."""

        def ask(message: Message, files: list[bytes]) -> Message:
            try:
                device.channel.send(message, files)
                answer, _ = device.channel.receive(request["limit"] + self._grace)
            except OSError as error:
                raise _LostError(f"{device.kind.name} is gone in the middle of a task: {error}") from None
            return answer

        answer = ask({"task": request["task"]}, [])
        if "need" in answer:
            run.send(answer)
            _, files = run.receive(_UPLOAD_SECONDS)
            answer = ask({}, files)
        return answer
