"""Holders of a token understand each other; nobody else gets a word, or gets one in."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.measure.fleet.parties import TOKEN
from tvmops.errors import ArgumentError, TokenError
from tvmops.measure.fleet import wire
from tvmops.measure.fleet.wire import (
    VARIABLE,
    Channel,
    RefusedError,
    WireError,
    greet,
    parse_address,
    read_token,
)


@contextlib.contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname(), timeout=30)
        far, _ = listener.accept()
    with near, far:
        yield near, far


def accept(connection: socket.socket) -> Channel:
    try:
        return greet(connection, TOKEN, "host")
    except OSError:
        connection.close()
        raise


def both(near: socket.socket, far: socket.socket) -> tuple[Channel, Channel]:
    with ThreadPoolExecutor(1) as other:
        host = other.submit(accept, far)
        return greet(near, TOKEN, "guest"), host.result()


def test_messages_and_files_go_both_ways() -> None:
    with connected() as (near, far):
        guest, host = both(near, far)
        big = bytes(range(256)) * 40_000
        sender = threading.Thread(target=guest.send, args=({"a": [1, None, float("inf")]}, [big, b""]))
        sender.start()
        assert host.receive(30) == ({"a": [1, None, float("inf")]}, [big, b""])
        sender.join()
        host.send({"b": "ü"})
        assert guest.receive(30) == ({"b": "ü"}, [])
        assert guest.is_quiet()
        guest.close()
        with pytest.raises(WireError, match="the connection ended"):
            host.receive(30)
        assert not host.is_quiet()


def test_another_token_is_refused_at_both_ends() -> None:
    with connected() as (near, far), ThreadPoolExecutor(1) as other:
        host = other.submit(accept, far)
        with pytest.raises(RefusedError, match="does not hold the same token"):
            greet(near, b"another token of 30 characters", "guest")
        with pytest.raises(RefusedError, match="does not hold the same token"):
            host.result()


def test_a_host_without_the_token_is_not_believed() -> None:
    with connected() as (near, far), ThreadPoolExecutor(1) as other:
        guest = other.submit(greet, near, TOKEN, "guest")
        far.sendall(b"tvmops fleet 1\r\n" + bytes(64))
        with pytest.raises(RefusedError, match="does not hold the same token"):
            guest.result()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n" * 10, b"\x00" * 100, b"tvmops fleet 0\r\n" * 10])
def test_what_is_no_fleet_is_told(said: bytes) -> None:
    with connected() as (near, far):
        near.sendall(said)
        with pytest.raises(WireError):
            greet(far, TOKEN, "host")


def test_whoever_returns_all_that_it_is_sent_has_proved_nothing() -> None:
    with connected() as (near, far), ThreadPoolExecutor(1) as other:
        host = other.submit(accept, far)
        greeting = near.recv(48, socket.MSG_WAITALL)
        near.sendall(greeting + greeting[:32])
        with pytest.raises(RefusedError, match="does not hold the same token"):
            host.result()
        assert near.recv(1 << 16, socket.MSG_WAITALL) == bytes(32), "it was told more than no"


class Between:
    """A connection that keeps what is sent, so that a test may pass on something else."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self.kept = connection, bytearray()

    def send(self, data: bytes) -> int:
        self.kept += data
        return len(data)

    def settimeout(self, seconds: float | None) -> None:
        self._connection.settimeout(seconds)


def tampered(sent: bytes, how: str) -> bytes:
    if how == "changed":
        return sent.replace(b"file", b"bile")
    if how == "sent twice":
        return sent + sent
    if how == "too long":
        return b"\xff\xff\xff\xff" + sent
    return sent.replace(b'"sizes"', b'"sIzes"')


@pytest.mark.parametrize("how", ["changed", "sent twice", "too long", "no message"])
def test_what_was_tampered_with_is_not_believed(how: str) -> None:
    with connected() as (near, far):
        guest, host = both(near, far)
        between = Between(near)
        guest._connection = between  # type: ignore[assignment]
        guest.send({"do": "it"}, [b"a file"])
        near.sendall(tampered(bytes(between.kept), how))
        if how == "sent twice":
            assert host.receive(30) == ({"do": "it"}, [b"a file"])
        with pytest.raises(WireError, match="it sent "):
            host.receive(30)


def test_one_s_own_messages_are_not_taken_for_the_other_s() -> None:
    with connected() as (near, far):
        guest, _ = both(near, far)
        between = Between(near)
        guest._connection = between  # type: ignore[assignment]
        guest.send({"do": "it"})
        guest._connection = near
        far.sendall(between.kept)
        with pytest.raises(WireError, match="changed on the way"):
            guest.receive(30)


def test_a_connection_that_ends_in_the_greeting_is_no_refusal() -> None:
    with connected() as (near, far):
        far.sendall(b"tvmops fleet 1\r\n" + bytes(32))
        far.shutdown(socket.SHUT_WR)
        with pytest.raises(WireError, match="the connection ended") as ended:
            greet(near, TOKEN, "guest")
        assert not isinstance(ended.value, RefusedError)


def test_a_greeting_that_stalls_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "GREETING_SECONDS", 0.2)
    with connected() as (near, far):
        near.sendall(b"tvmops")
        with pytest.raises(WireError):
            greet(far, TOKEN, "host")


def test_a_token_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(TokenError, match=r"\$TVMOPS_FLEET_TOKEN: is not set"):
        read_token()
    monkeypatch.setenv(VARIABLE, "0123456789abcdef\n")
    assert read_token() == TOKEN
    file = tmp_path / "token"
    with pytest.raises(TokenError, match="token: can't be read"):
        read_token(file)
    file.write_text("short")
    file.chmod(0o600)
    with pytest.raises(TokenError, match="has 5 characters; at least 16"):
        read_token(file)
    file.write_text("another token of 30 characters")
    assert read_token(file) == b"another token of 30 characters"
    file.chmod(0o640)
    with pytest.raises(TokenError, match="others may read it"):
        read_token(file)


def test_addresses() -> None:
    assert parse_address("board.local:9190") == ("board.local", 9190)
    assert parse_address("[::1]:1") == ("::1", 1)
    for bad in ("", "9190", "host:", ":9190", "host:port", "host:65536"):
        with pytest.raises(ArgumentError, match="expected HOST:PORT"):
            parse_address(bad)
