"""Files that a device keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvmops.errors import ScratchError
from tvmops.measure.fleet.store import Store, name_of
from tvmops.measure.fleet.wire import WireError

FILES = {name_of(data, ".npy"): data for data in (b"a" * 10, b"b" * 10, b"c" * 10)}
A, B, C = FILES


def test_each_file_is_sent_once_and_the_least_used_goes_first(tmp_path: Path) -> None:
    store = Store(tmp_path, room=20)
    assert store.missing([A, B, A]) == [A, B]
    for name in (A, B):
        store.put(name, FILES[name], [A, B])
    assert store.missing([B, A]) == []
    store.put(C, FILES[C], [C])
    assert store.missing([A, B, C]) == [B]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {A: FILES[A], C: FILES[C]}
    store.put(B, FILES[B], [A, B, C])  # all are needed, whatever the room
    assert store.missing([A, B, C]) == []


def test_other_bytes_and_other_places_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(WireError, match="is another"):
        store.put(A, b"other bytes", [A])
    for name in ("../" + A, A + "/../../x", "x", "", A + ".npy.", "/etc/passwd"):
        with pytest.raises(WireError, match="is no name of a file"):
            store.path(name)
    with pytest.raises(ScratchError, match="No such file"):
        store.put(A, FILES[A], [A])
