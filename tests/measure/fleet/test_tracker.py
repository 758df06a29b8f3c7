"""The tracker: a task is done once whatever becomes of devices, and strangers get nothing."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.measure.fleet.parties import TOKEN, address_of, device, names, serving, stranger, tracker_process
from tests.processes import wait_until
from tvmops.errors import FleetError
from tvmops.measure.fleet import tracker as tracker_module
from tvmops.measure.fleet import wire
from tvmops.measure.fleet.line import Line, most_frequent
from tvmops.measure.fleet.tracker import Kind, Tracker
from tvmops.measure.fleet.wire import WireError, dial

REQUEST = {"target": "t", "machine": "m", "patience": 30.0, "limit": 30.0, "task": "work"}


@pytest.fixture
def tracker() -> Iterator[Tracker]:
    with serving() as tracker:
        yield tracker


@pytest.fixture
def other() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def ask(tracker: Tracker, files: dict[str, Path] | None = None, **changes: object) -> Any:
    with contextlib.closing(Line(tracker.address, TOKEN)) as line:
        return line.do({**REQUEST, **changes}, files or {})


def test_a_task_goes_to_a_device_of_its_kind_with_the_files_that_it_needs(
    tracker: Tracker, other: ThreadPoolExecutor, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    others = [device(tracker, "another target", target="u"), device(tracker, "another machine", machine="n")]
    board = device(tracker, "right")
    answer = other.submit(ask, tracker, {"f": tmp_path / "file"})
    assert board.receive(30) == ({"task": "work"}, [])
    board.send({"need": ["f"]})
    assert board.receive(30) == ({}, [b"content"])
    board.send({"done": 1})
    assert answer.result() == {"done": 1}
    assert sorted(names(tracker)) == ["another machine", "another target", "right"]
    assert all(each.is_quiet() for each in others)


def test_devices_take_tasks_at_the_same_time_and_one_has_one(
    tracker: Tracker, other: ThreadPoolExecutor
) -> None:
    boards = [device(tracker, name) for name in "ab"]
    answers: list[Future[Any]] = [other.submit(ask, tracker, task=number) for number in range(6)]
    done = []
    for _ in range(3):
        for board in boards:  # both have one before either is done
            task, _ = board.receive(30)
            done.append(task["task"])
            assert board.is_quiet()
        for board, task in zip(boards, done[-2:]):
            board.send({"done": task})
    assert [answer.result() for answer in answers] == [{"done": number} for number in range(6)]
    assert sorted(done) == list(range(6))


@pytest.mark.parametrize("how", ["before", "after files", "talks nonsense"])
def test_a_task_whose_device_is_lost_goes_to_another(
    tracker: Tracker, other: ThreadPoolExecutor, tmp_path: Path, how: str
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    lost = device(tracker, "lost")
    answer = other.submit(ask, tracker, {"f": tmp_path / "file"})
    lost.receive(30)
    if how == "after files":
        lost.send({"need": ["f"]})
        lost.receive(30)
    if how == "talks nonsense":
        lost._connection.sendall(b"\xff" * 100)
    else:
        lost.close()
    board = device(tracker, "other")
    assert board.receive(30) == ({"task": "work"}, [])
    board.send({"need": ["f"]})
    assert board.receive(30) == ({}, [b"content"])
    board.send({"done": 1})
    assert answer.result() == {"done": 1}
    assert names(tracker) == ["other"]


def test_a_device_that_freezes_in_a_task_is_lost(other: ThreadPoolExecutor) -> None:
    with serving(grace=0.2) as tracker:
        frozen = device(tracker, "frozen")
        answer = other.submit(ask, tracker, limit=0.0)
        assert frozen.receive(30) == ({"task": "work"}, [])
        wait_until(lambda: names(tracker) == [])
        board = device(tracker, "other")
        board.receive(30)
        board.send({"done": 1})
        assert answer.result() == {"done": 1}


def test_a_task_that_takes_its_devices_with_it_is_not_given_to_all(
    tracker: Tracker, other: ThreadPoolExecutor
) -> None:
    boards = [device(tracker, name) for name in "abc"]
    answer = other.submit(ask, tracker)
    for board in boards[:2]:
        board.receive(30)
        board.close()
    assert answer.result() == {"lost": 2}
    assert names(tracker) == ["c"]


def test_a_device_may_come_back_while_a_run_waits(tracker: Tracker, other: ThreadPoolExecutor) -> None:
    device(tracker, "board").close()
    answer = other.submit(ask, tracker)
    wait_until(lambda: names(tracker) == [])
    board = device(tracker, "board")
    board.receive(30)
    board.send({"done": 1})
    assert answer.result() == {"done": 1}


def test_a_run_learns_that_there_is_no_device(tracker: Tracker) -> None:
    board = device(tracker, "another", target="u")
    assert ask(tracker, patience=0.1) == {"none": True}
    assert board.is_quiet()


def test_a_task_outlives_its_tracker(other: ThreadPoolExecutor, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with tracker_process(tmp_path) as tracker, contextlib.closing(Line(tracker.address, TOKEN, 60)) as line:
        assert tracker.address.startswith("127.0.0.1:"), "as the command line binds it"
        board = device(tracker, "board")
        answer = other.submit(line.do, REQUEST, {"f": tmp_path / "file"})
        assert board.receive(30) == ({"task": "work"}, [])
        tracker.kill()
        with pytest.raises(WireError):
            board.receive(30)
        tracker.start()
        board = device(tracker, "board")
        assert board.receive(30) == ({"task": "work"}, [])
        board.send({"need": ["f"]})
        assert board.receive(30) == ({}, [b"content"])
        board.send({"done": 1})
        assert answer.result() == {"done": 1}
        assert [kind.name for kind in line.devices()] == ["board"]


def test_a_run_that_is_abandoned_waits_for_no_tracker(other: ThreadPoolExecutor) -> None:
    with serving() as tracker:
        pass
    line = Line(tracker.address, TOKEN, patience=600)
    answer = other.submit(line.devices)
    assert not answer.done(), "it dials"
    wait_until(lambda: line.hang_up() or answer.done())
    with pytest.raises(FleetError, match="Connection refused"):
        answer.result()


@pytest.mark.parametrize("when", ["waits", "runs", "needs files"])
def test_a_run_that_goes_away_leaves_the_devices_to_others(
    tracker: Tracker, other: ThreadPoolExecutor, when: str
) -> None:
    run = dial(tracker.address, TOKEN)
    if when == "waits":
        run.send(REQUEST)
        run.close()
        board = device(tracker, "board")
    else:
        board = device(tracker, "board")
        run.send(REQUEST)
        board.receive(30)
        run.close()
        board.send({"need": ["f"]} if when == "needs files" else {"done": 0})
        if when == "needs files":
            with pytest.raises(WireError):  # it is hung up, and dials again
                board.receive(30)
            board = device(tracker, "board")
    answer = other.submit(ask, tracker, task="next")
    message, _ = board.receive(30)
    assert message == {"task": "next"}
    board.send({"done": 1})
    assert answer.result() == {"done": 1}


def all_that_is_said_to(connection: socket.socket) -> bytes:
    said = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            said += part
    return said


@pytest.mark.parametrize("words", [b"", b"GET / HTTP/1.1\r\n\r\n" * 20, b"tvmops fleet 1\r\n" + bytes(64)])
def test_strangers_are_told_a_random_number_and_no(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, words: bytes
) -> None:
    monkeypatch.setattr(wire, "GREETING_SECONDS", 0.5)  # a stranger that says nothing waits for the end of it
    board = device(tracker, "board")
    with stranger(tracker) as connection:
        connection.sendall(words)
        assert len(all_that_is_said_to(connection).removesuffix(bytes(32))) <= 48
    assert names(tracker) == ["board"] and board.is_quiet()


def test_a_wrong_token_is_told_at_both_ends(tracker: Tracker) -> None:
    line = Line(tracker.address, b"another token of 30 characters")
    with pytest.raises(FleetError, match=f"{tracker.address}: it does not hold the same token"):
        line.devices()


def test_strangers_that_stall_keep_nobody_out(tracker: Tracker) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(stranger(tracker))
        assert names(tracker) == []


def test_no_more_strangers_than_that_are_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "_MOST_STRANGERS", 3)
    with serving() as tracker, contextlib.ExitStack() as stack:
        for _ in range(3):
            assert stack.enter_context(stranger(tracker)).recv(6) == b"tvmops"
        with stranger(tracker) as fourth:
            assert all_that_is_said_to(fourth) == b""
        stack.pop_all().close()
        wait_until(lambda: is_served(tracker))


def is_served(tracker: Tracker) -> bool:
    try:
        return names(tracker) == []
    except FleetError:
        return False


def test_it_is_reached_from_this_machine_alone_unless_told_otherwise(tracker: Tracker) -> None:
    assert tracker.address.startswith("127.0.0.1:")
    outside = own_address()
    if outside is None:
        pytest.skip("this machine has the loopback interface alone")
    _, port = address_of(tracker)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((outside, port), timeout=30)
    with serving(host=outside) as told:
        assert told.address.startswith(f"{outside}:")
        board = device(told, "board")
        assert names(told) == ["board"] and board.is_quiet()
        with pytest.raises(FleetError, match="does not hold the same token"):
            Line(told.address, b"another token of 30 characters").devices()


def own_address() -> str | None:
    """Return this machine's address on a network; None if it has none. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = str(probe.getsockname()[0])
    return None if address.startswith("127.") else address


def test_where_nobody_listens_is_one_error() -> None:
    with serving() as tracker:
        pass
    with pytest.raises(FleetError, match=f"{tracker.address}: .*Connection refused"):
        Line(tracker.address, TOKEN).devices()


def test_of_several_kinds_a_run_takes_the_one_of_which_there_are_most() -> None:
    boards = ["t a", "u b", "u b", "u b", "t d", "t c", "t c", "t d"]
    kinds = [Kind(str(n), *board.split(), 1, 1, 1, 1) for n, board in enumerate(boards)]  # type: ignore[arg-type]
    chosen = most_frequent(kinds, "t")
    assert chosen and chosen.machine == "c"
    assert most_frequent(kinds, "v") is None
