"""Files that a device was sent, each named by the digest of its bytes, so that none is sent twice."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path

from tvmops.errors import ScratchError
from tvmops.measure.fleet.wire import WireError

_ROOM = 1 << 30  # bytes that are kept when others are needed


def name_of(data: bytes, suffix: str) -> str:
    """Return the name under which a device keeps a file; some loaders go by the suffix."""
    return f"{hashlib.sha256(data).hexdigest()}{suffix}"


class Store:
    """Files in a folder; those that were not asked for the longest go first when there are too many."""

    def __init__(self, folder: Path, room: int = _ROOM) -> None:
        self._folder, self._room = folder, room
        self._sizes: dict[str, int] = {}  # by name, the one used last at the end

    def missing(self, names: Collection[str]) -> list[str]:
        """Return those that have to be sent, and note that the others are in use."""
        for name in names:
            if name in self._sizes:
                self._sizes[name] = self._sizes.pop(name)
        return [name for name in dict.fromkeys(names) if name not in self._sizes]

    def path(self, name: str) -> Path:
        """Return where a file is, or will be."""
        if not re.fullmatch(r"[0-9a-f]{64}(\.[a-z]+)?", name):
            raise WireError(f"{name[:80]!r} is no name of a file")
        return self._folder / name

    def put(self, name: str, data: bytes, needed: Collection[str]) -> None:
        """Keep a file, and as many of the others as there is room for, but all that are `needed`."""
        path = self.path(name)
        if name_of(data, path.suffix) != name:
            raise WireError(f"what came for file {name} is another")
        for old in [each for each in self._sizes if each not in needed]:
            if sum(self._sizes.values()) + len(data) <= self._room:
                break
            self.path(old).unlink()
            del self._sizes[old]
        try:
            path.write_bytes(data)
        except OSError as error:
            raise ScratchError(path=self._folder, detail=error.strerror) from None
        self._sizes[name] = len(data)
