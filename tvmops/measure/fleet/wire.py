"""What goes over a fleet's connections: JSON messages with files behind them, from holders of a token.

Both ends first prove by HMAC (RFC 2104) over fresh random numbers of both that they hold the
token, which itself is never sent. Until then an end has read 80 bytes, and no more. Then each
message carries a MAC, under a key of this connection alone, over its number and all of its
bytes: none can be slipped in, changed, replayed or turned back. Nothing is encrypted.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import select
import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tvmops.errors import ArgumentError, TokenError

GREETING_SECONDS = 10.0  # for all of it
VARIABLE = "TVMOPS_FLEET_TOKEN"
Message = dict[str, Any]

_MAGIC = b"tvmops fleet 1\r\n"  # the number changes with what is said
_NONCE, _MAC = 32, 32  # bytes
_NO = bytes(_MAC)  # in place of a proof: a guest that is refused need not try again
_LENGTH = struct.Struct(">I")
_LONGEST = 64 << 20  # bytes of a message's JSON
_SHORTEST_TOKEN = 16
_KEEPALIVE = {  # a peer that lost its power or its network is missed within a minute
    socket.TCP_KEEPIDLE: 20,
    socket.TCP_KEEPINTVL: 10,
    socket.TCP_KEEPCNT: 4,
}


class WireError(OSError):
    """The other end is gone, or says what no holder of the token would."""


class RefusedError(WireError):
    """The other end does not hold the same token."""


class Channel:
    """One end of a connection between two that have proved themselves."""

    def __init__(self, connection: socket.socket, key: bytes, role: str) -> None:
        self._connection, self._key = connection, key
        self._own, self._other = role.encode(), b"guest" if role == "host" else b"host"
        self._sent = self._received = 0

    def send(self, message: Mapping[str, Any], files: Sequence[bytes] = ()) -> None:
        """Send a message and the bytes of some files."""
        head = json.dumps({"message": message, "sizes": [len(file) for file in files]}).encode()
        parts = (_LENGTH.pack(len(head)), head, *files)
        self._connection.settimeout(GREETING_SECONDS)  # for any progress, not for all of it
        for part in (*parts, self._mac(self._own, self._sent, parts)):
            self._push(part)
        self._sent += 1

    def receive(self, patience: float | None) -> tuple[Message, list[bytes]]:
        """Return the next message and its files; `patience` is that for any next byte.

        Raises
        ------
        WireError, OSError
            There will be none.
        """
        self._connection.settimeout(patience)
        length = _read(self._connection, _LENGTH.size)
        (size,) = _LENGTH.unpack(length)
        if size > _LONGEST:
            raise WireError(f"it sent a message of {size} bytes")
        head = _read(self._connection, size)
        try:
            told = json.loads(head)
            message, sizes = dict(told["message"]), [int(each) for each in told["sizes"]]
        except (ValueError, TypeError, KeyError):
            raise WireError("it sent what is no message") from None
        files = [_read(self._connection, each) for each in sizes]
        mac = _read(self._connection, _MAC)
        if not hmac.compare_digest(mac, self._mac(self._other, self._received, (length, head, *files))):
            raise WireError("it sent a message that was changed on the way")
        self._received += 1
        return message, files

    def is_quiet(self) -> bool:
        """True if the other end is there, and has said nothing that was not received yet."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return not poll.poll(0)

    def hang_up(self) -> None:
        """End the connection, for whoever waits on it in another thread, too."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.hang_up()
        self._connection.close()

    def _push(self, part: bytes) -> None:
        view = memoryview(part)
        while view:
            view = view[self._connection.send(view) :]

    def _mac(self, sender: bytes, number: int, parts: Sequence[bytes]) -> bytes:
        mac = hmac.new(self._key, sender + _LENGTH.pack(number), hashlib.sha256)
        for part in parts:
            mac.update(part)
        return mac.digest()


def greet(connection: socket.socket, token: bytes, role: str) -> Channel:
    """Prove the token to the other end, and have it proved; `role` is "host" or "guest".

    A guest goes first: a host tells who has not proved it nothing but a random number, and no.

    Raises
    ------
    WireError
        The other end is no fleet's, or closed the connection.
    RefusedError
        It does not hold the same token.
    """
    for option, value in _KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with _ended_after(GREETING_SECONDS, connection):
        own = secrets.token_bytes(_NONCE)
        connection.sendall(_MAGIC + own)
        if _read(connection, len(_MAGIC)) != _MAGIC:
            raise WireError("what answers there is no fleet of this version of tvmops")
        other = _read(connection, _NONCE)
        nonces = own + other if role == "host" else other + own
        proofs = {name: _hmac(token, name.encode() + nonces) for name in ("guest", "host")}
        if role == "guest":
            connection.sendall(proofs["guest"])
        proof = _read(connection, _MAC)
        if not hmac.compare_digest(proof, proofs["host" if role == "guest" else "guest"]):
            if role == "host":
                connection.sendall(_NO)
            raise RefusedError("it does not hold the same token")
        if role == "host":
            connection.sendall(proofs["host"])
        return Channel(connection, _hmac(token, b"messages" + nonces), role)


def dial(tracker: str, token: bytes) -> Channel:
    """Connect to the tracker at "HOST:PORT"."""
    host, port = parse_address(tracker)
    connection = socket.create_connection((host, port), timeout=GREETING_SECONDS)
    try:
        return greet(connection, token, "guest")
    except BaseException:
        connection.close()
        raise


def parse_address(text: str) -> tuple[str, int]:
    """Return the host and the port of "HOST:PORT"."""
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isdecimal() and int(port) < 1 << 16):
        raise ArgumentError(argument="tracker", value=text, expected="HOST:PORT")
    return host.strip("[]"), int(port)


def read_token(path: str | os.PathLike[str] | None = None) -> bytes:
    """Return the token in the file `path`, or in $TVMOPS_FLEET_TOKEN.

    Raises
    ------
    TokenError
        There is none, others may read it, or it is too short to be no guess.
    """
    if path is None:
        place, text = f"${VARIABLE}", os.environ.get(VARIABLE, "")
        if not text:
            raise TokenError(place=place, detail="is not set; set it, or name a file that holds the token")
    else:
        place = str(path)
        try:
            text = Path(path).read_text()
            is_open = Path(path).stat().st_mode & 0o077
        except (OSError, ValueError) as error:
            raise TokenError(place=place, detail=f"can't be read ({error})") from None
        if is_open:
            raise TokenError(place=place, detail="others may read it; `chmod 600` it")
    token = text.strip().encode()
    if len(token) < _SHORTEST_TOKEN:
        raise TokenError(
            place=place,
            detail=f"has {len(token)} characters; at least {_SHORTEST_TOKEN} random ones are needed",
        )
    return token


def _hmac(key: bytes, text: bytes) -> bytes:
    return hmac.new(key, text, hashlib.sha256).digest()


def _read(connection: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view, count = memoryview(data), 0
    while count < size:
        got = connection.recv_into(view[count:])
        if not got:
            raise WireError("the connection ended")
        count += got
    return bytes(data)


@contextlib.contextmanager
def _ended_after(seconds: float, connection: socket.socket) -> Iterator[None]:
    """End the connection unless what is done here has ended in time."""

    def end() -> None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
