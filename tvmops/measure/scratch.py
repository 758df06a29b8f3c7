"""A folder for files of one run, which goes with it, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path

_PREFIX = "tvmops-scratch-"  # no other temporary folder may begin so: what is not locked is removed


class Scratch:
    """A new folder among the temporary ones, removed by `close` or with this object.

    It is locked as long as its process lives. Folders of processes that were killed are not
    locked any more; the next run removes them.
    """

    def __init__(self) -> None:
        _remove_leftovers()
        new = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))
        descriptor = os.open(new, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self.path = new.rename(new.with_name(new.name[1:]))  # only now may others look at it
        self._finalizer = weakref.finalize(self, _remove, self.path, descriptor)

    def close(self) -> None:
        self._finalizer()


def _remove(path: Path, descriptor: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(descriptor)


def _remove_leftovers() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # locked, another user's, or gone by now
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
