"""Trackers and devices for tests, all on the loopback interface."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.processes import children, is_running, wait_until
from tvmops.measure.fleet.line import Line
from tvmops.measure.fleet.tracker import Tracker
from tvmops.measure.fleet.wire import VARIABLE, Channel, dial

ROOT = Path(__file__).parents[3]
TOKEN = b"0123456789abcdef"
KIND = {"target": "t", "machine": "m", "cores": 1, "l1_bytes": 1, "l2_bytes": 1, "l3_bytes": 1}


@contextlib.contextmanager
def serving(port: int = 0, grace: float = 60.0, host: str | None = None) -> Iterator[Tracker]:
    """A tracker in a thread of this process."""
    tracker = Tracker(TOKEN, port=port, grace=grace, **({} if host is None else {"host": host}))
    thread = threading.Thread(target=tracker.serve, daemon=True)
    thread.start()
    yield tracker
    tracker.close()
    thread.join()


class TrackerProcess:
    """A tracker that can be killed, and started again where it was."""

    def __init__(self, folder: Path) -> None:
        self._said, self._port, self.address = folder / "tracker", "0", ""
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tvmops", "fleet", "tracker", "--port", self._port]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: TOKEN.decode()}
        with self._said.open("wb") as output:
            self._process = subprocess.Popen(command, stdout=output, env=environment)
        wait_until(lambda: "\n" in self._said.read_text())
        self.address = self._said.read_text().split()[1]
        self._port = self.address.rpartition(":")[2]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def tracker_process(folder: Path) -> Iterator[TrackerProcess]:
    tracker = TrackerProcess(folder)
    try:
        yield tracker
    finally:
        tracker.kill()


def address_of(tracker: Tracker) -> tuple[str, int]:
    host, _, port = tracker.address.rpartition(":")
    return host, int(port)


def stranger(tracker: Tracker) -> socket.socket:
    """Connect without a word."""
    return socket.create_connection(address_of(tracker), timeout=30)


def device(tracker: Tracker | TrackerProcess, name: str, **changes: object) -> Channel:
    """Register a device that a test plays itself."""
    channel = dial(tracker.address, TOKEN)
    channel.send({"device": {"name": name, **KIND, **changes}})
    wait_until(lambda: name in names(tracker))
    return channel


def names(tracker: Tracker | TrackerProcess) -> list[str]:
    """Return the names of the devices that a tracker has."""
    with contextlib.closing(Line(tracker.address, TOKEN)) as line:
        return [kind.name for kind in line.devices()]


class Board:
    """A real device, in a process and a folder of its own; it can be killed and started again."""

    def __init__(
        self, folder: Path, tracker: str, target: str, python: Path | None = None, cpu: int | None = None
    ) -> None:
        folder.mkdir()
        self.folder = folder
        run = [str(python or sys.executable), "-m", "tvmops", "fleet", "device"]
        self._command = [*run, "--tracker", tracker, "--target", target, *(["--python", run[0]])]
        self._cpu = cpu
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: TOKEN.decode()}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment.update(environment or {})
        cpus = {self._cpu} if self._cpu is not None else os.sched_getaffinity(0)
        with (self.folder / "said").open("ab") as said:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.folder,
                env=self._environment,
                stdout=said,
                stderr=said,
                preexec_fn=lambda: os.sched_setaffinity(0, cpus),
            )

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def is_dead(self) -> bool:
        return self._process is None or self._process.poll() is not None

    @property
    def is_asleep(self) -> bool:
        """True once it ran a kernel that sleeps."""
        return (self.folder / "asleep").exists()

    def kill(self) -> None:
        assert self._process
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def boards(count: int, make: Callable[[int], Board]) -> Iterator[list[Board]]:
    """Started boards, ended with the block."""
    made = [make(number) for number in range(count)]
    try:
        for board in made:
            board.start()
        yield made
    finally:
        for board in made:
            board.kill()


def kill_the_one_that_sleeps(fleet: list[Board], seconds: float = 60.0) -> Board:
    """Wait until a board runs a kernel that sleeps, kill it with all that it started, and return it."""
    wait_until(lambda: any(board.is_asleep for board in fleet), seconds)
    (board,) = (board for board in fleet if board.is_asleep)
    workers = children(board.pid)
    board.kill()
    wait_until(lambda: not any(map(is_running, workers)))
    (board.folder / "asleep").unlink()
    return board
